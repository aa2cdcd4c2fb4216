"""Test2800: fourteen kinds of rain on every picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gamax.data.builders.core import ImageSetBuilder
from gamax.data.builders.layouts import equal_or, find_root, pair_folders
from gamax.data.examples import ExampleFiles
from gamax.data.images import list_images


class Test2800(ImageSetBuilder):
    """Test2800: 2,800 pairs from the Rain14000 set of DDN, which has 14 kinds of synthetic rain a picture.

    The inputs are named PICTURE_KIND. Whether the targets repeat that name or are named PICTURE is unconfirmed; both
    are read. Early downloads hold `926_10(1).jpg`, a copy by mistake: delete it. Scored on the luma channel.
    """

    name = "test2800"
    TASK = "deraining"
    CITATION = """@inproceedings{fu2017removing,
  title={Removing Rain from Single Images via a Deep Detail Network},
  author={Fu, Xueyang and Huang, Jiabin and Zeng, Delu and Huang, Yue and Ding, Xinghao and Paisley, John},
  booktitle={IEEE Conference on Computer Vision and Pattern Recognition},
  year={2017}
}"""
    LICENSE = "none stated"
    HOMEPAGE = "https://xueyangfu.github.io/projects/cvpr2017.html"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "download the synthetic test sets that https://github.com/swz30/MPRNet/tree/main/Deraining links, so that "
        "there are test/Test2800/{input,target} with inputs PICTURE_KIND.jpg"
    )
    COUNTS = {"test": 2800}

    @classmethod
    def examples(cls, source: Path) -> Mapping[str, Sequence[ExampleFiles]]:
        """Lists the pairs."""
        inside = ("Test2800", "test/Test2800")
        root = find_root(source, ("input", "target"), inside, cls.MANUAL_DOWNLOAD_INSTRUCTIONS)
        target_stem = equal_or(lambda stem: stem.partition("_")[0], list_images(root / "target"))
        return {"test": pair_folders(root / "input", root / "target", target_stem)}
