"""Anyone's pairs of degraded and clean photographs."""

from __future__ import annotations

from gamax.data.builders.core import ImageSetBuilder


class PairedFolder(ImageSetBuilder):
    """Pairs `input/NAME.*` and `target/NAME.*` in `SOURCE/train` and `SOURCE/test`, or in `SOURCE` itself.

    `PairedFolder(config=folder_config("pairs", paired=True))`
    """
