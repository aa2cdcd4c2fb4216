"""Rain100H: heavy synthetic rain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gamax.data.builders.core import ImageSetBuilder
from gamax.data.builders.layouts import find_root, first_folder, pair_paths
from gamax.data.examples import ExampleFiles, list_examples
from gamax.data.images import list_images
from gamax.errors import UserError


class Rain100H(ImageSetBuilder):
    """Rain100H: 100 pictures under heavy synthetic rain streaks of five directions.

    This is the old version, which the tables use (mean PSNR of its inputs 12.13 dB); its authors have since put 200
    other pairs in its place. Scored on the luma channel.

    Overlaps: the clean pictures are those of rain100l, 75 from the training and 25 from the validation images of
    BSDS500. Do not train a deraining network on BSDS500, nor on all 1,800 pairs of RainTrainH: 546 show these pictures.
    """

    name = "rain100h"
    TASK = "deraining"
    CITATION = """@inproceedings{yang2017deep,
  title={Deep Joint Rain Detection and Removal from a Single Image},
  author={Yang, Wenhan and Tan, Robby T. and Feng, Jiashi and Liu, Jiaying and Guo, Zongming and Yan, Shuicheng},
  booktitle={IEEE Conference on Computer Vision and Pattern Recognition},
  year={2017}
}"""
    LICENSE = "none stated"
    HOMEPAGE = "https://www.icst.pku.edu.cn/struct/Projects/joint_rain_removal.html"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "download the synthetic test sets that https://github.com/swz30/MPRNet/tree/main/Deraining links, so that "
        "there are test/Rain100H/{input,target} with images of equal names, or Rain100H/rainy/rain-NNN.png and "
        "Rain100H/norain-NNN.png"
    )
    COUNTS = {"test": 100}

    @classmethod
    def examples(cls, source: Path) -> Mapping[str, Sequence[ExampleFiles]]:
        """Lists the pairs."""
        return {"test": rain100_pairs(source, "Rain100H", cls.MANUAL_DOWNLOAD_INSTRUCTIONS)}


def rain100_pairs(source: Path, folder: str, instructions: str) -> list[ExampleFiles]:
    """The pairs of Rain100H or Rain100L in either distribution."""
    rainy = ("rainy", "rain")
    root = find_root(source, ("input", "target", *rainy), (folder, f"test/{folder}"), instructions)
    inputs = first_folder(root, rainy)
    if inputs is None:
        return list_examples(root, paired=True)
    targets = first_folder(root, ("norain", "gt")) or root
    # Some copies repeat the rainy images beside the clean ones.
    clean = [path for path in list_images(targets) if path.stem.startswith("norain-")]
    if not clean:
        raise UserError(f"no images norain-NNN.png in '{targets}'; {instructions}")
    return pair_paths(list_images(inputs), clean, lambda stem: f"no{stem}")
