from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from gamax.benchmark import roofline
from gamax.benchmark.case import device_name
from gamax.benchmark.cost import Cost
from gamax.errors import UserError

MEASURED = {"flops_per_second": 4e9, "bytes_per_second": 1e9, "device": "one", "precision": "fp32-strict"}


@pytest.mark.parametrize(
    ("cost", "flops_ms", "bytes_ms", "fraction"),
    [
        (Cost(multiply_adds=10_000_000, product_bytes=2_000_000), 5, 2, 0.5),
        (Cost(multiply_adds=10_000_000, product_bytes=2_000_000) * 3, 15, 6, 1.5),
        (Cost(multiply_adds=1_000_000, product_bytes=4_000_000), 0.5, 4, 0.4),
    ],
    ids=["arithmetic", "training", "memory"],
)
def test_the_floor_is_the_longer_of_both(cost, flops_ms, bytes_ms, fraction):
    assert roofline.floor_ms(cost, MEASURED, median_ms=10) == pytest.approx(
        {"roofline_flops_ms": flops_ms, "roofline_bytes_ms": bytes_ms, "roofline_fraction": fraction}
    )


def test_a_device_is_measured(monkeypatch):
    monkeypatch.setattr(roofline, "SIDES", (64, 128))
    monkeypatch.setattr(roofline, "MOVED_BYTES", 1 << 20)
    found = json.loads(json.dumps(roofline.roofline_here("fp32-strict")))
    assert found["device"] == device_name()
    # Slower than this would be a unit mistaken, faster too.
    assert 1e7 < found["flops_per_second"] < 1e14
    assert 1e7 < found["bytes_per_second"] < 1e13


def test_bytes_are_read_and_written(monkeypatch):
    monkeypatch.setattr(roofline, "MOVED_BYTES", 1 << 20)

    def half_a_second(call: Callable[[], Any]) -> float:
        assert (call().nbytes, call()[0]) == (1 << 20, 2)
        return 0.5

    monkeypatch.setattr(roofline, "_best_seconds", half_a_second)
    assert roofline._bytes_per_second() == 2 * 2 * (1 << 20)


def test_short_calls_are_queued_so_that_dispatch_hardly_counts(monkeypatch):
    clock = 0.0

    class Result:
        def block_until_ready(self) -> None:
            nonlocal clock
            clock += 2e-4

    def call() -> Result:
        nonlocal clock
        clock += 1e-3
        return Result()

    monkeypatch.setattr(roofline.time, "perf_counter", lambda: clock)
    # Eight would take 8.2 milliseconds.
    assert roofline._best_seconds(call) == pytest.approx(1e-3 + 2e-4 / 16)
    monkeypatch.setattr(roofline, "SHORTEST", 0)
    assert roofline._best_seconds(call) == pytest.approx(1.2e-3)


def test_larger_products_are_left_out_once_one_takes_long(monkeypatch):
    monkeypatch.setattr(roofline, "SIDES", (64, 128, 256))
    seconds = iter((0.1, 0.5))
    monkeypatch.setattr(roofline, "_best_seconds", lambda call: next(seconds))
    assert roofline._flops_per_second("fp32-strict") == max(2 * 64**3 / 0.1, 2 * 128**3 / 0.5)


def test_what_cannot_be_measured_is_a_sentence():
    with pytest.raises(UserError, match=r"could not be measured: .*unknown precision 'fp64'.*fp32-strict"):
        roofline.measure_roofline("fp64")
