"""Anyone's pairs of degraded and clean photographs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gamax.data.builders.core import ImageSetBuilder
from gamax.data.builders.layouts import own_folder
from gamax.data.examples import ExampleFiles


class PairedFolder(ImageSetBuilder):
    """Your pairs `input/NAME.*` and `target/NAME.*` in `SOURCE/train` and `SOURCE/test`, or in `SOURCE` itself."""

    name = "paired_folder"
    TASK = "any"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "put pairs of equal names into SOURCE/{train,test}/{input,target}, or directly into SOURCE/{input,target}"
    )

    @classmethod
    def examples(cls, source: Path) -> Mapping[str, Sequence[ExampleFiles]]:
        """Lists the pairs."""
        return own_folder(source, paired=True)
