"""Test100: the test pictures of Rain800 as the usual deraining tables take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gamax.data.builders.core import ImageSetBuilder
from gamax.data.builders.layouts import find_root
from gamax.data.builders.rain800 import Rain800
from gamax.data.examples import ExampleFiles, list_examples


class Test100(ImageSetBuilder):
    """Test100: 98 pairs of the 100 synthetic test pictures of Rain800, as pairs of equal names.

    The usual five-set tables say 100 pairs but were made with the 98 of this distribution, whose authors follow MSPFN.
    For all 100 take the split `test` of rain800; results differ. Scored on the luma channel.
    """

    name = "test100"
    TASK = "deraining"
    CITATION = Rain800.CITATION
    LICENSE = "none stated"
    HOMEPAGE = "https://github.com/swz30/MPRNet/tree/main/Deraining"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "download the synthetic test sets that the homepage links, so that there are "
        "test/Test100/{input,target} with images of equal names"
    )
    COUNTS = {"test": 98}

    @classmethod
    def examples(cls, source: Path) -> Mapping[str, Sequence[ExampleFiles]]:
        """Lists the pairs."""
        inside = ("Test100", "test/Test100")
        root = find_root(source, ("input", "target"), inside, cls.MANUAL_DOWNLOAD_INSTRUCTIONS)
        return {"test": list_examples(root, paired=True)}
