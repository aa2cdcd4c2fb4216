"""SIDD: real noise of smartphone cameras."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from gamax.data.builders.core import ImageSetBuilder
from gamax.data.builders.layouts import find_below, list_folders, pair_words
from gamax.data.builders.matlab import MatlabVariable, check_image
from gamax.data.examples import ExampleFiles, ImageFile
from gamax.errors import UserError

_CITATION = """@inproceedings{abdelhamed2018high,
  title={A High-Quality Denoising Dataset for Smartphone Cameras},
  author={Abdelhamed, Abdelrahman and Lin, Stephen and Brown, Michael S.},
  booktitle={IEEE Conference on Computer Vision and Pattern Recognition},
  year={2018}
}"""
_LICENSE = "MIT, as others quote the project page (unconfirmed)"
_HOMEPAGE = "https://abdokamel.github.io/sidd/"


class SIDD(ImageSetBuilder):
    """SIDD-Medium in sRGB: 160 photographs of five smartphones in two shots each, and the validation blocks.

    train: 320 pairs of 12 to 16 megapixels. validation: 1,280 blocks of 256x256, 32 of each of 40 other photographs;
    the usual tables are means over these, of predictions that are not rounded. Training and validation show the same
    ten scenes. Training pairs are named SCENE_NUMBER_SRGB_SHOT, blocks PHOTOGRAPH_BLOCK, both counted from 1.
    """

    name = "sidd"
    TASK = "real denoising"
    CITATION = _CITATION
    LICENSE = _LICENSE
    HOMEPAGE = _HOMEPAGE
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "download SIDD-Medium (sRGB) and the sRGB validation data and ground truth from the homepage, so that there "
        "are SIDD_Medium_Srgb/Data/SCENE/*.PNG, ValidationNoisyBlocksSrgb.mat and ValidationGtBlocksSrgb.mat"
    )
    COUNTS = {"train": 320, "validation": 1280}

    @classmethod
    def examples(cls, source: Path) -> Mapping[str, Sequence[ExampleFiles]]:
        """Lists the pairs of all scenes, and the validation blocks as the headers of their files count them."""
        splits: dict[str, Sequence[ExampleFiles]] = {}
        if data := find_below(source, "Data"):
            splits["train"] = [
                files
                for scene in list_folders(data)
                for files in pair_words(scene, "NOISY_", "GT_", prefix=f"{scene.name}_")
            ]
        names = {"input": "ValidationNoisyBlocksSrgb", "target": "ValidationGtBlocksSrgb"}
        found = {key: find_below(source, f"{name}.mat") for key, name in names.items()}
        if any(found.values()):
            paths = {}
            for key, path in found.items():
                if path is None:
                    raise UserError(f"no {names[key]}.mat in '{source}'; {cls.MANUAL_DOWNLOAD_INSTRUCTIONS}")
                paths[key] = path
            splits["validation"] = _blocks(paths)
        if not splits:
            raise UserError(f"no SIDD_Medium_Srgb/Data in '{source}'; {cls.MANUAL_DOWNLOAD_INSTRUCTIONS}")
        return splits


class SIDDBenchmark(ImageSetBuilder):
    """The 1,280 noisy sRGB blocks of the SIDD benchmark, 256x256, whose clean side is kept secret.

    For submissions only. The server of the authors is closed; its successor computes another SSIM, so its figures are
    not those of older tables. Blocks are named PHOTOGRAPH_BLOCK, both counted from 1.
    """

    name = "sidd_benchmark"
    TASK = "real denoising"
    CITATION = _CITATION
    LICENSE = _LICENSE
    HOMEPAGE = _HOMEPAGE
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "download the noisy sRGB data of the SIDD benchmark from the homepage, so that there is "
        "BenchmarkNoisyBlocksSrgb.mat"
    )
    COUNTS = {"benchmark": 1280}

    @classmethod
    def examples(cls, source: Path) -> Mapping[str, Sequence[ExampleFiles]]:
        """Lists the blocks as the header of their file counts them."""
        path = find_below(source, "BenchmarkNoisyBlocksSrgb.mat")
        if path is None:
            raise UserError(f"no BenchmarkNoisyBlocksSrgb.mat in '{source}'; {cls.MANUAL_DOWNLOAD_INSTRUCTIONS}")
        return {"benchmark": _blocks({"input": path})}


def _blocks(paths: Mapping[str, Path]) -> list[ExampleFiles]:
    counts = {_count_blocks(path) for path in paths.values()}
    if len(counts) > 1:
        names = " and ".join(f"'{path}'" for path in paths.values())
        raise UserError(f"{names} hold different numbers of blocks; download them again")
    photographs, blocks = counts.pop()
    # tfds keeps every builder, and with it these examples, for good; so the values are released after every round.
    variables = {key: MatlabVariable(path, path.stem, photographs * blocks) for key, path in paths.items()}
    return [
        ExampleFiles(
            f"{photograph + 1:04d}_{block + 1:02d}",
            {
                key: ImageFile(variable.path, partial(_read_block, variable, photograph, block))
                for key, variable in variables.items()
            },
        )
        for photograph in range(photographs)
        for block in range(blocks)
    ]


def _count_blocks(path: Path) -> tuple[int, int]:
    shape = MatlabVariable(path, path.stem).shape
    if len(shape) != 5 or shape[-1] != 3:
        found = list(shape)
        raise UserError(f"{path.stem} in '{path}' is {found}, not [photographs, blocks, height, width, 3]")
    return shape[0], shape[1]


def _read_block(variable: MatlabVariable, photograph: int, block: int, path: Path) -> np.ndarray:
    # A view would keep all the other blocks.
    return check_image(variable.values()[photograph, block].copy(), path, variable.name)
