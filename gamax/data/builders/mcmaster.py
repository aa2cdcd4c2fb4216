"""McMaster: saturated colours and sharp edges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gamax.data.builders.core import ImageSetBuilder
from gamax.data.builders.layouts import clean_images
from gamax.data.examples import ExampleFiles


class McMaster(ImageSetBuilder):
    """McMaster (McM): 18 colour cuts of 500x500 pixels from eight photographs, to which noise is added for testing.

    Made for demosaicking. The original images are TIFF; copies in PNG have the same pixels.
    """

    name = "mcmaster"
    TASK = "Gaussian denoising"
    CITATION = """@article{zhang2011color,
  title={Color Demosaicking by Local Directional Interpolation and Nonlocal Adaptive Thresholding},
  author={Zhang, Lei and Wu, Xiaolin and Buades, Antoni and Li, Xin},
  journal={Journal of Electronic Imaging},
  volume={20},
  number={2},
  pages={023016},
  year={2011}
}"""
    LICENSE = "none stated"
    HOMEPAGE = "https://www4.comp.polyu.edu.hk/~cslzhang/CDM_Dataset.htm"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "download the McMaster dataset from the homepage, so that there are 18 images in McMaster"
    )
    COUNTS = {"test": 18}

    @classmethod
    def examples(cls, source: Path) -> Mapping[str, Sequence[ExampleFiles]]:
        """Lists the images."""
        return {"test": clean_images(source, ("McMaster", "McM"), cls.MANUAL_DOWNLOAD_INSTRUCTIONS)}
