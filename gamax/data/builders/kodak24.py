"""Kodak24: photographs scanned from film."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gamax.data.builders.core import ImageSetBuilder
from gamax.data.builders.layouts import clean_images
from gamax.data.examples import ExampleFiles


class Kodak24(ImageSetBuilder):
    """Kodak24: 24 colour photographs, to which noise is added for testing. Two versions circulate; say which you used.

    The test sets of FFDNet hold 500x500 cuts, behind the tables of FFDNet and many after it; the original images have
    768x512 pixels (six are upright). Both are read, but results on the two are not comparable; `gamax data check`
    prints the sizes.
    """

    name = "kodak24"
    TASK = "Gaussian denoising"
    CITATION = """@misc{franzen1999kodak,
  title={Kodak Lossless True Color Image Suite},
  author={Franzen, Rich},
  howpublished={http://r0k.us/graphics/kodak},
  year={1999}
}"""
    LICENSE = "released by the Eastman Kodak Company for unrestricted usage"
    HOMEPAGE = "http://r0k.us/graphics/kodak"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "download the 24 images from the homepage (768x512) or from testsets/Kodak24 of https://github.com/cszn/FFDNet "
        "(500x500), so that there are Kodak24/kodim01.png to kodim24.png"
    )
    COUNTS = {"test": 24}

    @classmethod
    def examples(cls, source: Path) -> Mapping[str, Sequence[ExampleFiles]]:
        """Lists the images."""
        return {"test": clean_images(source, ("Kodak24", "Kodak", "kodak"), cls.MANUAL_DOWNLOAD_INSTRUCTIONS)}
