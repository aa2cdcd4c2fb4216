from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest


@pytest.fixture
def save() -> Callable[..., np.ndarray]:
    """Writes a random RGB image of the given (height, width) with OpenCV and returns its pixels."""

    def save_image(path: Path, shape: tuple[int, ...] = (40, 56), dtype: type = np.uint8, seed: int = 0) -> np.ndarray:
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (*shape, 3) if len(shape) == 2 else shape
        image = np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
        order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[shape[-1]]
        assert cv2.imwrite(str(path), image[..., order])
        return image

    return save_image
