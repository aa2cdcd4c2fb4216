from __future__ import annotations

import csv
import json
import sys
from typing import Any

import pytest

from gamax.benchmark import comparison
from gamax.benchmark.case import Case
from gamax.benchmark.comparison import find_rows, read_rows
from gamax.benchmark.report import BOUNDS, COLUMNS, check_comparable, comparisons, table, threads_note, write_csv
from gamax.environment import flags, versions
from gamax.errors import UserError


def row(backend: str = "jax", **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        **{"model": "unet", "overrides": {}, "height": 32, "width": 48, "batch": 1, "task": "infer", "repeats": 2},
        **{"precision": "fp32-strict", "device": "a processor, 2 cores", "started": "one", "probe": [0.25, -0.5]},
        **{"difference": 1e-6, "latency_ms_median": 2.0, "latency_ms_p10": 1.5, "latency_ms_p90": 4.0},
        **{"compile_cold_seconds": None, "compile_warm_seconds": None, "peak_memory_bytes": 5e6, "multiply_adds": 7e9},
        **{"memory_format": "channels_last", "versions": versions(), "environment": {"flags": flags()}},
        **{"source_sha256": "the code", "latency_ms": [1.5, 4.0], "rounds": 5, "threads": 2},
    }
    return {**values, "backend": backend, **changes}


def test_honest_rows_are_comparable():
    check_comparable([row(), row("torch-eager", difference=BOUNDS["fp32-strict"])])
    check_comparable([row(), row("torch-eager", started="two", probe=[0.25, -0.500001])])
    both = [row(backend, precision=precision) for backend in ("jax", "torch-eager") for precision in BOUNDS]
    check_comparable([*both, row("torch-compile", failure="it failed")])
    # It was tried in all precisions.
    check_comparable([*both[:-1], row("torch-eager", precision=[*BOUNDS][-1], failure="it failed")])
    check_comparable([])


@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_rows_whose_outputs_differ_are_refused(precision, factor):
    far = row("torch-eager", precision=precision, difference=BOUNDS[precision] * factor)
    with pytest.raises(UserError, match=rf"unet are not comparable: the outputs of torch-eager .* {precision} allows"):
        check_comparable([row(precision=precision), far])


def test_no_difference_known_is_refused():
    with pytest.raises(UserError, match="do not compute the same"):
        check_comparable([row(), row("torch-eager", difference=None)])


@pytest.mark.parametrize("probe", [[0.25, -0.501], [0.25], [0.25, float("nan")]])
def test_rows_that_were_measured_apart_are_compared_by_what_they_keep(probe):
    with pytest.raises(UserError, match="do not compute the same"):
        check_comparable([row(), row("torch-eager", started="two", difference=0.0, probe=probe)])


