from __future__ import annotations

import dataclasses
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gamax.benchmark import latency
from gamax.benchmark.case import Case, images_and_targets, random_parameters
from gamax.benchmark.cost import model_cost
from gamax.benchmark.latency import largest_difference, measure, probe
from gamax.benchmark.report import BOUNDS, check_comparable
from gamax.errors import UserError
from gamax.evaluation.restorer import apply_network
from gamax.models import abstract_params, count_parameters, create_model

TINY = {"width": 4, "depth": 3, "levels": 1, "blocks_per_level": 1}
CASE = Case("gama_ir_tiny", 16, 24, overrides=TINY, repeats=4)


@pytest.fixture
def planted(monkeypatch) -> None:
    """Workers whose backends are stand-ins, some of them with faults."""
    monkeypatch.setattr(latency, "WORKER", (sys.executable, str(Path(__file__).with_name("planted_worker.py"))))


@pytest.fixture
def started(monkeypatch) -> list[subprocess.Popen]:
    """All processes that the controller starts."""
    processes = []

    class Recorded(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            processes.append(self)

    monkeypatch.setattr(latency.subprocess, "Popen", Recorded)
    return processes


def test_a_row_holds_counts_times_and_memory():
    roofline = {"flops_per_second": 1e9, "bytes_per_second": 1e9}
    (row,) = measure([dataclasses.replace(CASE, repeats=3)], rounds=2, roofline=roofline)
    model = create_model("gama_ir_tiny", **TINY)
    parameters = count_parameters(abstract_params(model))
    cost = model_cost(model, abstract_params(model), 16, 24)
    assert (row["model"], row["height"], row["width"], row["batch"]) == ("gama_ir_tiny", 16, 24, 1)
    assert row["parameters"] == parameters
    assert {name: row[name] for name in dataclasses.asdict(cost)} == dataclasses.asdict(cost)
    assert row["xla_flops"] > 2 * cost.multiply_adds
    assert len(row["latency_ms"]) == row["timed_calls"] == 3
    assert row["rounds"] == 2
    assert 0 < row["latency_ms_p10"] <= row["latency_ms_median"] <= row["latency_ms_p90"]
    assert row["images_per_second"] == pytest.approx(1e3 / row["latency_ms_median"])
    assert row["roofline_flops_ms"] == pytest.approx(2e-6 * cost.multiply_adds)
    # At least the parameters, which are float32.
    assert row["program_bytes"] > 4 * parameters
    assert row["peak_process_bytes"] > row["peak_memory_bytes"] > 0
    assert (row["difference"], row["reference"]) == (0, "jax")
    assert row["versions"]["jax"]
    assert "JAX_DEFAULT_MATMUL_PRECISION" not in row["environment"]["flags"]
    assert row["environment"]["flags"]["XLA_FLAGS"]


def test_jax_and_pytorch_take_the_same_training_step(torch):
    case = dataclasses.replace(CASE, task="train", repeats=1)
    ours, theirs = measure([case, dataclasses.replace(case, backend="torch-eager")], rounds=1)
    assert theirs["reference"] == "jax"
    assert 0 < theirs["difference"] < BOUNDS["fp32-strict"]
    assert ours["device"] == theirs["device"]
    assert ours["peak_memory_method"] == theirs["peak_memory_method"]
    assert ours["multiply_adds"] == theirs["multiply_adds"]
    check_comparable([ours, theirs])
    check_comparable([ours, {**theirs, "started": "another time"}])
    assert theirs["environment"]["devices"] == [theirs["device"]]


def test_an_unknown_network_starts_no_process(started):
    with pytest.raises(UserError, match="did you mean 'gama_ir_tiny'"):
        measure([CASE, Case("gama_ir_tyny", 16, 24)])
    assert not started


@pytest.mark.parametrize("wrong", [{"backend": "torch"}, {"batch": 0}, {"repeats": 0}, {"overrides": {"wide": 3}}])
def test_a_case_that_no_backend_can_measure(started, wrong):
    with pytest.raises(UserError):
        measure([dataclasses.replace(CASE, **wrong)])
    assert not started


def test_rows_of_faulty_backends(planted, started):
    backends = ("jax", "torch-eager", "torch-eager-channels-last", "torch-compile", "torch-compile-max-autotune")
    done = []
    rows = measure(
        [dataclasses.replace(CASE, backend=backend) for backend in backends],
        rounds=2,
        keep_failures=True,
        progress=lambda part, note: done.append(part),
    )
    honest, twin, other, killed, raised = rows
    assert len(honest["latency_ms"]) == len(twin["latency_ms"]) == 4
    assert honest["difference"] == twin["difference"] == 0
    # Relative to the change, which is 0.5 and once 0.001 more.
    assert other["difference"] == pytest.approx(1e-3 / 0.501, rel=1e-3)
    assert {row["reference"] for row in (honest, twin, other)} == {"jax"}
    assert "gama_ir_tiny at 16x24 (infer, fp32-strict, torch-compile) failed: it was ended by" in killed["failure"]
    assert "SIGKILL" in killed["failure"]
    assert raised["failure"].endswith("failed: RuntimeError: no kernel for this")
    assert "latency_ms_median" not in {**killed, **raised}
    assert len({row["started"] for row in rows}) == 1
    assert done == sorted(done)
    assert 0 <= done[0] < done[-1] < len(rows)
    assert [process.poll() is not None for process in started] == [True] * 5


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, None])
def test_nothing_is_left_after_an_interruption_or_a_failure(planted, started, interruption, tmp_path, monkeypatch):
    def interrupt(part: float, note: str) -> None:
        if interruption and "round" in note:
            raise interruption

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    # It has read the variable already.
    monkeypatch.setattr(tempfile, "tempdir", None)
    cases = [CASE, dataclasses.replace(CASE, backend="torch-compile")]
    with pytest.raises(interruption or UserError):
        measure(cases, progress=interrupt)
    assert [process.poll() is not None for process in started] == [True] * 2
    # The stand-ins leave a file, as a compiler that is interrupted leaves its cache.
    assert not list(tmp_path.iterdir())


