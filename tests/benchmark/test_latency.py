from __future__ import annotations

import pytest

from gamax.benchmark.cost import model_multiply_adds
from gamax.benchmark.latency import Case, measure
from gamax.errors import UserError
from gamax.models import abstract_params, create_model


def test_a_row_holds_counts_times_and_memory():
    row = measure(Case("gama_ir_tiny", 16, 24, repeats=3))
    model = create_model("gama_ir_tiny")
    assert (row["model"], row["height"], row["width"], row["batch"]) == ("gama_ir_tiny", 16, 24, 1)
    assert row["parameters"] == 324_739
    assert row["multiply_adds"] == model_multiply_adds(model, abstract_params(model), 16, 24)
    assert 0 < row["latency_ms_p10"] <= row["latency_ms_median"] <= row["latency_ms_p90"]
    assert row["images_per_second"] == pytest.approx(1e3 / row["latency_ms_median"])
    # At least the parameters, which are float32.
    assert row["peak_memory_bytes"] > 4 * 324_739
    assert row["peak_process_bytes"] > row["peak_memory_bytes"]
    assert row["versions"]["jax"]


def test_a_case_that_fails_says_why():
    with pytest.raises(UserError, match=r"gama_ir_tyny at 16x24 failed.*did you mean 'gama_ir_tiny'"):
        measure(Case("gama_ir_tyny", 16, 24))
