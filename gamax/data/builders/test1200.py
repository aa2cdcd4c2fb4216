"""Test1200: rain of three densities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gamax.data.builders.core import ImageSetBuilder
from gamax.data.builders.layouts import find_root
from gamax.data.examples import ExampleFiles, list_examples


class Test1200(ImageSetBuilder):
    """Test1200: 1,200 pairs of light, medium and heavy synthetic rain, the test set of DID-MDN.

    The common distribution holds pairs of equal names; in the original one every file holds the rainy and the clean
    picture side by side, which is not read here. Scored on the luma channel.
    """

    name = "test1200"
    TASK = "deraining"
    CITATION = """@inproceedings{zhang2018density,
  title={Density-aware Single Image De-raining using a Multi-stream Dense Network},
  author={Zhang, He and Patel, Vishal M.},
  booktitle={IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year={2018}
}"""
    LICENSE = "none stated"
    HOMEPAGE = "https://github.com/hezhangsprinter/DID-MDN"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "download the synthetic test sets that https://github.com/swz30/MPRNet/tree/main/Deraining links, so that "
        "there are test/Test1200/{input,target} with images of equal names"
    )
    COUNTS = {"test": 1200}

    @classmethod
    def examples(cls, source: Path) -> Mapping[str, Sequence[ExampleFiles]]:
        """Lists the pairs."""
        inside = ("Test1200", "test/Test1200")
        root = find_root(source, ("input", "target"), inside, cls.MANUAL_DOWNLOAD_INSTRUCTIONS)
        return {"test": list_examples(root, paired=True)}