def test_slow_calls_are_fewer():
    case = dataclasses.replace(CASE, repeats=20)
    assert latency.timed_calls(case, 10.0) == 20
    assert latency.timed_calls(case, 1e3) == latency.SECONDS_PER_ROW
    assert latency.timed_calls(case, 60e3) == latency.FEWEST_CALLS
    assert latency.timed_calls(dataclasses.replace(case, repeats=1), 60e3) == 1


def test_differences_are_relative():
    theirs = {
        "output": np.full((1, 2, 2, 3), 2.0, np.float32),
        "loss": np.float32(4),
        "loss_after_update": np.float32(2),
        "gradient/a": np.full(4, 3.0, np.float32),
        "gradient/b": np.full(4, 1e-9, np.float32),
    }
    changes = {
        "output": (theirs["output"] + 0.5, 0.5 / 8),
        "loss": (np.float32(4.2), 0.05),
        # The loss falls a tenth further.
        "loss_after_update": (np.float32(1.8), 0),
        "gradient/a": (theirs["gradient/a"] + np.array([1, 0, 0, 0], np.float32), 1 / 6),
        # Rounding, next to a gradient a billion times as large.
        "gradient/b": (-theirs["gradient/b"], 4e-9 / 6e-3),
    }
    for name, (changed, expected) in changes.items():
        assert largest_difference({**theirs, name: changed}, theirs, 8.0) == pytest.approx(expected)
    assert not np.isfinite(largest_difference({**theirs, "gradient/a": np.full(4, np.nan)}, theirs, 8.0))
    for loss in (theirs["loss"], np.float32(np.nan)):
        assert not np.isfinite(largest_difference({**theirs, "loss_after_update": loss}, theirs, 8.0))
    with pytest.raises(UserError, match=r"'gradient/a' is \(3,\) in one and \(4,\) in the other"):
        largest_difference({**theirs, "gradient/a": np.zeros(3)}, theirs, 8.0)


def test_rows_measured_apart_keep_what_shows_a_fault():
    rng = np.random.default_rng(1)
    outputs = {
        "output": rng.normal(size=(1, 16, 24, 3)),
        "loss": np.float32(4),
        "gradient/a": rng.normal(size=(8, 8)),
        "gradient/b": rng.normal(size=12),
        # Rounding, which no two backends have alike.
        "gradient/c": 1e-9 * rng.normal(size=12),
    }
    columns = outputs["output"].copy()
    columns[:, :, 1:] += 1
    honest = {name: value * (1 + 1e-6) for name, value in outputs.items()} | {"gradient/c": -outputs["gradient/c"]}
    permuted = outputs["gradient/a"][::-1]

    def check(changed: dict) -> None:
        common = {"model": "a", "precision": "bf16", "device": "b", "difference": 0.0, "versions": {}}
        common |= {"environment": {"flags": {}}}
        rows = [{**common, **probe(side, 2.0), "backend": name} for name, side in (("c", outputs), ("d", changed))]
        check_comparable([{**row, "started": row["backend"]} for row in rows])

    check(outputs)
    check(honest)
    for fault in (
        {"output": columns},
        {"loss": 7 * outputs["loss"]},
        {"gradient/a": 7 * outputs["gradient/a"]},
        {"gradient/a": permuted},
        {"gradient/b": np.full(12, np.nan)},
    ):
        with pytest.raises(UserError, match="do not compute the same"):
            check({**outputs, **fault})


def test_inputs_are_the_same_everywhere_and_targets_far():
    (images, targets), (again, _) = (images_and_targets(CASE) for _ in range(2))
    other, _ = images_and_targets(CASE, 1)
    assert images.shape == targets.shape == (1, 16, 24, 3)
    np.testing.assert_array_equal(images, again)
    assert np.abs(images - other).max() > 0.1
    assert set(np.unique(targets)) == {-100, 100}


def test_every_parameter_shows_in_the_output():
    model = create_model("gama_ir_tiny", **TINY)
    params = random_parameters(model)
    images, _ = images_and_targets(CASE)
    output = apply_network(model, params, jnp.asarray(images))
    leaves, tree = jax.tree.flatten(params)
    for index, leaf in enumerate(leaves):
        without = jax.tree.unflatten(tree, [*leaves[:index], 0 * leaf, *leaves[index + 1 :]])
        changed = apply_network(model, without, jnp.asarray(images))
        assert np.abs(changed - output).max() / np.abs(output - images).max() > 10 * BOUNDS["fp32-strict"]
