"""BSD68: the usual gray photographs to test Gaussian denoising on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gamax.data.builders.core import ImageSetBuilder
from gamax.data.builders.layouts import clean_images
from gamax.data.examples import ExampleFiles


class BSD68(ImageSetBuilder):
    """BSD68: 68 gray photographs of 481x321 or 321x481 pixels, to which noise is added for testing.

    The gray images of FFDNet, `test001.png` to `test068.png`. The pictures are those of cbsd68; colour files in their
    place are turned gray with the weights of OpenCV, which need not give the same pixels.

    Overlaps: all 68 are validation images of BSDS500. Never train on those.
    """

    name = "bsd68"
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
    LICENSE = "for non-commercial research and educational purposes"
    HOMEPAGE = "https://github.com/cszn/FFDNet"
    MANUAL_DOWNLOAD_INSTRUCTIONS = "download testsets/BSD68 from the homepage, so that there are 68 images in BSD68"
    COUNTS = {"test": 68}
    CHANNELS = 1

    @classmethod
    def examples(cls, source: Path) -> Mapping[str, Sequence[ExampleFiles]]:
        """Lists the images."""
        return {"test": clean_images(source, ("BSD68",), cls.MANUAL_DOWNLOAD_INSTRUCTIONS)}
