from __future__ import annotations

import csv
import json
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from gamax.benchmark import comparison, correlation
from gamax.benchmark.case import Case, device_name
from gamax.benchmark.correlation import (
    ALL,
    FEWEST_SHAPES,
    PREDICTORS,
    TARGETS,
    coefficients,
    correlations,
    pearson,
    population,
    ranks,
    shape,
    spread,
    study,
)
from gamax.benchmark.cost import model_multiply_adds
from gamax.benchmark.plots import PROGRAM_MEMORY
from gamax.cli_bench_studies import BenchCorrelation
from gamax.errors import UserError
from gamax.models import abstract_params, create_model


def simulated(count: int, noise: float = 0.3, seed: int = 0) -> list[dict[str, object]]:
    """Networks whose latency is a noisy power of their multiply-adds, in two families; their depth is all the same."""
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        size = rng.normal()
        figures = {key: np.exp(size + noise * rng.normal()) for key in (*PREDICTORS, *TARGETS)}
        network = {"model": "unet", "overrides": {"width": index}, "family": ("even", "odd")[index % 2]}
        rows.append({**figures, **network, "multiply_adds": np.exp(size), "depth": 36})
    return rows


@pytest.mark.parametrize("seed", range(3))
def test_coefficients_are_those_of_scipy(seed):
    rng = np.random.default_rng(seed)
    # With equal values.
    x, y = rng.integers(0, 8, 25).astype(float), rng.normal(size=25)
    assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)
    assert pearson(ranks(x), ranks(y)) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    np.testing.assert_array_equal(ranks(x), stats.rankdata(x))


def test_coefficients_by_hand():
    # Deviations -1, 0, 1 and -1, 1, 0: a covariance of 1 over variances of 2.
    assert pearson(np.array([1.0, 2, 3]), np.array([1.0, 3, 2])) == pytest.approx(1 / 2)
    assert ranks(np.array([10.0, 7, 10, 1])).tolist() == [3.5, 2, 3.5, 1]
    assert np.isnan(pearson(np.full(3, 0.1), np.array([1.0, 3, 2])))


def test_counts_are_copies():
    rng = np.random.default_rng(0)
    x, y, counts = rng.integers(0, 5, 12).astype(float), rng.normal(size=12), rng.integers(0, 4, (3, 12)).astype(float)
    found = pearson(ranks(x, counts), ranks(y, counts), counts)
    for row, given in zip(found, counts, strict=True):
        copies = [np.repeat(values, given.astype(int)) for values in (x, y)]
        assert row == pytest.approx(stats.spearmanr(*copies).statistic)
        assert pearson(x, y, given) == pytest.approx(stats.pearsonr(*copies).statistic)
    # Whatever is taken does not vary.
    assert np.isnan(pearson(x, y, np.eye(12)[:1])).all()


def test_every_family_and_all_are_correlated():
    rows = [*simulated(22), {**simulated(1)[0], "family": "too few"}]
    found = {(line["family"], line["predictor"], line["target"]): line for line in correlations(rows)}
    families = {ALL: 23, "even": 11, "odd": 11}
    assert {(family, line["networks"]) for (family, *_), line in found.items()} == set(families.items())
    assert len(found) == len(families) * len(PREDICTORS) * len(TARGETS)
    x, y = (np.array([row[key] for row in rows], float) for key in ("parameters", "program_bytes"))
    line = found[ALL, "parameters", "program_bytes"]
    assert line["pearson"] == pytest.approx(stats.pearsonr(x, y).statistic)
    assert line["pearson_log"] == pytest.approx(stats.pearsonr(np.log(x), np.log(y)).statistic)
    assert line["spearman"] == pytest.approx(stats.spearmanr(x, y).statistic)
    for name in ("pearson", "pearson_log", "spearman"):
        assert -1 <= line[f"{name}_low"] < line[name] < line[f"{name}_high"] <= 1
    assert {found["odd", "depth", target][name] for target in TARGETS for name in ("pearson", "spearman_low")} == {None}


# Networks of each shape: the study, few, and many.
@pytest.mark.parametrize("sizes", [[4] * 7 + [1] * 23, [2] * 14, [1] * 40], ids=["51-of-30", "28-of-14", "40"])
def test_intervals_cover_the_truth(sizes):
    noise = 0.3
    # Of the logarithms: they share a part of variance one.
    truth = 1 / np.sqrt(1 + noise**2)
    covered = 0
    for seed in range(60):
        # Networks of one shape deviate together.
        rows = np.repeat(np.array(simulated(len(sizes), noise, seed)), sizes)
        x, y = (np.array([row[key] for row in rows]) for key in ("multiply_adds", TARGETS[0]))
        found = coefficients(x, y, [shape(row["model"], row["overrides"]) for row in rows])
        covered += found["pearson_log_low"] <= truth <= found["pearson_log_high"]
    # 57 are expected; of so few shapes the bootstrap's intervals are too short.
    assert covered >= 49


def test_the_mixer_makes_no_other_shape():
    overrides = {"width": 16, "depth": 8}
    assert len({shape("gama_ir_s", {"mixer": mixer, **overrides}) for mixer in ("none", "gama")}) == 1
    assert shape("gama_ir_s", overrides) != shape("gama_ir_s", {**overrides, "depth": 9})
    assert shape("gama_ir_s", {"width": 16}) != shape("unet", {"width": 16})


