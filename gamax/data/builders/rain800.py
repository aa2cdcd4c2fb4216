"""Rain800: synthetic rain, both pictures of a pair side by side in one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from gamax.data.builders.core import ImageSetBuilder
from gamax.data.builders.layouts import find_root
from gamax.data.examples import ExampleFiles, ImageFile
from gamax.data.images import check_unique_stems, list_images, read_image
from gamax.errors import UserError


class Rain800(ImageSetBuilder):
    """Rain800: the 700 training and 100 synthetic test pairs of ID-CGAN, JPEG files of both pictures side by side.

    The left half of a file is the clean picture, the right half the rainy one; halves are taken after decoding. The
    test split has a mean input PSNR of 21.15 dB; the usual tables test on 98 of its 100 pairs: see test100. The folder
    names are those of a public copy (in the original download unconfirmed).

    Overlaps: many training pictures are from BSDS500, three of them from its validation part; training pair 460 shares
    its clean picture with the test split; test picture 90 is also in Rain100H and Rain100L. Clean pictures repeat: the
    test files show 76 different ones.
    """

    name = "rain800"
    TASK = "deraining"
    CITATION = """@article{zhang2020image,
  title={Image De-Raining Using a Conditional Generative Adversarial Network},
  author={Zhang, He and Sindagi, Vishwanath and Patel, Vishal M.},
  journal={IEEE Transactions on Circuits and Systems for Video Technology},
  volume={30},
  number={11},
  pages={3943--3956},
  year={2020}
}"""
    LICENSE = "none stated"
    HOMEPAGE = "https://github.com/hezhangsprinter/ID-CGAN"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "download the dataset that the homepage links, so that there are rain/training/N.jpg and rain/test_syn/N.jpg"
    )
    COUNTS = {"train": 700, "test": 100}

    @classmethod
    def examples(cls, source: Path) -> Mapping[str, Sequence[ExampleFiles]]:
        """Lists the files, each of which is a pair."""
        folders = {"train": "training", "test": "test_syn"}
        inside = ("rain", "dataset/rain", "Rain800", "rain800")
        root = find_root(source, tuple(folders.values()), inside, cls.MANUAL_DOWNLOAD_INSTRUCTIONS)
        return {split: _halved(root / folder) for split, folder in folders.items() if (root / folder).is_dir()}


def _halved(folder: Path) -> list[ExampleFiles]:
    paths = list_images(folder)
    check_unique_stems(paths)
    return [
        ExampleFiles(path.stem, {"input": ImageFile(path, _right_half), "target": ImageFile(path, _left_half)})
        for path in paths
    ]


def _left_half(path: Path) -> np.ndarray:
    return _halves(path)[0]


def _right_half(path: Path) -> np.ndarray:
    return _halves(path)[1]


def _halves(path: Path) -> tuple[np.ndarray, np.ndarray]:
    image = read_image(path)
    width = image.shape[1]
    if width % 2:
        raise UserError(f"'{path}' is {width} pixels wide, which makes no two halves; copy it again or remove it")
    return image[:, : width // 2], image[:, width // 2 :]
