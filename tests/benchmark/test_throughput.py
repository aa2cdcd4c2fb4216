from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar

import flax.linen as nn
import jax
import pytest

from gamax import models
from gamax.benchmark import throughput
from gamax.benchmark.throughput import Case
from gamax.blocks import Conv
from gamax.cli_bench import BenchTrain
from gamax.errors import UserError


class OneConvolution(nn.Module):
    """Stands for a network: the benchmark does not care which, and this one compiles fast."""

    remat: bool
    dtype: Any
    input_channels: ClassVar[int] = 3

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        return Conv(3, 3, dtype=self.dtype)(images)


def test_a_row_holds_rates_of_single_steps_the_wait_and_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "create_model", lambda name, **options: OneConvolution(**options))
    case = Case("gama_ir_tiny", patch_size=16, batch_size=8, remat=True, steps=3, prepared_dir=str(tmp_path))
    row = json.loads(json.dumps(throughput.run_case(case)))
    assert Case(**{field.name: row[field.name] for field in dataclasses.fields(Case)}) == case
    shortest, middle, longest = sorted(row["step_ms"])
    assert row["step_ms_median"] == middle
    assert row["images_per_second_median"] == pytest.approx(8 / (middle / 1e3))
    assert row["images_per_second_p10"] == pytest.approx(8 / ((middle + 0.8 * (longest - middle)) / 1e3))
    assert row["images_per_second_p90"] == pytest.approx(8 / ((shortest + 0.2 * (middle - shortest)) / 1e3))
    assert 0 < row["input_wait"] < 1
    assert row["mesh"] == {"data": jax.device_count(), "fsdp": 1, "rows": 1}
    assert row["parameters"] == 3 * 3 * 3 * 3 + 3
    assert row["multiply_adds"] == 3 * (8 * 16 * 16) * (3 * 3 * 3 * 3)
    # Parameters and their two moments, on every device.
    assert row["state_bytes"] >= 3 * 4 * row["parameters"]
    assert row["peak_memory_bytes"] == row["state_bytes"] + row["temporary_bytes"]
    assert row["peak_memory_method"] == "state + temporaries of the program"


def test_every_choice_is_a_row_of_the_table_and_of_the_file(tmp_path, monkeypatch, capsys):
    cases = []

    def measure(case: Case) -> dict[str, Any]:
        cases.append(case)
        figures = ("images_per_second_median", "images_per_second_p10", "images_per_second_p90", "step_ms_median")
        row: dict[str, Any] = dict.fromkeys((*figures, "input_wait", "peak_memory_bytes"), 0.5)
        row |= {"compile_seconds": 1.0, "multiply_adds": 10**9, "peak_memory_method": "weighed"}
        return {**row, "environment": {"devices": ["cpu"]}, "versions": {"jax": "1.2"}, "model": case.model}

    monkeypatch.setattr(throughput, "measure", measure)
    lines = tmp_path / "rows.jsonl"
    BenchTrain(
        models=("gama_ir_tiny", "gama_ir_s"), patch_size=(16, 32), steps=3, prepared_dir=str(tmp_path), output=lines
    ).run()
    assert len(set(cases)) == 2 * 2 * 2 * 2
    assert {(case.dtype, case.remat) for case in cases} == {
        (dtype, remat) for dtype in ("float32", "bfloat16") for remat in (False, True)
    }
    assert [json.loads(line)["model"] for line in lines.read_text().splitlines()] == [case.model for case in cases]
    printed = capsys.readouterr().out
    for model in ("gama_ir_tiny", "gama_ir_s"):
        assert f"{model}: medians of 3 steps on 1 x cpu, jax 1.2; peak memory: weighed" in printed
    assert printed.count("2x32") == 8


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"models": ("gama_ir_tyny",)}, "did you mean 'gama_ir_tiny'"),
        ({"models": ()}, "needs a model"),
        ({"steps": 0}, "steps of at least 1"),
        ({"batch_size": (2, 0)}, "batch sizes and steps of at least 1"),
        ({"patch_size": (513,)}, "'data.patch_size' must be from 1 to data.cut_size, not 513"),
        ({"output": Path(".")}, "--output must be a file"),
    ],
)
def test_what_cannot_be_measured_is_a_sentence_before_anything_is_prepared(arguments, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        BenchTrain(**{"prepared_dir": str(tmp_path / "prepared"), **arguments}).run()
    assert not (tmp_path / "prepared").exists()


def test_networks_for_gray_are_refused():
    with pytest.raises(UserError, match="RGB photographs; restormer_denoising_gray takes gray ones"):
        BenchTrain(models=("restormer_denoising_gray",)).run()


def test_a_network_that_takes_more_than_a_photograph_is_given_more(tmp_path, monkeypatch):
    class WithPrior(OneConvolution):
        input_channels: ClassVar[int] = 6
        prior: ClassVar[bool] = True

    monkeypatch.setattr(models, "create_model", lambda name, **options: WithPrior(**options))
    row = throughput.run_case(Case("gama_ir_tiny", patch_size=16, batch_size=8, steps=1, prepared_dir=str(tmp_path)))
    assert row["parameters"] == 3 * 3 * 6 * 3 + 3
    assert row["multiply_adds"] == 3 * (8 * 16 * 16) * (3 * 3 * 6 * 3)


def test_a_row_that_fails_says_which_and_why():
    with pytest.raises(UserError, match=r"gama_ir_tiny \(2x513, float32, remat False\) failed: configuration field"):
        throughput.measure(Case("gama_ir_tiny", 513))
