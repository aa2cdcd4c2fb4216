from __future__ import annotations

import json

import numpy as np
import pytest

from gamax.errors import UserError
from gamax.lab import landscape
from gamax.lab.landscape import SMALL, pareto_front, study
from gamax.lab.point_names import spread_out
from gamax.lab.small_training import Budget, Photographs, check_sizes, train_small
from gamax.lab.study import write_report
from gamax.models import create_model

OPTIONS = {
    **{"networks": ("plainnet", "unet", "nafnet"), "tasks": ("denoise",), "dataset": "sample_photographs"},
    **{"source": None, "steps": 2, "batch_size": 1, "patch_size": 32, "learning_rate": 1e-3, "seeds": (0, 1)},
    **{"latency_size": "128x128", "reproduce": "gamax lab landscape"},
}
PSNR = {"plainnet": (20.0, 22.0), "unet": (24.0, 24.0), "nafnet": (23.0, 23.0)}
MILLISECONDS = {"plainnet": 1.0, "unet": 2.0, "nafnet": 3.0}
MEGABYTES = {"plainnet": 5, "unet": 4, "nafnet": 3}


@pytest.fixture
def planted(monkeypatch):
    calls = []
    photographs = Photographs(np.zeros((1, 64, 64, 3), np.uint8), np.zeros((1, 64, 64, 3), np.uint8), "black", "0")
    networks = {create_model(SMALL[name][0], **SMALL[name][1]): name for name in PSNR}

    def train(model, photographs, task, budget, seed, update):
        calls.append((networks[model], task, seed))
        return {"psnr": PSNR[networks[model]][seed], "psnr_input": 20.5}

    def measure(cases, folder):
        return {
            name: {
                **{"parameters": 1, "multiply_adds": 10**9, "program_bytes": MEGABYTES[name] * 10**6},
                **{f"latency_ms_{part}": MILLISECONDS[name] for part in ("median", "p10", "p90")},
            }
            for name in cases
        }

    monkeypatch.setattr(landscape, "train_small", train)
    monkeypatch.setattr(landscape, "measure_cost", measure)
    monkeypatch.setattr(landscape, "load_photographs", lambda *_: photographs)
    return calls


@pytest.mark.parametrize("name", SMALL)
def test_every_small_network_restores_colour_images_of_both_sizes(name):
    network, overrides = SMALL[name]
    model = create_model(network, **overrides)
    assert model.input_channels == 3
    check_sizes(name, model, [(64, 64), (128, 128)], "leave it out")


def test_another_number_of_channels_is_refused():
    with pytest.raises(UserError, match=r"grey cannot run on 32x32 pixels .*or leave it out"):
        check_sizes("grey", create_model("restormer_denoising_gray", width=8), [(32, 32)], "leave it out")


@pytest.mark.parametrize("seed", range(20))
def test_the_front_is_what_no_other_point_beats(seed):
    # Few values, so that there are ties.
    cost, quality = np.random.default_rng(seed).integers(0, 6, (2, 12)).astype(float).tolist()
    points = list(zip(cost, quality, strict=True))
    beaten = [any(c <= x and q >= y and (c, q) != (x, y) for c, q in points) for x, y in points]
    assert pareto_front(cost, quality) == [not value for value in beaten]


def test_names_beside_a_plot_keep_their_distance():
    places = spread_out([0.1, 0.1, 0.5, 0.99, 0.99], 0.06)
    assert np.diff(places).min() > 0.0599
    assert places[-1] <= 1


def test_the_table_has_gains_and_fronts(planted, tmp_path):
    report = study(**OPTIONS, folder=tmp_path)
    ((title, rows),) = report.tables.items()
    assert title == "denoise: 2 steps of 1 crops of 32x32, 2 seeds"
    assert [row["PSNR, dB"] for row in rows] == ["21.00 ± 1.41", "24.00 ± 0.00", "23.00 ± 0.00"]
    assert [row["gain, dB"] for row in rows] == ["+0.50", "+3.50", "+2.50"]
    assert [row["on the front of"] for row in rows] == ["latency", "latency, memory", "memory"]
    write_report(report, tmp_path)
    assert json.loads((tmp_path / "landscape.json").read_text())["tasks"]["denoise"]["unet"]["gain"] == 3.5
    assert (tmp_path / "denoise.png").stat().st_size > 10_000


def test_nothing_is_trained_twice(planted, tmp_path):
    study(**OPTIONS, folder=tmp_path)
    assert len(planted) == 6
    study(**{**OPTIONS, "tasks": ("denoise", "derain")}, folder=tmp_path)
    assert [task for _, task, _ in planted] == 6 * ["denoise"] + 6 * ["derain"]


def test_networks_that_fail_are_rows_that_say_so(planted, tmp_path, monkeypatch):
    monkeypatch.setitem(PSNR, "unet", (None, None))
    measure = landscape.measure_cost
    monkeypatch.setattr(
        landscape, "measure_cost", lambda *args: {**measure(*args), "nafnet": {"failure": "out of memory"}}
    )
    report = study(**OPTIONS, folder=tmp_path)
    (rows,) = report.tables.values()
    assert rows[1]["PSNR, dB"] == "not finite"
    assert rows[2]["latency, ms"] == "failed"
    assert [row["on the front of"] for row in rows] == ["latency, memory", "", ""]
    assert "nafnet could not be measured: out of memory" in report.notes


def test_an_unknown_network_lists_all(tmp_path):
    with pytest.raises(UserError, match=r"unknown small network 'resnet'; there are gama_ir, .*swintormer"):
        study(**{**OPTIONS, "networks": ("resnet",)}, folder=tmp_path)


def test_a_small_network_trains():
    squares = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    network, overrides = SMALL["plainnet"]
    model = create_model(
        network, **{**overrides, "width": 4, "encoder_blocks": (1,), "middle_blocks": 0, "decoder_blocks": (1,)}
    )
    result = train_small(model, Photographs(squares, squares, "noise", "0"), "denoise", Budget(2, 1, 32), 0)
    assert result["psnr"] is not None
    assert result["skipped"] == 0