@pytest.mark.parametrize(
    ("networks", "shapes"), [(3, 3), (28, 7), (36, FEWEST_SHAPES - 1)], ids=["three", "one-family", "nearly"]
)
def test_few_shapes_have_no_interval(networks, shapes):
    rows = simulated(shapes) * (networks // shapes)
    for line in correlations([{**row, "family": "one"} for row in rows]):
        assert (line["networks"], line["shapes"]) == (networks, shapes)
        assert {line[f"{name}_{end}"] for name in ("pearson", "spearman") for end in ("low", "high")} == {None}
        assert line["predictor"] == "depth" or -1 <= line["spearman"] <= 1


def test_the_population_is_that_of_the_study():
    cases = population(256, 256)
    assert len(cases) == 51
    networks = [create_model(case.model, **case.overrides) for case in cases]
    assert len(set(networks)) == len(cases)
    assert {type(network).__name__ for network in networks} == {"GAMAIR", "NAFNet", "UNet", "Restormer"}
    mixers = [network.mixer for network in networks if type(network).__name__ == "GAMAIR"]
    assert len({mixers.count(mixer) for mixer in ("none", "squeeze_excite", "sca", "gama")}) == 1


@pytest.mark.parametrize("index", [6, 34, -8, -1], ids=["gama-ir", "nafnet", "restormer", "unet"])
def test_the_largest_networks_stay_below_the_limit(index):
    case = population(256, 256)[index]
    model = create_model(case.model, **case.overrides)
    assert 10e9 < model_multiply_adds(model, abstract_params(model), case.height, case.width) < 200e9


@pytest.mark.parametrize("count", [8, 12, 20])
def test_fewer_networks_are_of_distinct_shapes(count):
    shapes = [shape(case.model, case.overrides) for case in spread(population(32, 32), count)]
    # Of GAMA-IR there are four networks of every shape, and 20 of 51 are eleven of its 28.
    repeated = max(0, sum("gama_ir_s" in name for name in shapes) - 7)
    assert len(set(shapes)) == count - repeated
    assert max(map(shapes.count, shapes)) <= 2


def test_fewer_networks_are_spread_over_the_families():
    cases = population(32, 32)
    chosen = spread(cases, 8)
    assert len({id(case) for case in chosen}) == 8
    assert {case.model for case in chosen} == {case.model for case in cases}
    for count in (2, len(cases) + 1):
        with pytest.raises(UserError, match=rf"takes from 3 to {len(cases)} networks, not {count}"):
            spread(cases, count)


def test_the_verb_measures_correlates_draws_and_goes_on(tmp_path, monkeypatch, capsys):
    roofline = {"flops_per_second": 1e11, "bytes_per_second": 1e10, "device": device_name()}
    monkeypatch.setattr(comparison, "measure_roofline", lambda precision: roofline)
    # Whoever edits the code meanwhile.
    monkeypatch.setattr(comparison, "source_sha256", lambda: "code")
    cases = [Case("unet", 32, 48, overrides={"width": width}, repeats=2) for width in (1, 2, 3)]

    def population(*arguments: Any) -> list[Case]:
        assert arguments == (32, 48, "fp32-strict", 2)
        return cases

    monkeypatch.setattr(correlation, "population", population)
    verb = BenchCorrelation(size="32x48", repeats=2, output=tmp_path)
    verb.run()
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert sorted(row["overrides"]["width"] for row in rows) == [1, 2, 3]
    found = json.loads((tmp_path / "correlations.json").read_text())
    assert {line["family"]: line["networks"] for line in found} == {ALL: 3, "UNet": 3}
    (line,) = (line for line in found if (line["family"], *_key(line)) == (ALL, "parameters", "latency_ms_median"))
    x, y = ([row[key] for row in rows] for key in _key(line))
    assert line["pearson"] == pytest.approx(stats.pearsonr(x, y).statistic)
    printed = capsys.readouterr().out
    # Without an interval.
    assert re.search(rf"parameters\W+{line['pearson']:.2f} \W", printed)
    assert f"memory: {PROGRAM_MEMORY}" in printed
    (lines,) = tmp_path.glob("correlation-*.csv")
    with lines.open() as file:
        table = list(csv.DictReader(file))
    assert {row["network"] for row in table} == {"unet width=1", "unet width=2", "unet width=3"}
    assert {float(row["parameters"]) for row in table} == {row["parameters"] for row in rows}
    pictures = list(tmp_path.glob("*.png"))
    assert len(pictures) == 5
    for path in pictures:
        with Image.open(path) as image:
            assert image.format == "PNG"

    def again(*arguments: Any, **options: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(comparison, "measure", again)
    verb.run()
    assert json.loads((tmp_path / "correlations.json").read_text()) == found
    assert capsys.readouterr().out.count("measured already") == 3


def _key(line: dict[str, Any]) -> tuple[str, str]:
    return line["predictor"], line["target"]


def test_a_study_of_failures_says_why(tmp_path, monkeypatch):
    failed = {"model": "unet", "overrides": {}, "failure": "it broke"}
    monkeypatch.setattr(correlation, "measure_groups", lambda groups, **_: [failed] * len(groups))
    with pytest.raises(UserError, match=r"0 network\(s\) could be measured, .* takes 3: it broke; it broke"):
        study([Case("unet", 32, 32)] * 2, tmp_path)
