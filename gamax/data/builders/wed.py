"""Waterloo Exploration Database: many small photographs for training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gamax.data.builders.core import ImageSetBuilder
from gamax.data.builders.layouts import clean_images
from gamax.data.examples import ExampleFiles


class WED(ImageSetBuilder):
    """WED, the Waterloo Exploration Database: 4,744 colour photographs for training with any synthetic degradation.

    Made to test measures of image quality; only the pristine images are read, not the distorted ones that its programs
    make from them. A part of dfwb. There is no test split.
    """

    name = "wed"
    TASK = "any synthetic degradation"
    CITATION = """@article{ma2017waterloo,
  title={{Waterloo Exploration Database}: New Challenges for Image Quality Assessment Models},
  author={Ma, Kede and Duanmu, Zhengfang and Wu, Qingbo and Wang, Zhou and Yong, Hongwei and Li, Hongliang and
    Zhang, Lei},
  journal={IEEE Transactions on Image Processing},
  volume={26},
  number={2},
  pages={1004--1016},
  year={2017}
}"""
    LICENSE = "unconfirmed; see the homepage"
    HOMEPAGE = "https://ece.uwaterloo.ca/~k29ma/exploration"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "download exploration_database_and_code.rar from the homepage and extract it, so that there are "
        "exploration_database_and_code/pristine_images/00001.bmp to 04744.bmp"
    )
    COUNTS = {"train": 4744}

    @classmethod
    def examples(cls, source: Path) -> Mapping[str, Sequence[ExampleFiles]]:
        """Lists the images."""
        return {
            "train": clean_images(
                source,
                ("pristine_images", "exploration_database_and_code/pristine_images", "WaterlooED", "WED"),
                cls.MANUAL_DOWNLOAD_INSTRUCTIONS,
            )
        }
