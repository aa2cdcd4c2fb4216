"""CBSD68: the usual colour photographs to test Gaussian denoising on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gamax.data.builders.core import ImageSetBuilder
from gamax.data.builders.layouts import clean_images
from gamax.data.examples import ExampleFiles


class CBSD68(ImageSetBuilder):
    """CBSD68: 68 colour photographs of 481x321 or 321x481 pixels, to which noise is added for testing.

    The copy of FFDNet and the folder `original_png` of other copies are read; their noisy images are not, since results
    need noise of a given seed. Copies in JPEG circulate and give other results.

    Overlaps: all 68 are validation images of BSDS500. Never train on those, nor on "BSD500" in full; bsds500 and dfwb
    train on the other 400.
    """

    name = "cbsd68"
    TASK = "Gaussian denoising"
    CITATION = """@inproceedings{martin2001database,
  title={A Database of Human Segmented Natural Images and its Application to Evaluating Segmentation Algorithms and
    Measuring Ecological Statistics},
  author={Martin, David and Fowlkes, Charless and Tal, Doron and Malik, Jitendra},
  booktitle={IEEE International Conference on Computer Vision},
  volume={2},
  pages={416--423},
  year={2001}
}
@inproceedings{roth2005fields,
  title={Fields of Experts: A Framework for Learning Image Priors},
  author={Roth, Stefan and Black, Michael J.},
  booktitle={IEEE Conference on Computer Vision and Pattern Recognition},
  volume={2},
  pages={860--867},
  year={2005}
}"""
    LICENSE = "commonly described as for non-commercial research and education (unconfirmed)"
    HOMEPAGE = "https://github.com/cszn/FFDNet"
    MANUAL_DOWNLOAD_INSTRUCTIONS = "download testsets/CBSD68 from the homepage, so that there are 68 images in CBSD68"
    COUNTS = {"test": 68}

    @classmethod
    def examples(cls, source: Path) -> Mapping[str, Sequence[ExampleFiles]]:
        """Lists the images."""
        return {
            "test": clean_images(
                source, ("CBSD68", "CBSD68/original_png", "original_png"), cls.MANUAL_DOWNLOAD_INSTRUCTIONS
            )
        }
