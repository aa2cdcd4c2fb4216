from __future__ import annotations

import numpy as np
import pytest

from gamax.benchmark import memory

SIZE = 200_000_000
HELD = 7_000_000


@pytest.mark.skipif(not memory.CAN_RESET, reason="only Linux sets the peak back")
def test_the_peak_is_that_since_it_was_reset():
    before = memory.resident_bytes()
    left_over = np.ones(SIZE, np.uint8)
    assert memory.resident_bytes() - before > 0.9 * SIZE
    memory.reset_peak()
    assert abs(memory.peak_of_calls(HELD) - HELD) < 0.02 * SIZE
    pages = np.ones(SIZE, np.uint8)
    del pages
    assert 0.9 * SIZE < memory.peak_of_calls(0) < 1.1 * SIZE
    del left_over
    memory.reset_peak()
    assert memory.peak_of_calls(0) < 0.02 * SIZE


def test_without_a_reset_it_is_the_peak_since_the_start(monkeypatch):
    monkeypatch.setattr(memory, "CAN_RESET", False)
    pages = np.ones(SIZE, np.uint8)
    memory.reset_peak()
    assert memory.peak_of_calls(HELD) >= pages.nbytes
