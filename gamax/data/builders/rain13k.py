"""Rain13K: the usual training set for deraining."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gamax.data.builders.core import ImageSetBuilder
from gamax.data.builders.layouts import find_root
from gamax.data.examples import ExampleFiles, list_examples


class Rain13K(ImageSetBuilder):
    """Rain13K: 13,711 pairs of synthetic rain, the union on which networks for the five usual test sets are trained.

    Papers say 13,712: 11,200 pairs of Rain14000, 1,800 of Rain1800, 700 of Rain800 and 12 of Rain12. One pair, of
    unequal sizes, was removed from the download. Tested on test100, rain100h, rain100l, test2800 and test1200; there is
    no validation split.

    Overlaps: 546 of the 1,800 pictures of Rain1800 show backgrounds of Rain100H, as the authors of PReNet found; how
    many of them are in Rain13K is unconfirmed. Rain800 shares pictures with BSDS500: see rain800.
    """

    name = "rain13k"
    TASK = "deraining"
    CITATION = """@inproceedings{jiang2020multi,
  title={Multi-Scale Progressive Fusion Network for Single Image Deraining},
  author={Jiang, Kui and Wang, Zhongyuan and Yi, Peng and Chen, Chen and Huang, Baojin and Luo, Yimin and Ma, Jiayi and
    Jiang, Junjun},
  booktitle={IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year={2020}
}
@inproceedings{zamir2021multi,
  title={Multi-Stage Progressive Image Restoration},
  author={Zamir, Syed Waqas and Arora, Aditya and Khan, Salman and Hayat, Munawar and Khan, Fahad Shahbaz and
    Yang, Ming-Hsuan and Shao, Ling},
  booktitle={IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year={2021}
}"""
    LICENSE = "none stated"
    HOMEPAGE = "https://github.com/swz30/MPRNet/tree/main/Deraining"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "download the synthetic training set that the homepage links, so that there are "
        "train/Rain13K/{input,target}/N.jpg with equal names"
    )
    COUNTS = {"train": 13711}

    @classmethod
    def examples(cls, source: Path) -> Mapping[str, Sequence[ExampleFiles]]:
        """Lists the pairs."""
        inside = ("Rain13K", "train/Rain13K", "train")
        root = find_root(source, ("input", "target"), inside, cls.MANUAL_DOWNLOAD_INSTRUCTIONS)
        return {"train": list_examples(root, paired=True)}
