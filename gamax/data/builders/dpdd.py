"""DPDD: defocus blur of a camera with dual pixels."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from gamax.data.builders.core import ImageSetBuilder
from gamax.data.builders.layouts import find_root, pair_in_order
from gamax.data.examples import DUAL_PIXEL, ExampleFiles, ImageFile
from gamax.data.images import list_images
from gamax.errors import UserError

_CITATION = """@inproceedings{abuolaim2020defocus,
  title={Defocus Deblurring Using Dual-Pixel Data},
  author={Abuolaim, Abdullah and Brown, Michael S.},
  booktitle={European Conference on Computer Vision},
  year={2020}
}"""
_LICENSE = "MIT for the repository of the authors, which does not mention the images apart"
_HOMEPAGE = "https://github.com/Abdullah-Abuolaim/defocus-deblurring-dual-pixel"
_COUNTS = {"train": 350, "validation": 74, "test": 76}
_SPLITS = {"train": "train", "validation": "val", "test": "test"}
_INSIDE = (
    "dd_dp_dataset_png",
    "dd_dp_dataset_canon",
    "dd_dp_dataset_canon/dd_dp_dataset_png",
    "DPDD",
)
# Up to 3 in the published set, as others report; a file that misses its partner shifts all that follow, most of them by
# much more.
_LARGEST_GAP = 8


class DPDD(ImageSetBuilder):
    """DPDD, the combined views: 500 scenes of 1680x1120 with 16 bits, blurred by a wide aperture and taken with f/22.

    350 scenes for training, 74 for validation, 76 for testing (37 indoor, 39 outdoor). They are stored with their 16
    bits: the usual tables of single-image models read both sides with 8 bits, those of dual-pixel models with 16.
    Authors tune training by dropping the 30 % least sharp patches; nothing is dropped here. In the files of the authors
    blurred and sharp images differ in name (1P0A0917 and 1P0A0916) and are paired in their order. Examples are named as
    the blurred images.
    """

    name = "dpdd"
    TASK = "defocus deblurring"
    CITATION = _CITATION
    LICENSE = _LICENSE
    HOMEPAGE = _HOMEPAGE
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "download dd_dp_dataset_canon.zip from the homepage and extract it, so that there are "
        "{train,val,test}_c/{source,target}/*.png, or put pairs of equal names into "
        "DPDD/{train,val,test}/{inputC,target}"
    )
    COUNTS = _COUNTS

    @classmethod
    def examples(cls, source: Path) -> Mapping[str, Sequence[ExampleFiles]]:
        """Lists the pairs of either layout."""
        return {
            split: _pair(inputs, targets)
            for split, (targets, inputs) in _find(source, "c", cls.MANUAL_DOWNLOAD_INSTRUCTIONS).items()
        }


class DPDDDual(ImageSetBuilder):
    """DPDD, the left and right views of the dual-pixel sensor with the same sharp images as `dpdd`.

    The input of an example has 6 channels: left, then right, as Restormer takes them; some networks take right, then
    left. What is said of `dpdd` holds here as well: tables of dual-pixel models use the 16 bits. Examples are named as
    the blurred images, without the ending `_L`.
    """

    name = "dpdd_dual"
    TASK = "dual-pixel defocus deblurring"
    CITATION = _CITATION
    LICENSE = _LICENSE
    HOMEPAGE = _HOMEPAGE
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "download dd_dp_dataset_canon.zip from the homepage and extract it, so that there are "
        "{train,val,test}_{l,r}/source/*.png and {train,val,test}_c/target/*.png, or put images of equal names into "
        "DPDD/{train,val,test}/{inputL,inputR,target}"
    )
    COUNTS = _COUNTS

    @classmethod
    def examples(cls, source: Path) -> Mapping[str, Sequence[ExampleFiles]]:
        """Lists the left, right and sharp images of either layout."""
        found = _find(source, "lr", cls.MANUAL_DOWNLOAD_INSTRUCTIONS)
        return {split: _join(*folders) for split, folders in found.items()}


def _find(source: Path, views: str, instructions: str) -> dict[str, list[Path]]:
    """The folder of the targets and those of the views, for every split that is there."""
    official = {
        split: [f"{part}_c/target", *(f"{part}_{view}/source" for view in views)] for split, part in _SPLITS.items()
    }
    copied = {
        split: [f"{part}/target", *(f"{part}/input{view.upper()}" for view in views)] for split, part in _SPLITS.items()
    }
    layouts = (official, copied)
    markers = [layout[split][1] for layout in layouts for split in _SPLITS]
    root = find_root(source, markers, _INSIDE, instructions)
    return {
        split: [root / path for path in folders]
        for layout in layouts
        for split, folders in layout.items()
        if (root / folders[1]).is_dir()
    }


def _pair(inputs: Path, targets: Path) -> list[ExampleFiles]:
    pairs = pair_in_order(list_images(inputs), list_images(targets))
    for files in pairs:
        blurred, sharp = (files.images[key].path for key in ("input", "target"))
        numbers = [int(found[1]) for path in (blurred, sharp) if (found := re.search(r"(\d+)\D*$", path.stem))]
        if len(numbers) == 2 and abs(numbers[0] - numbers[1]) > _LARGEST_GAP:
            raise UserError(
                f"'{blurred}' and '{sharp}' are paired by their order but their numbers are far apart: an image is "
                "missing before them; complete the folders"
            )
    return pairs


def _join(targets: Path, left: Path, right: Path) -> list[ExampleFiles]:
    right_views = {path.stem.removesuffix("_R"): path for path in list_images(right)}
    examples = []
    for files in _pair(left, targets):
        name = files.name.removesuffix("_L")
        if name not in right_views:
            raise UserError(f"no right view in '{right}' for '{files.images['input'].path}'")
        views = (files.images["input"], ImageFile(right_views.pop(name)))
        examples.append(
            ExampleFiles(name, {"target": files.images["target"], **dict(zip(DUAL_PIXEL, views, strict=True))})
        )
    if right_views:
        raise UserError(f"no left view in '{left}' for '{next(iter(right_views.values()))}'")
    return examples
