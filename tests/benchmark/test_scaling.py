from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gamax.benchmark import comparison, scaling
from gamax.benchmark.case import Case, device_name
from gamax.cli_bench_studies import BenchScaling
from gamax.errors import UserError

ROOFLINE = {"flops_per_second": 1e11, "bytes_per_second": 1e10, "device": device_name(), "precision": "fp32-strict"}


def test_points_go_from_small_to_large_in_every_sweep():
    found = scaling.points("unet", (64, 32), (4, 2), (2, 1), (2, 1), repeats=7)
    assert [(point.sweep, point.along) for point in found] == [
        *(("pixels", 32**2 / 1e6), ("pixels", 64**2 / 1e6)),
        *(("width", 2), ("width", 4)),
        *(("batch", 1), ("batch", 2)),
        *(("devices", 1), ("devices", 2)),
    ]
    sizes = [(point.case.height, point.case.width, point.case.batch, point.case.overrides) for point in found]
    assert sizes == [
        *((32, 32, 1, {}), (64, 64, 1, {})),
        *((256, 256, 1, {"width": 2}), (256, 256, 1, {"width": 4})),
        *((256, 256, 1, {}), (256, 256, 2, {})),
        *((512, 512, 1, {}), (512, 512, 1, {})),
    ]
    assert [point.devices for point in found] == [None] * 6 + [1, 2]
    assert {point.case.repeats for point in found} == {7}


def test_slopes_are_exponents_with_intervals():
    exact = scaling.slope([1, 2, 4, 8], [3 * x**1.5 for x in (1, 2, 4, 8)])
    assert exact == pytest.approx({"slope": 1.5, "low": 1.5, "high": 1.5}, abs=1e-6)
    # Logarithms 0, 1, 2 and 0, 1, 1: residuals -1/6, 1/3, -1/6, and Student's t of one degree of freedom.
    reach = 12.7062047 * math.sqrt(1 / 6 / 2)
    found = scaling.slope([1, math.e, math.e**2], [1, math.e, math.e])
    assert found == pytest.approx({"slope": 0.5, "low": 0.5 - reach, "high": 0.5 + reach})
    assert scaling.slope([1, 2], [1, 4]) == {"slope": pytest.approx(2), "low": None, "high": None}


def test_lines_are_fitted_apart():
    rows = [
        {"model": model, "sweep": sweep, "along": x, "latency_ms_median": x**power, "program_bytes": 5 * x}
        for model, sweep, power in (("a", "pixels", 1), ("b", "pixels", 2), ("b", "batch", 3))
        for x in (1, 2, 3)
    ]
    found = {(fit["model"], fit["sweep"]): fit for fit in scaling.fits([*rows, {**rows[0], "model": "alone"}])}
    slopes = {key: round(fit["latency"]["slope"], 9) for key, fit in found.items()}
    assert slopes == {("a", "pixels"): 1, ("b", "pixels"): 2, ("b", "batch"): 3}
    assert {fit["points"] for fit in found.values()} == {3}
    assert {round(fit["memory"]["slope"], 9) for fit in found.values()} == {1}


def test_what_does_not_fit_is_named(monkeypatch):
    case = Case("unet", 32, 32, overrides={"width": 1})
    assert scaling.too_large_here([case]) == [None]
    monkeypatch.setattr(scaling, "_free_bytes", lambda: 1000)
    (reason,) = scaling.too_large_here([case])
    found = re.fullmatch(r"unet at 1x32x32 left out: its program takes (.*) GB, and 1e-06 GB are free", str(reason))
    # At least the image and the result, and far less than a network of the usual width.
    assert found
    assert 2 * 4 * 32 * 32 * 3 < 1e9 * float(found[1]) < 10**6
    # More than one kilobyte, but all that products write would take much more than is free.
    monkeypatch.setattr(scaling, "_free_bytes", lambda: int(2e9 * float(found[1])))
    assert scaling.too_large_here([case]) == [None]


