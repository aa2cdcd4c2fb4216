from __future__ import annotations

import json

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


def test_larger_products_are_left_out_once_one_takes_long(monkeypatch):
    monkeypatch.setattr(roofline, "SIDES", (64, 128, 256))
    seconds = iter((0.1, 0.5))
    monkeypatch.setattr(roofline, "_best_seconds", lambda call: next(seconds))
    assert roofline._flops_per_second("fp32-strict") == max(2 * 64**3 / 0.1, 2 * 128**3 / 0.5)


def test_what_cannot_be_measured_is_a_sentence():
    with pytest.raises(UserError, match=r"could not be measured: .*unknown precision 'fp64'.*fp32-strict"):
        roofline.measure_roofline("fp64")
