"""BSD68: the usual gray photographs to test Gaussian denoising on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gamax.data.builders.cbsd68 import CBSD68
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
    CITATION = CBSD68.CITATION
    LICENSE = "commonly described as for non-commercial research and education (unconfirmed)"
    HOMEPAGE = "https://github.com/cszn/FFDNet"
    MANUAL_DOWNLOAD_INSTRUCTIONS = "download testsets/BSD68 from the homepage, so that there are 68 images in BSD68"
    COUNTS = {"test": 68}
    CHANNELS = 1

    @classmethod
    def examples(cls, source: Path) -> Mapping[str, Sequence[ExampleFiles]]:
        """Lists the images."""
        return {"test": clean_images(source, ("BSD68",), cls.MANUAL_DOWNLOAD_INSTRUCTIONS)}
