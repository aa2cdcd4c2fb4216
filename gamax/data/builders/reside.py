"""RESIDE: synthetic haze, indoors and outdoors."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from gamax.data.builders.core import ImageSetBuilder
from gamax.data.builders.layouts import equal_or, first_folder, pair_paths
from gamax.data.examples import ExampleFiles, ImageFile
from gamax.data.images import list_images, read_image
from gamax.errors import UserError

_CITATION = """@article{li2019benchmarking,
  title={Benchmarking Single-Image Dehazing and Beyond},
  author={Li, Boyi and Ren, Wenqi and Fu, Dengpan and Tao, Dacheng and Feng, Dan and Zeng, Wenjun and Wang, Zhangyang},
  journal={IEEE Transactions on Image Processing},
  volume={28},
  number={1},
  pages={492--505},
  year={2019}
}"""

_HAZY = ("hazy", "haze", "ITS_haze", "OTS")
_CLEAR = ("clear", "gt", "GT", "ITS_clear", "clear_images")


class RESIDEIndoor(ImageSetBuilder):
    """RESIDE indoors: 13,990 hazy images of 1,399 clear ones (ITS) to train on, 500 of 50 (SOTS indoor) to test on.

    The haze is rendered from measured depth, ten levels a room; hazy images are named CLEAR_LEVEL or
    CLEAR_LEVEL_SCATTERING. Clear images that are larger (640x480) than hazy ones (620x460) are cut to their centre. The
    copy of DehazeFormer, with pairs of equal names, is read as well. The mean PSNR of the SOTS inputs is 11.97 dB. An
    early ITS of 110,000 hazy images, in `ITS/train/ITS_haze`, is said to circulate (file names unconfirmed).

    Overlaps: neighbouring scenes often show the same room, so split by scene, not by image, when part of ITS is used
    for validation. Training on SOTS is not the protocol.
    """

    name = "reside_indoor"
    TASK = "dehazing"
    CITATION = _CITATION
    LICENSE = "none stated"
    HOMEPAGE = "https://sites.google.com/view/reside-dehaze-datasets"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "download ITS and SOTS from the homepage, so that there are ITS/{hazy,clear} and SOTS/indoor/{hazy,gt} (or "
        "SOTS/indoor/nyuhaze500/{hazy,gt}), or RESIDE-IN/{train,test}/{hazy,GT} with equal names"
    )
    COUNTS = {"train": 13990, "test": 500}

    @classmethod
    def examples(cls, source: Path) -> Mapping[str, Sequence[ExampleFiles]]:
        """Lists the hazy images, each with its clear one."""
        places = {
            "train": ("ITS", "ITS_v2", "ITS/train", "train"),
            "test": (
                *("SOTS/indoor/nyuhaze500", "SOTS/nyuhaze500", "SOTS/indoor"),
                *("indoor/nyuhaze500", "nyuhaze500", "indoor", "test"),
            ),
        }
        pairs = _pairs(source, places, ("RESIDE", "RESIDE-IN", "reside-indoor"), cls.MANUAL_DOWNLOAD_INSTRUCTIONS)
        return {split: [_cut_to_hazy(files) for files in examples] for split, examples in pairs.items()}


class RESIDEOutdoor(ImageSetBuilder):
    """RESIDE outdoors: 313,950 hazy images of 8,970 clear ones (OTS) to train on, 500 of 492 (SOTS outdoor) to test on.

    The haze is rendered from estimated depth, 35 levels a picture. Hazy images are named CLEAR_LIGHT_SCATTERING and may
    lie in folders `part*`. The paper describes a smaller OTS of 72,135 hazy images of 2,061 clear ones. Some copies of
    SOTS outdoor hold 492 hazy images. They are JPEG: another decoder changes the second decimal of results.

    Overlaps: OTS contains the clear images of SOTS outdoor (all 492, by a public audit). Published results come in
    spite of it; to avoid it remove what has the same number, or the same content, from OTS.
    """

    name = "reside_outdoor"
    TASK = "dehazing"
    CITATION = _CITATION
    LICENSE = "none stated"
    HOMEPAGE = "https://sites.google.com/view/reside-dehaze-datasets"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "download OTS and SOTS from the homepage, so that there are OTS/{hazy,clear} and SOTS/outdoor/{hazy,gt}, or "
        "RESIDE-OUT/{train,test}/{hazy,GT} with equal names"
    )
    COUNTS = {"train": 313950, "test": 500}

    @classmethod
    def examples(cls, source: Path) -> Mapping[str, Sequence[ExampleFiles]]:
        """Lists the hazy images, each with its clear one."""
        places = {"train": ("OTS", "OTS_BETA", "OTS_ALPHA", "train"), "test": ("SOTS/outdoor", "outdoor", "test")}
        inside = ("RESIDE", "RESIDE-OUT", "reside-outdoor")
        return _pairs(source, places, inside, cls.MANUAL_DOWNLOAD_INSTRUCTIONS)


def _pairs(
    source: Path, places: Mapping[str, Sequence[str]], inside: Sequence[str], instructions: str
) -> dict[str, list[ExampleFiles]]:
    hazy_folders = {split: [f"{place}/{hazy}" for place in names for hazy in _HAZY] for split, names in places.items()}
    for root in (source, *(source / name for name in inside)):
        found = {split: first_folder(root, names) for split, names in hazy_folders.items()}
        if any(found.values()):
            return {split: _pair(folder) for split, folder in found.items() if folder is not None}
    raise UserError(f"no hazy images in '{source}'; {instructions}")


def _pair(hazy: Path) -> list[ExampleFiles]:
    clear = first_folder(hazy.parent, _CLEAR)
    if clear is None:
        raise UserError(f"no folder {' or '.join(_CLEAR)} beside '{hazy}'")
    parts = sorted(hazy.glob("part*")) or [hazy]
    clear_paths = list_images(clear)
    target_stem = equal_or(lambda stem: stem.partition("_")[0], clear_paths)
    return pair_paths([path for part in parts for path in list_images(part)], clear_paths, target_stem)


def _cut_to_hazy(files: ExampleFiles) -> ExampleFiles:
    clear = ImageFile(files.images["target"].path, partial(_read_centre, hazy=files.images["input"].path))
    return ExampleFiles(files.name, {**files.images, "target": clear})


def _read_centre(path: Path, hazy: Path) -> np.ndarray:
    image = read_image(path)
    height, width = _size(hazy)
    y, x = (max(0, round((have - want) / 2)) for have, want in zip(image.shape, (height, width), strict=False))
    return image[y : y + height, x : x + width]


def _size(path: Path) -> tuple[int, int]:
    with path.open("rb") as file:
        start = file.read(24)
    if start[12:16] == b"IHDR":
        width, height = struct.unpack(">II", start[16:24])
        return height, width
    height, width, _ = read_image(path).shape
    return height, width
