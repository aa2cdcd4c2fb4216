"""HIDE: motion blur of people, made by averaging the frames of a fast camera."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gamax.data.builders.core import ImageSetBuilder
from gamax.data.builders.layouts import find_root, pair_folders, pair_shared
from gamax.data.examples import ExampleFiles
from gamax.data.images import list_images

_SPLITS = ("train", "test")
_TEST_FOLDERS = ("test-close-ups", "test-long-shot")


class HIDE(ImageSetBuilder):
    """HIDE: 8,422 pairs of 1280x720 frames that show people, blurred by averaging 11 sharp frames of a 240 fps camera.

    The usual tables train on GoPro only and report the 2,025 test pairs of HIDE as a measure of generalisation. The
    authors distribute one folder of sharp frames for both splits; the layout with `input` and `target` is that of the
    copies which the code of later networks downloads, often with the test pairs alone. Examples are named as the files.
    """

    name = "hide"
    TASK = "motion deblurring"
    CITATION = """@inproceedings{shen2019human,
  title={Human-Aware Motion Deblurring},
  author={Shen, Ziyi and Wang, Wenguan and Lu, Xiankai and Shen, Jianbing and Ling, Haibin and Xu, Tingfa and
    Shao, Ling},
  booktitle={IEEE International Conference on Computer Vision},
  year={2019}
}"""
    LICENSE = "none stated"
    HOMEPAGE = "https://github.com/joanshen0508/HA_deblur"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "download HIDE_dataset.zip from the homepage and extract it, so that there are HIDE_dataset/GT/*.png, "
        "train/*.png and test/{test-close-ups,test-long-shot}/*.png, or put pairs of equal names into "
        "HIDE/{input,target} (test) or HIDE/{train,test}/{input,target}"
    )
    COUNTS = {"train": 6397, "test": 2025}

    @classmethod
    def examples(cls, source: Path) -> Mapping[str, Sequence[ExampleFiles]]:
        """Lists the pairs of either layout."""
        markers = ("GT", "input", "train/input", "test/input")
        root = find_root(source, markers, ("HIDE_dataset", "HIDE"), cls.MANUAL_DOWNLOAD_INSTRUCTIONS)
        if (root / "GT").is_dir():
            return {split: _official(root, split) for split in _SPLITS if (root / split).is_dir()}
        if (root / "input").is_dir():
            return {"test": pair_folders(root / "input", root / "target")}
        return {
            split: pair_folders(root / split / "input", root / split / "target")
            for split in _SPLITS
            if (root / split).is_dir()
        }


def _official(root: Path, split: str) -> list[ExampleFiles]:
    folders = [root / split / name for name in _TEST_FOLDERS if (root / split / name).is_dir()] or [root / split]
    return pair_shared([path for folder in folders for path in list_images(folder)], root / "GT")
