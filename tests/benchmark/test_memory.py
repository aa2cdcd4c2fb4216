from __future__ import annotations

import numpy as np
import pytest

from gamax.benchmark import memory

SIZE = 200_000_000


@pytest.mark.skipif(not memory.CAN_RESET, reason="only Linux sets the peak back")
def test_the_peak_is_that_since_it_was_reset():
    memory.reset_peak()
    before = memory.resident_bytes()
    pages = np.ones(SIZE, np.uint8)
    assert memory.resident_bytes() - before > 0.9 * SIZE
    del pages
    assert memory.resident_bytes() - before < 0.1 * SIZE
    assert 0.9 * SIZE < memory.peak_bytes() - before < 1.1 * SIZE
    memory.reset_peak()
    assert memory.peak_bytes() - before < 0.1 * SIZE


def test_without_a_reset_both_are_the_peak_since_the_start(monkeypatch):
    monkeypatch.setattr(memory, "CAN_RESET", False)
    before = memory.resident_bytes()
    pages = np.ones(SIZE, np.uint8)
    memory.reset_peak()
    assert memory.peak_bytes() >= max(before, pages.nbytes)
