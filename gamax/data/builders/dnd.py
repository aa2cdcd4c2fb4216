"""DND: real noise of four cameras, with a secret clean side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from gamax.data.builders.core import ImageSetBuilder
from gamax.data.builders.layouts import find_root
from gamax.data.builders.matlab import open_hdf5
from gamax.data.examples import ExampleFiles, ImageFile
from gamax.data.images import to_integers
from gamax.errors import UserError

Box = tuple[int, int, int, int]
"""Top, left, bottom and right, counted from 1, the last two inclusive: as the authors store them."""


class DND(ImageSetBuilder):
    """Darmstadt Noise Dataset in sRGB: 1,000 noisy crops of 512x512, 20 of each of 50 photographs.

    For submissions only: the clean side is kept secret. The files hold floats in [0, 1], and the server takes floats:
    the crops are stored with 16 bits, which changes no value by more than 1/131070. Crops are named PHOTOGRAPH_CROP,
    both counted from 1, as in submissions.
    """

    name = "dnd"
    TASK = "real denoising"
    CITATION = """@inproceedings{plotz2017benchmarking,
  title={Benchmarking Denoising Algorithms with Real Photographs},
  author={Pl{\\"o}tz, Tobias and Roth, Stefan},
  booktitle={IEEE Conference on Computer Vision and Pattern Recognition},
  year={2017}
}"""
    LICENSE = "unconfirmed; see the homepage"
    HOMEPAGE = "https://noise.visinf.tu-darmstadt.de"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "download the benchmark data from the homepage and extract it, so that there are info.mat and "
        "images_srgb/0001.mat to 0050.mat"
    )
    COUNTS = {"benchmark": 1000}

    @classmethod
    def examples(cls, source: Path) -> Mapping[str, Sequence[ExampleFiles]]:
        """Lists the crops that info.mat defines."""
        root = find_root(source, ("info.mat",), ("dnd_2017", "DND"), cls.MANUAL_DOWNLOAD_INSTRUCTIONS)
        return {
            "benchmark": [
                ExampleFiles(
                    f"{photograph:04d}_{crop:02d}",
                    {"input": ImageFile(root / "images_srgb" / f"{photograph:04d}.mat", partial(_read_crop, box))},
                )
                for photograph, boxes in enumerate(_read_boxes(root / "info.mat"), 1)
                for crop, box in enumerate(boxes, 1)
            ]
        }


def _read_boxes(path: Path) -> list[list[Box]]:
    with open_hdf5(path) as file:
        references = np.ravel(file["info"]["boundingboxes"][...])
        tables = [file[reference][...].T for reference in references]
        return [[(int(y0), int(x0), int(y1), int(x1)) for y0, x0, y1, x1 in table] for table in tables]


def _read_crop(box: Box, path: Path) -> np.ndarray:
    top, left, bottom, right = box
    with open_hdf5(path) as file:
        crop = file["InoisySRGB"][:, left - 1 : right, top - 1 : bottom].T
    if crop.shape != (bottom - top + 1, right - left + 1, 3):
        raise UserError(f"InoisySRGB in '{path}' has no pixels at rows {top} to {bottom}, columns {left} to {right}")
    if not np.isfinite(crop).all():
        raise UserError(f"InoisySRGB in '{path}' holds values that are no numbers; copy it again")
    return to_integers(crop, np.uint16)
