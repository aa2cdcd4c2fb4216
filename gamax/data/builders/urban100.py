"""Urban100: buildings with repeated structures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gamax.data.builders.core import ImageSetBuilder
from gamax.data.builders.layouts import clean_images
from gamax.data.examples import ExampleFiles


class Urban100(ImageSetBuilder):
    """Urban100: 100 colour photographs of buildings in many sizes, to which noise is added for testing.

    Made for super-resolution, whose folders `image_SRF_2` and `image_SRF_4` hold the images cut to multiples of 2 and 4
    together with small ones and results: take the high-resolution images alone, and of one folder only. Which cut the
    denoising tables use is unconfirmed. Used in gray as well: that is another number.
    """

    name = "urban100"
    TASK = "Gaussian denoising"
    CITATION = """@inproceedings{huang2015single,
  title={Single Image Super-Resolution from Transformed Self-Exemplars},
  author={Huang, Jia-Bin and Singh, Abhishek and Ahuja, Narendra},
  booktitle={IEEE Conference on Computer Vision and Pattern Recognition},
  pages={5197--5206},
  year={2015}
}"""
    LICENSE = "none stated"
    HOMEPAGE = "https://github.com/jbhuang0604/SelfExSR"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "download Urban100 from the homepage and put the 100 high-resolution images into Urban100"
    )
    COUNTS = {"test": 100}

    @classmethod
    def examples(cls, source: Path) -> Mapping[str, Sequence[ExampleFiles]]:
        """Lists the images."""
        return {"test": clean_images(source, ("Urban100",), cls.MANUAL_DOWNLOAD_INSTRUCTIONS)}
