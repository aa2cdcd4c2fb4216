"""Restored images as the servers that keep the clean ones want them."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from gamax.errors import UserError
from gamax.files import check_writable, replace_atomically

PHOTOGRAPHS, CROPS = 50, 20
"""Of the Darmstadt Noise Dataset."""


def write_dnd_submission(folder: Path, crops: Iterable[tuple[str, np.ndarray]]) -> list[Path]:
    """Writes what the server of the Darmstadt Noise Dataset scores: 0001.mat to 0050.mat, one a photograph.

    Each is written as soon as its 20 crops are there, so crops that come photograph by photograph are never all held.
    A file has the cell array `Idenoised` (1 x 20, float32 `[H, W, 3]` in [0, 1]), `israw` false and `eval_version`
    "1.0", as the authors' own script for sRGB (`bundle_submission_srgb.m`) stores them.

    Args:
        folder: where to, made if need be.
        crops: name and restored image of every crop: PHOTOGRAPH_CROP as the dataset names them, both counted from 1,
            and floats `[H, W, 3]`, which are clamped to [0, 1].

    Returns:
        The files.

    Raises:
        UserError: for a name that is none of DND's or comes twice, an image of another shape or with values that are no
            numbers, and at the end if crops are missing: what is in the folder then is not to be sent.
    """
    check_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    missing = {_name(photograph, crop) for photograph in range(1, PHOTOGRAPHS + 1) for crop in range(1, CROPS + 1)}
    held: dict[str, np.ndarray] = {}
    files = []
    for name, image in crops:
        if name not in missing:
            raise UserError(f"'{name}' comes twice or is no crop of DND; they are {_name(1, 1)} to {_name(50, 20)}")
        if image.ndim != 3 or image.shape[2] != 3 or not np.issubdtype(image.dtype, np.floating):
            raise UserError(f"'{name}' must be floats [H, W, 3], not {image.dtype} of shape {list(image.shape)}")
        if not np.isfinite(image).all():
            raise UserError(f"'{name}' holds values that are no numbers: the training of the network has diverged")
        missing.remove(name)
        held[name] = np.clip(image, 0, 1).astype(np.float32)
        photograph = int(name[:4])
        names = [_name(photograph, crop) for crop in range(1, CROPS + 1)]
        if not missing.intersection(names):
            path = folder / f"{photograph:04d}.mat"
            replace_atomically(path, _mat_file([held.pop(name) for name in names]))
            files.append(path)
    if missing:
        listed = ", ".join(sorted(missing)[:CROPS]) + (" and on" if len(missing) > CROPS else "")
        raise UserError(
            f"{len(missing)} of the {PHOTOGRAPHS * CROPS} crops of DND are missing ({listed}): do not send '{folder}', "
            "restore the whole benchmark"
        )
    return sorted(files)


def _name(photograph: int, crop: int) -> str:
    return f"{photograph:04d}_{crop:02d}"


def _mat_file(crops: list[np.ndarray]) -> bytes:
    from scipy.io import savemat

    # Filled one by one: NumPy would stack crops of one size.
    cells = np.empty((1, len(crops)), object)
    for index, crop in enumerate(crops):
        cells[0, index] = crop
    content = io.BytesIO()
    savemat(content, {"Idenoised": cells, "israw": False, "eval_version": "1.0"})
    return content.getvalue()
