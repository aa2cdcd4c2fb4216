"""DFWB: the usual training pool for Gaussian denoising."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gamax.data.builders.bsds500 import BSDS500
from gamax.data.builders.core import ImageSetBuilder
from gamax.data.builders.div2k import DIV2K
from gamax.data.builders.flickr2k import Flickr2K
from gamax.data.builders.layouts import first_folder
from gamax.data.builders.wed import WED
from gamax.data.examples import ExampleFiles
from gamax.errors import UserError

# The second names are those of the preparation scripts of Restormer.
_PARTS: tuple[tuple[type[ImageSetBuilder], tuple[str, ...]], ...] = (
    (DIV2K, ("DIV2K",)),
    (Flickr2K, ("Flickr2K",)),
    (WED, ("WED", "WaterlooED", "exploration_database_and_code")),
    (BSDS500, ("BSDS500", "BSD400", "BSR")),
)


class DFWB(ImageSetBuilder):
    """DFWB: 8,594 colour photographs, the union of the training splits of DIV2K, Flickr2K, WED and BSDS500.

    SwinIR, Restormer and later ones were trained on it for denoising. Names begin with the set: `wed_00001`. Test on
    cbsd68, kodak24, mcmaster and urban100 (in gray on set12, bsd68 and urban100); there is no test split.

    Restormer cuts images whose sides both exceed 800 pixels to 512 with an overlap of 96 and leaves the others whole.
    Here all are cut as the configuration says; `cut_stride` 416 gives that overlap. Every cut counts alike, so large
    photographs count more.
    """

    name = "dfwb"
    TASK = "Gaussian denoising"
    CITATION = "\n".join(builder.CITATION.strip() for builder, _ in _PARTS)
    LICENSE = "those of div2k, flickr2k, wed and bsds500"
    HOMEPAGE = "https://github.com/swz30/Restormer/tree/main/Denoising"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "download div2k, flickr2k, wed and bsds500 and put them into one folder as DIV2K, Flickr2K, WED and BSDS500, "
        "each in its own layout or as a flat folder of images"
    )
    COUNTS = {"train": sum(builder.COUNTS["train"] for builder, _ in _PARTS)}

    @classmethod
    def examples(cls, source: Path) -> Mapping[str, Sequence[ExampleFiles]]:
        """Lists the training images of the four sets."""
        found = [(builder, first_folder(source, names)) for builder, names in _PARTS]
        examples = []
        for builder, folder in found:
            if folder is None:
                raise UserError(f"no {builder.name} in '{source}'; {cls.MANUAL_DOWNLOAD_INSTRUCTIONS}")
            splits = builder.examples(folder)
            if "train" not in splits:
                raise UserError(f"no training images in '{folder}'; {builder.MANUAL_DOWNLOAD_INSTRUCTIONS}")
            examples += [ExampleFiles(f"{builder.name}_{files.name}", files.images) for files in splits["train"]]
        return {"train": examples}