def test_what_does_not_fit_is_left_out_and_said(tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "_run", lambda asked, *_: ["too large for us"] * len(asked["check"]))
    monkeypatch.setattr(comparison, "measure_roofline", lambda precision: ROOFLINE)
    with pytest.raises(UserError, match="no point could be measured: too large for us; too large for us"):
        scaling.study(scaling.points("unet", (32, 64), (), (), ()), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_split_that_fails_says_why():
    with pytest.raises(UserError, match=r"nosuch at 32x32 on 2 simulated device\(s\) failed: unknown model 'nosuch'"):
        scaling.measure_split(Case("nosuch", 32, 32), 2)


def test_a_split_that_fails_is_said_and_the_others_are_kept(tmp_path, monkeypatch):
    measured = {"latency_ms_median": 1.0, "program_bytes": 10, "model": "unet"}
    measured |= {"backend": "jax", "device": "one", "precision": "fp32-strict", "versions": {}, "environment": {}}

    def split(case: Case, devices: int) -> dict[str, Any]:
        if devices == 2:
            raise UserError("two are too many")
        return {**measured, "devices": devices}

    monkeypatch.setattr(scaling, "measure_split", split)
    monkeypatch.setattr(scaling, "_run", lambda *_: [])
    rows, missing, _, _ = scaling.study(scaling.points("unet", (), (), (), (1, 2)), tmp_path)
    assert [row["devices"] for row in rows] == [1]
    assert missing == ["two are too many"]


def test_the_verb_measures_fits_draws_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(comparison, "measure_roofline", lambda precision: ROOFLINE)
    # Whoever edits the code meanwhile.
    monkeypatch.setattr(comparison, "source_sha256", lambda: "code")
    monkeypatch.setattr(scaling, "source_sha256", lambda: "code")
    monkeypatch.setattr(scaling, "DEVICES_SIDE", 32)
    # The smaller image is a point of two sweeps.
    monkeypatch.setattr(scaling, "SIDE", 16)
    verb = BenchScaling(
        models=("gama_ir_tiny",), sides=(32, 16), widths=(), batches=(1,), devices=(2,), repeats=2, output=tmp_path
    )
    verb.run()
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 2
    written = json.loads((tmp_path / "scaling.json").read_text())
    rows = written["rows"]
    assert [(row["sweep"], row["along"]) for row in rows] == [
        *(("pixels", 16**2 / 1e6), ("pixels", 32**2 / 1e6), ("batch", 1), ("devices", 2))
    ]
    assert rows[1]["activations"] > rows[0]["activations"] == rows[2]["activations"]
    assert rows[3]["activations"] == rows[1]["activations"]
    # Of the program: the peak of the process is about 100 MB.
    for row in rows:
        assert 4 * row["parameters"] < row["program_bytes"] < 4 * row["parameters"] + 2**24
    assert [(fit["sweep"], fit["points"]) for fit in written["fits"]] == [("pixels", 2)]
    assert written["missing"] == []
    with Image.open(tmp_path / "scaling.png") as image:
        assert image.format == "PNG"
    printed = capsys.readouterr().out
    assert f"note: {scaling.CAVEAT}" in printed
    for row in rows:
        assert f"{row['latency_ms_median']:.1f}" in printed

    def again(*arguments: Any, **options: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(comparison, "measure", again)
    monkeypatch.setattr(scaling, "measure_split", again)
    verb.run()
    assert json.loads((tmp_path / "scaling.json").read_text()) == written
    assert capsys.readouterr().out.count("measured already") == 3


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"models": ()}, "needs a model and a sweep"),
        ({"sides": (), "widths": (), "batches": (), "devices": ()}, "needs a model and a sweep"),
        ({"batches": (0,)}, "values of at least 1"),
        ({"models": ("unett",)}, "did you mean 'unet'"),
        ({"models": ("dmphn_1_2_4",)}, "dmphn_1_2_4 has no option 'width'"),
        ({"output": Path(__file__)}, "--output must be a folder, not the file"),
    ],
)
def test_what_cannot_be_measured_is_a_sentence_before_anything_is_started(arguments, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        BenchScaling(**{"output": tmp_path / "out", **arguments}).run()
    assert not (tmp_path / "out").exists()