def test_rows_whose_environment_differs_are_refused():
    huge_pages = {"flags": {**flags(), "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}}
    with pytest.raises(UserError, match="measure both alike"):
        check_comparable([row(), row("torch-eager", environment=huge_pages)])


@pytest.mark.parametrize(
    ("name", "first", "second", "words"),
    [
        ("source_sha256", "old code", "new code", "by the code 'old code' and torch-eager by the code 'new code'"),
        ("environment", {"platform": "Linux-6", "flags": {}}, {"platform": "Linux-7", "flags": {}}, "under 'Linux-6'"),
        ("versions", {"jax": "1", "numpy": "2"}, {"numpy": "3", "torch": "4"}, "numpy 2 and torch-eager with numpy 3"),
    ],
)
def test_rows_of_another_code_system_or_version_are_refused(name, first, second, words):
    with pytest.raises(UserError, match=words):
        check_comparable([row(**{name: first}), row("torch-eager", **{name: second})])
    check_comparable([row(**{name: first}), row("torch-eager", **{name: first})])
    older = {"source_sha256": None, "environment": {"flags": {}}, "versions": {}}
    check_comparable([row(**{name: first}), row("torch-eager", **{name: older[name]})])


def test_threads_are_refused_only_where_a_variable_sets_them():
    rows = [row(), row("torch-eager", threads=1)]
    check_comparable(rows)
    assert threads_note(rows) == "the threads differ: 2 in jax, 1 in torch-eager"
    limited = [{**each, "environment": {"flags": {"OMP_NUM_THREADS": "1"}}} for each in rows]
    with pytest.raises(UserError, match="1 in torch-eager, as OMP_NUM_THREADS is set"):
        check_comparable(limited)
    # An accelerator computes with its own.
    check_comparable([{**each, "device": "an accelerator"} for each in limited])


@pytest.mark.parametrize("precisions", [("fp32-strict", "tf32"), ("fp32-strict", "bf16"), ("bf16", "fp32-strict")])
def test_rows_whose_precision_differs_are_refused(precisions):
    jax, torch = precisions
    with pytest.raises(UserError, match=rf"jax was measured in {jax} and torch-eager in {torch}"):
        check_comparable([row(precision=jax), row("torch-eager", precision=torch)])


def test_rows_whose_device_differs_are_refused():
    with pytest.raises(UserError, match=r"measured on 'a processor, 2 cores' and torch-eager on '.*, 1 core'"):
        check_comparable([row(), row("torch-eager", device="a processor, 1 core")])


def test_only_backend_and_precision_may_differ():
    apart = [row(), row(height=64), row(batch=2), row(task="train"), row(overrides={"width": 8}), row(model="lir")]
    alike = [row("torch-eager"), row(precision="bf16"), row(latency_ms_median=3.0)]
    groups = comparisons([*apart, *alike])
    assert [len(group) for group in groups] == [3, 1, 1, 1, 1, 1]
    # The last measurement counts.
    assert groups[0][0]["latency_ms_median"] == 3.0


def test_ratios_are_to_the_fastest_row_of_pytorch():
    rows = [
        row(latency_ms_median=3.0),
        row("torch-eager", latency_ms_median=4.0),
        row("torch-compile", latency_ms_median=2.0, roofline_fraction=0.5),
        row("torch-compile-max-autotune", failure="it failed"),
    ]
    heading, *lines = table(rows)
    assert heading == {"backend": "unet", "G multiply-adds": "7.00"}
    assert [line.get("to PyTorch") for line in lines] == ["1.50", "2.00", "1.00", None]
    assert lines[2]["of roofline"] == "50%"
    assert lines[3] == {"backend": "  torch-compile-max-autotune", "median ms": "failed"}
    assert {name for line in lines for name in line} <= set(COLUMNS)
    assert [line.get("to PyTorch") for line in table(rows, comparable=False)[1:3]] == ["refused"] * 2
    assert table(rows[:1])[1]["to PyTorch"] == ""


def test_percentiles_of_few_calls_are_left_out():
    few, enough = table([row(), row("torch-eager", latency_ms=[2.0] * 8)])[1:]
    assert (few["calls"], few["p10"], few["p90"]) == ("2", "", "")
    assert (enough["calls"], enough["p10"], enough["p90"]) == ("8", "1.5", "4.0")


def test_a_csv_file_says_in_its_name_what_it_holds(tmp_path):
    torch = row("torch-eager", memory_format="contiguous_format", versions={"torch": "2.13.0+cpu"})
    rows = [row(versions={"jax": "0.10.2"}), torch, row(precision="bf16"), row("torch-compile", failure="it failed")]
    strict, half = write_csv(rows, tmp_path)
    expected = "infer-fp32-strict-channels-last+contiguous-format-jax0.10.2-torch2.13.0+cpu-a-processor-2-cores.csv"
    assert strict.name == expected
    assert half.name.startswith("infer-bf16-channels-last-jax")
    with strict.open() as file:
        read = list(csv.DictReader(file))
    assert [(line["backend"], line["latency_ms_median"], line["versions.torch"]) for line in read] == [
        ("jax", "2.0", ""),
        ("torch-eager", "2.0", "2.13.0+cpu"),
    ]
    assert "latency_ms" not in read[0]


def test_only_rows_that_would_come_out_the_same_are_found():
    cases = [Case("unet", 32, 48, backend=backend, repeats=2) for backend in ("jax", "torch-eager")]
    rows = [row(), row("torch-eager"), row("torch-compile")]
    here = ("the code", "a processor, 2 cores", 5)
    assert find_rows(rows, cases, *here) == rows[:2]
    newer = [{**old, "started": "two"} for old in rows]
    assert find_rows([*rows, *newer], cases, *here) == newer[:2]
    # A backend is missing, or was measured another time.
    assert find_rows(rows[:1], cases, *here) is None
    assert find_rows([rows[0], newer[1]], cases, *here) is None
    for changes in (
        {"source_sha256": "older code"},
        {"device": "another"},
        {"environment": {"flags": {"XLA_FLAGS": "--another"}}},
        {"versions": {**versions(), "jax": "0.0.1"}},
        {"repeats": 3},
        {"rounds": 3},
        {"failure": "it failed"},
    ):
        assert find_rows([rows[0], {**rows[1], **changes}], cases, *here) is None


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    measured = []

    def measure(cases, rounds, **_):
        if len(measured) == 1 and not (tmp_path / "interrupted").exists():
            (tmp_path / "interrupted").touch()
            raise KeyboardInterrupt
        measured.append(cases[0].height)
        return [row(case.backend, height=case.height, started=f"time {len(measured)}") for case in cases]

    limits = {"device": "a processor, 2 cores"}
    monkeypatch.setattr(comparison, "measure", measure)
    monkeypatch.setattr(comparison, "measure_roofline", lambda precision: limits)
    groups = [
        [Case("unet", height, 48, backend=name, repeats=2) for name in ("jax", "torch-eager")] for height in (1, 2)
    ]
    with pytest.raises(KeyboardInterrupt):
        comparison.measure_groups(groups, 5, tmp_path)
    rows = comparison.measure_groups(groups, 5, tmp_path)
    assert measured == [1, 2]
    assert [(row["height"], row["backend"]) for row in rows] == [
        (height, backend) for height in (1, 2) for backend in ("jax", "torch-eager")
    ]
    assert comparison.measure_groups(groups, 5, tmp_path) == rows == read_rows([tmp_path / comparison.ROWS])
    limits["device"] = "a processor, 1 core"
    comparison.measure_groups(groups, 5, tmp_path)
    assert measured == [1, 2, 1, 2]


def test_files_that_hold_no_rows(tmp_path):
    with pytest.raises(UserError, match="cannot read the rows"):
        read_rows([tmp_path / "missing.jsonl"])
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row()) + "\n")
    assert read_rows([path, path]) == [row()] * 2
    for line in ("{", "[1]", '{"model": "unet"}'):
        path.write_text(json.dumps(row()) + "\n" + line + "\n")
        with pytest.raises(UserError, match=r"line 2 of .* is not a row"):
            read_rows([path])


