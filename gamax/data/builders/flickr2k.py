"""Flickr2K: large photographs for training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gamax.data.builders.core import ImageSetBuilder
from gamax.data.builders.layouts import clean_images
from gamax.data.examples import ExampleFiles


class Flickr2K(ImageSetBuilder):
    """Flickr2K: 2,650 colour photographs of about 2K pixels a side, for training with any synthetic degradation.

    Mostly used together with DIV2K ("DF2K"), and as a part of dfwb. There is no test split.
    """

    name = "flickr2k"
    TASK = "any synthetic degradation"
    CITATION = """@inproceedings{lim2017enhanced,
  title={Enhanced Deep Residual Networks for Single Image Super-Resolution},
  author={Lim, Bee and Son, Sanghyun and Kim, Heewon and Nah, Seungjun and Lee, Kyoung Mu},
  booktitle={IEEE Conference on Computer Vision and Pattern Recognition Workshops},
  year={2017}
}"""
    LICENSE = "none stated; the photographs are of users of Flickr"
    HOMEPAGE = "https://github.com/LimBee/NTIRE2017"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "download Flickr2K.tar as the homepage says and extract it, so that there are "
        "Flickr2K/Flickr2K_HR/000001.png to 002650.png"
    )
    COUNTS = {"train": 2650}

    @classmethod
    def examples(cls, source: Path) -> Mapping[str, Sequence[ExampleFiles]]:
        """Lists the images."""
        return {
            "train": clean_images(
                source, ("Flickr2K_HR", "Flickr2K/Flickr2K_HR", "Flickr2K"), cls.MANUAL_DOWNLOAD_INSTRUCTIONS
            )
        }
