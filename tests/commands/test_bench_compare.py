"""`gamax bench compare` with stand-ins for the backends: what it prints and writes, and what it refuses."""

import json
import sys
from pathlib import Path
from typing import get_args

import pytest

from gamax import cli_bench_compare
from gamax.benchmark import case, comparison, latency

WORKER = Path(__file__).parents[1] / "benchmark/planted_worker.py"
TINY = ("--overrides", "width=4", "depth=3", "levels=1", "blocks_per_level=1")


@pytest.fixture
def compare(gamax, monkeypatch, tmp_path):
    limits = {"flops_per_second": 1e9, "bytes_per_second": 1e9, "device": "a stand-in"}
    monkeypatch.setattr(latency, "WORKER", (sys.executable, str(WORKER)))
    monkeypatch.setattr(comparison, "measure_roofline", lambda precision: limits)

    def run(*arguments: object) -> None:
        small = ("--models", "gama_ir_tiny", *TINY, "--sizes", "16x16", "--repeats", 2, "--rounds", 1)
        gamax("bench", "compare", *small, "--output", tmp_path / "out", *arguments)

    return run


def test_options_are_those_of_a_case():
    # They are written again because the options must not import JAX.
    assert get_args(cli_bench_compare.Backend) == case.BACKENDS
    assert get_args(cli_bench_compare.Precision) == get_args(case.Precision)


def test_compare_measures_once(compare, tmp_path, capsys, monkeypatch):
    compare("--backends", "jax", "torch-eager", "torch-compile-max-autotune")
    printed = capsys.readouterr().out
    assert "torch-eager " in printed
    assert "1.00" in printed
    assert "failed: RuntimeError: no kernel for this" in printed
    rows = [json.loads(line) for line in (tmp_path / "out/rows.jsonl").read_text().splitlines()]
    assert [row["backend"] for row in rows] == ["jax", "torch-eager", "torch-compile-max-autotune"]
    assert len(list((tmp_path / "out").glob("infer-fp32-strict-contiguous-format-a-stand-in.csv"))) == 1
    assert len(list((tmp_path / "out").glob("*.png"))) == 2

    monkeypatch.setattr(comparison, "measure", lambda *_, **__: pytest.fail("measured again"))
    compare("--backends", "jax", "torch-eager")
    assert "measured already" in capsys.readouterr().out
    for fault, words in (
        ({"precision": "bf16"}, "measured in fp32-strict"),
        ({"device": "b"}, "measured on 'a stand-in'"),
    ):
        path = tmp_path / "changed.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in (rows[0], {**rows[1], **fault})))
        with pytest.raises(SystemExit) as stopped:
            compare("--rows", path)
        assert stopped.value.code == 2
        captured = capsys.readouterr()
        assert words in captured.err
        assert "refused" in captured.out
        assert "1.00" not in captured.out


def test_compare_refuses_outputs_that_differ(compare, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        compare("--backends", "jax", "torch-eager-channels-last")
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert "1 of 1 comparisons refused: the rows of gama_ir_tiny are not comparable" in captured.err
    assert "they do not compute the same" in captured.err
    assert "refused" in captured.out
    assert "1.00" not in captured.out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--models", "gama_ir_tyny"], "did you mean 'gama_ir_tiny'"),
        (["--sizes", "16"], "not a size"),
        (["--backends"], "precision and backend"),
        (["--rounds", 0], "one round"),
        (["--overrides", "wide=3"], "no option"),
        (["--rows", "missing.jsonl"], "cannot read the rows"),
    ],
)
def test_compare_says_what_is_wrong_at_once(compare, tmp_path, capsys, arguments, words):
    with pytest.raises(SystemExit) as stopped:
        compare(*arguments)
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