def test_rows_of_a_block_of_ones_own_are_those_of_its_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = "import flax.linen as nn\n\nclass Block(nn.Module):\n    def __call__(self, x):\n        return x\n"
    (tmp_path / "own_row_blocks.py").write_text(source)
    overrides = {"mixer": "own_row_blocks:Block"}
    measured = []

    def measure(cases, rounds, **_):
        measured.append(cases[0].overrides)
        return [row(overrides=overrides)]

    monkeypatch.setattr(comparison, "measure", measure)
    monkeypatch.setattr(comparison, "measure_roofline", lambda precision: {"device": "a processor, 2 cores"})
    groups = [[Case("unet", 32, 48, overrides=overrides, repeats=2)]]
    for edit in ("", "", "# edited\n"):
        (tmp_path / "own_row_blocks.py").write_text(source + edit)
        comparison.measure_groups(groups, 5, tmp_path)
    assert measured == [overrides] * 2
    # Rows of blocks that are gone do not hinder others.
    monkeypatch.delitem(sys.modules, "own_row_blocks")
    (tmp_path / "own_row_blocks.py").unlink()
    monkeypatch.setattr(comparison, "measure", lambda cases, rounds, **_: [row()])
    comparison.measure_groups([[Case("unet", 32, 48, repeats=2)]], 5, tmp_path)
