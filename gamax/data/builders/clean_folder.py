"""Anyone's clean photographs."""

from __future__ import annotations

from gamax.data.builders.core import ImageSetBuilder


class CleanFolder(ImageSetBuilder):
    """Clean photographs in `SOURCE/train` and `SOURCE/test`, or in `SOURCE` itself, to be degraded during training.

    `CleanFolder(config=folder_config("photos", paired=False))`
    """
