"""Rain100L: light synthetic rain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gamax.data.builders.core import ImageSetBuilder
from gamax.data.builders.rain100h import Rain100H, rain100_pairs
from gamax.data.examples import ExampleFiles


class Rain100L(ImageSetBuilder):
    """Rain100L: 100 pictures under light synthetic rain streaks of one direction.

    This is the old version, which the tables use (mean PSNR of its inputs 25.52 dB); its authors have since put 200
    other pairs in its place. Scored on the luma channel.

    Overlaps: the clean pictures are those of rain100h, 75 from the training and 25 from the validation images of
    BSDS500. Do not train a deraining network on BSDS500.
    """

    name = "rain100l"
    TASK = "deraining"
    CITATION = Rain100H.CITATION
    LICENSE = "none stated"
    HOMEPAGE = Rain100H.HOMEPAGE
    MANUAL_DOWNLOAD_INSTRUCTIONS = Rain100H.MANUAL_DOWNLOAD_INSTRUCTIONS.replace("Rain100H", "Rain100L")
    COUNTS = {"test": 100}

    @classmethod
    def examples(cls, source: Path) -> Mapping[str, Sequence[ExampleFiles]]:
        """Lists the pairs."""
        return {"test": rain100_pairs(source, "Rain100L", cls.MANUAL_DOWNLOAD_INSTRUCTIONS)}
