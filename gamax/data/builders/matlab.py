"""Variables of MATLAB files, version 5 and version 7.3 (which is HDF5); every failure is one sentence."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from gamax.errors import UserError

_HDF5_START = b"\x89HDF\r\n\x1a\n"
# MATLAB puts a header of its own before it; other programs may not.
_HDF5_OFFSETS = (0, 512)


class MatlabVariable:
    """A numeric variable of a MATLAB file, its axes in MATLAB's order, that threads share.

    The header is read at once, the values when they are first asked for. They are kept until they have been asked for
    `times` times, or this object is gone; after that they are read anew. Raises `UserError` when there is no such file
    or variable, or it cannot be read.
    """

    def __init__(self, path: Path, name: str, times: int = 1):
        self.path = path
        self.name = name
        self.shape = _shape(path, name)
        self._times = times
        self._left = 0
        self._lock = threading.Lock()
        self._values: np.ndarray | None = None

    def values(self) -> np.ndarray:
        """The values in C order, so that what one index of the first axes selects lies together in memory."""
        with self._lock:
            values = self._values
            if values is None:
                values = np.ascontiguousarray(_load(self.path, self.name))
                self._left = self._times
            self._left -= 1
            self._values = values if self._left else None
            return values


def read_matlab_image(path: Path, name: str) -> np.ndarray:
    """Reads a variable that is an image as uint8 or uint16 `[H, W, C]`.

    Raises `UserError` when there is no such variable, it cannot be read or is not such an image.
    """
    return check_image(MatlabVariable(path, name).values(), path, name)


def check_image(values: np.ndarray, path: Path, name: str) -> np.ndarray:
    """Returns an image from a MATLAB file as it is; `UserError` unless it is uint8 or uint16 `[H, W, C]`, C 1 or 3."""
    if values.ndim != 3 or values.shape[-1] not in (1, 3) or values.dtype not in (np.uint8, np.uint16):
        found = f"{values.dtype} {list(values.shape)}"
        raise UserError(f"{name} in '{path}' is {found}, not an image of 8 or 16 bits [height, width, channels]")
    return values


@contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """Opens a MATLAB file of version 7.3, whose axes are stored in reverse order.

    What the body of the `with` statement cannot read is a `UserError`, too, and so is a missing h5py.
    """
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise UserError(
            f"'{path}' is a MATLAB file of version 7.3, which needs another package: pip install 'gamax[matlab]'"
        ) from error
    with _explained(path), h5py.File(path, "r") as file:
        yield file


def _shape(path: Path, name: str) -> tuple[int, ...]:
    if _is_hdf5(path):
        with open_hdf5(path) as file:
            shapes = {key: item.shape[::-1] for key, item in file.items() if hasattr(item, "shape")}
    else:
        import scipy.io

        with _explained(path):
            shapes = {key: tuple(shape) for key, shape, _ in scipy.io.whosmat(str(path))}
    if name not in shapes:
        raise UserError(f"'{path}' has no variable {name}, only {', '.join(shapes) or 'nothing'}")
    return shapes[name]


def _load(path: Path, name: str) -> np.ndarray:
    if _is_hdf5(path):
        with open_hdf5(path) as file:
            return file[name][...].T
    import scipy.io

    with _explained(path):
        return scipy.io.loadmat(str(path), variable_names=[name])[name]


def _is_hdf5(path: Path) -> bool:
    with _explained(path), path.open("rb") as file:
        start = file.read(_HDF5_OFFSETS[-1] + len(_HDF5_START))
    return any(start[offset:].startswith(_HDF5_START) for offset in _HDF5_OFFSETS)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (UserError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise UserError(f"no file '{path}'") from error
    # A damaged file makes the readers raise almost anything: of zlib, of Python's indices, of their own.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"'{path}' cannot be read as a MATLAB file ({reason}); copy it again") from error
