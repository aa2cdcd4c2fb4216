"""Anyone's clean photographs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gamax.data.builders.core import ImageSetBuilder
from gamax.data.builders.layouts import own_folder
from gamax.data.examples import ExampleFiles


class CleanFolder(ImageSetBuilder):
    """Your clean photographs in `SOURCE/train` and `SOURCE/test`, or in `SOURCE` itself, degraded during training."""

    name = "clean_folder"
    TASK = "any synthetic degradation"
    MANUAL_DOWNLOAD_INSTRUCTIONS = "put photographs into SOURCE/train and SOURCE/test, or directly into SOURCE"

    @classmethod
    def examples(cls, source: Path) -> Mapping[str, Sequence[ExampleFiles]]:
        """Lists the images."""
        return own_folder(source, paired=False)
