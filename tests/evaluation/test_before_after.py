from __future__ import annotations

import tracemalloc

import cv2
import numpy as np
import pytest

from gamax.evaluation.before_after import before_after


def pair(height: int, width: int, channels: int, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """A ramp, and the same with a dark block near its lower right corner."""
    white = np.iinfo(dtype).max
    ramp = np.linspace(0.5 * white, white, width).astype(dtype)
    before = np.broadcast_to(ramp[:, np.newaxis], (height, width, channels)).copy()
    after = before.copy()
    after[-height // 4 :, -width // 4 :] //= 2
    return before, after


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_both_are_shown_small_and_where_most_changed_at_full_scale(channels, dtype):
    before, after = pair(960, 1560, channels, dtype)
    sheet = before_after(before, after)
    assert sheet.dtype == np.uint8
    shown = (before[..., :3] >> (8 if dtype == np.uint16 else 0)).astype(np.uint8) * np.ones(3, np.uint8)
    small = cv2.resize(shown, (780, 480), interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(sheet[26:506, 8:788] - small).max() <= 1
    # The lower right corner, where the block is.
    crop = np.abs(sheet[540:900, 8:788].astype(int) - shown[-360:, -780:])
    assert crop.max() <= 1
    changed = sheet[540:900, 8:788].astype(int) - sheet[540:900, 796:1576]
    assert (changed[-240:, -390:] > 50).all()
    assert not changed[:-240].any()


def test_a_picture_takes_little_memory():
    images = pair(2000, 3000, 3, np.uint16)
    # What is imported once.
    before_after(*(image[:64, :64] for image in images))
    tracemalloc.start()
    before_after(*images)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 2000 * 3000
