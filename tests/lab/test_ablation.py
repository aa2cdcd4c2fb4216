from __future__ import annotations

import json
import math
from itertools import pairwise

import jax
import pytest
from matplotlib.text import Text

from gamax.errors import UserError
from gamax.lab import ablation
from gamax.lab.ablation import VARIANTS, study, summarise
from gamax.lab.ablation_plots import draw_quality_against_cost
from gamax.lab.small_training import check_sizes
from gamax.lab.study import write_report
from gamax.models import abstract_params, create_model

TINY = {"width": 4, "depth": 3, "levels": 1, "blocks_per_level": 1}
BLOCKS = 3
OPTIONS = {
    **{"network": "gama_ir_tiny", "overrides": TINY, "variants": ("gama", "none"), "task": "denoise"},
    **{"dataset": "sample_photographs", "source": None, "steps": 2, "batch_size": 2, "patch_size": 32},
    **{"learning_rate": 1e-3, "seeds": (0, 1), "latency_size": "32x48", "reproduce": "gamax lab ablation"},
}
COST = {
    **{"parameters": 1234, "multiply_adds": 5e6, "program_bytes": 2e6, "peak_memory_bytes": 3e6},
    **{"latency_ms_median": 5.0, "latency_ms_p10": 4.0, "latency_ms_p90": 7.0, "peak_memory_method": "planted"},
}


@pytest.fixture
def planted(monkeypatch):
    """Takes PSNR by variant and seed for trainings and `COST` for measurements; returns the seeds that were trained."""
    trained = []

    def plant(psnr):
        def train(model, photographs, task, budget, seed, update):
            trained.append((model.mixer, seed))
            return {"psnr": psnr[model.mixer][seed], "psnr_input": 20.0}

        monkeypatch.setattr(ablation, "train_small", train)
        monkeypatch.setattr(ablation, "measure_cost", lambda cases, folder: dict.fromkeys(cases, COST))
        return trained

    return plant


def mixing_parameters(name):
    model = create_model("gama_ir_tiny", **TINY, **VARIANTS[name])
    leaves = jax.tree_util.tree_leaves_with_path(abstract_params(model))
    return sum(math.prod(leaf.shape) for path, leaf in leaves if "mixing" in jax.tree_util.keystr(path))


@pytest.mark.parametrize(
    ("names", "each"),
    [
        (("gama", "multiplicative", "first", "last"), 3 * 49),
        (("without_channel", "without_height", "without_width"), 2 * 49),
        (("only_channel", "only_height", "only_width"), 49),
        (("kernel_1",), 3),
        (("kernel_3",), 3 * 9),
        (("kernel_5",), 3 * 25),
        (("none",), 0),
    ],
)
def test_variants_have_the_parameters_of_their_means(names, each):
    assert {name: mixing_parameters(name) for name in names} == dict.fromkeys(names, BLOCKS * each)


def test_other_mixers_have_parameters_by_channels():
    # Two blocks with 4 channels, and one with 8.
    widths = (4, 4, 8)
    assert mixing_parameters("sca") == sum(c * c + c for c in widths)
    assert mixing_parameters("squeeze_excite") == sum(2 * c * (c // 4) + c // 4 + c for c in widths)
    assert mixing_parameters("non_local") == sum(3 * (c + 1) * (c // 2) + (c // 2 + 1) * c for c in widths)


def test_variants_are_different_networks():
    models = [create_model("gama_ir_tiny", **TINY, **fields) for fields in VARIANTS.values()]
    assert len(set(models)) == len(models) == 17


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variants": ("kernel_9",)}, "unknown variant 'kernel_9'; there are gama, without_channel, .*non_local"),
        ({"network": "unet", "overrides": {}}, "gama_ir_tiny.*not of unet; `gamax lab swap`"),
        ({"overrides": {"mixer": "sca"}}, "cannot set mixer"),
        ({"overrides": {**TINY, "width": 5}}, "variant gama: .*even width"),
        ({"overrides": {**TINY, "local_window": 32}}, "variant none: local_window"),
        ({"variants": ("non_local",), "latency_size": "512x512"}, "non_local cannot run on 512x512.*--variants"),
        ({"latency_size": "32"}, "HEIGHTxWIDTH"),
        ({"steps": 0}, "steps"),
        ({"task": "dehaze"}, "unknown task"),
        ({"dataset": "no_photographs"}, "no_photographs"),
    ],
)
def test_what_cannot_be_is_told_before_the_first_training(planted, tmp_path, options, message):
    trained = planted({})
    with pytest.raises(UserError, match=message):
        study(**{**OPTIONS, **options}, folder=tmp_path)
    assert not trained


def test_non_local_takes_the_default_size():
    model = create_model("gama_ir_tiny", **TINY, **VARIANTS["non_local"])
    check_sizes("non_local", model, [(256, 256)], "")


def test_differences_are_paired_by_seed():
    # Seeds differ by far more than variants do.
    rows = [
        *({"name": "gama", "seed": seed, "psnr": psnr} for seed, psnr in ((0, 20.0), (1, 25.0), (2, 30.0))),
        *({"name": "sure", "seed": seed, "psnr": psnr} for seed, psnr in ((2, 29.9), (1, 24.8), (0, 19.7))),
        *({"name": "open", "seed": seed, "psnr": psnr} for seed, psnr in ((0, 20.5), (1, 24.7), (2, 30.4))),
    ]
    found = summarise(rows)
    assert found["gama"]["difference"] is None
    sure, unsure = found["sure"]["difference"], found["open"]["difference"]
    assert (sure["mean"], sure["std"], sure["count"]) == (pytest.approx(-0.2), pytest.approx(0.1), 3)
    # The quantile of two degrees of freedom, from a printed table.
    assert sure["half_width"] == pytest.approx(4.303 * 0.1 / math.sqrt(3), rel=1e-3)
    assert unsure["mean"] == pytest.approx(0.2)
    assert unsure["half_width"] == pytest.approx(4.303 * math.sqrt(0.19) / math.sqrt(3), rel=1e-3)
    # 0.2 is less than 0.248.
    assert (sure["beyond"], unsure["beyond"]) == (False, False)
    assert summarise([*rows, *({**row, "seed": row["seed"] + 3} for row in rows)])["sure"]["difference"]["beyond"]


def test_the_report_has_planted_figures(planted, tmp_path):
    planted({"gama": [27.0, 27.5], "none": [26.9, 27.4]})
    report = study(**OPTIONS, folder=tmp_path)
    full, none = next(iter(report.tables.values()))
    assert (full["PSNR, dB"], full["to gama, dB"]) == ("27.25 ± 0.35", "")
    assert (none["PSNR, dB"], none["to gama, dB"]) == ("27.15 ± 0.35", "-0.100 ± 0.000 *")
    assert (none["parameters"], none["latency, ms"]) == ("1,234", "5.0")
    assert any("they are so for none (-0.100 ± 0.000 dB)" in note for note in report.notes)

    files = write_report(report, tmp_path)
    assert {path.name for path in files} == {"ablation.json", "ablation.md", "dots.png", "quality_against_cost.png"}
    record = json.loads((tmp_path / "ablation.json").read_text())
    assert record["reproduce"] == "gamax lab ablation"
    assert [(row["name"], row["seed"], row["psnr"]) for row in record["trials"]] == [
        *(("gama", 0, 27.0), ("gama", 1, 27.5)),
        *(("none", 0, 26.9), ("none", 1, 27.4)),
    ]
    assert record["variants"]["none"]["difference"]["mean"] == pytest.approx(-0.1)
    assert record["variants"]["none"]["cost"]["program_bytes"] == 2e6


def test_a_study_goes_on_where_it_was(planted, tmp_path):
    trained = planted({"gama": [27.0, 27.5, 27.2], "none": [26.9, 27.4, 27.3]})
    first = study(**OPTIONS, folder=tmp_path)
    assert trained == [("gama", 0), ("gama", 1), ("none", 0), ("none", 1)]
    trained.clear()
    assert study(**OPTIONS, folder=tmp_path).record == first.record
    assert trained == []
    study(**{**OPTIONS, "seeds": (0, 1, 2)}, folder=tmp_path)
    assert trained == [("gama", 2), ("none", 2)]
    trained.clear()
    study(**{**OPTIONS, "steps": 3, "seeds": (0,)}, folder=tmp_path)
    assert trained == [("gama", 0), ("none", 0)]


def test_gama_is_always_among_the_variants_and_first(planted, tmp_path):
    trained = planted({"gama": [27.0], "none": [26.9]})
    study(**{**OPTIONS, "variants": ("none",), "seeds": (0,)}, folder=tmp_path)
    assert trained == [("gama", 0), ("none", 0)]


def test_of_one_seed_nothing_is_said(planted, tmp_path):
    planted({"gama": [27.0], "none": [26.0]})
    report = study(**{**OPTIONS, "seeds": (0,)}, folder=tmp_path)
    assert any("One seed alone: nothing can be said" in note for note in report.notes)
    assert next(iter(report.tables.values()))[1]["to gama, dB"] == "-1.000"


def test_a_training_that_is_not_finite_is_a_row_that_says_so(planted, tmp_path):
    planted({"gama": [27.0, None], "none": [None, None]})
    report = study(**OPTIONS, folder=tmp_path)
    full, none = next(iter(report.tables.values()))
    assert full["PSNR, dB"] == "27.00 (1 not finite)"
    assert (none["PSNR, dB"], none["to gama, dB"]) == ("not finite", "")
    assert any(note.startswith("none: ") and "2 seeds (0, 1)" in note for note in report.notes)
    write_report(report, tmp_path)


def test_a_network_that_cannot_be_measured_is_a_row_that_says_so(planted, tmp_path, monkeypatch):
    planted({"gama": [27.0], "none": [26.0]})
    monkeypatch.setattr(ablation, "measure_cost", lambda cases, folder: {"gama": COST, "none": {"failure": "it fell"}})
    report = study(**{**OPTIONS, "seeds": (0,)}, folder=tmp_path)
    assert next(iter(report.tables.values()))[1]["latency, ms"] == "failed"
    assert "none could not be measured: it fell" in report.notes


def test_names_beside_the_plot_do_not_overlap():
    # All in one place but one: the worst that can be.
    psnr = {"mean": 27.0, "low": 27.0, "high": 27.0, "count": 1, "std": 0.0}
    summaries = {name: {"psnr": psnr} for name in VARIANTS}
    summaries["gama"] = {"psnr": {**psnr, "mean": 28.0}}
    groups = {group: list(names) for group, names in ablation.GROUPS.items()}
    figure = draw_quality_against_cost(groups, summaries, dict.fromkeys(VARIANTS, COST), "title")
    figure.draw_without_rendering()
    for axes in figure.axes:
        # Without the lines to the points.
        extents = [Text.get_window_extent(text) for text in axes.texts]
        boxes = sorted((extent.y0, extent.y1) for extent in extents)
        assert len(boxes) == len(VARIANTS)
        assert all(below[1] <= above[0] for below, above in pairwise(boxes))


@pytest.mark.slow
def test_a_short_training_is_real(tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "measure_cost", lambda cases, folder: dict.fromkeys(cases, COST))
    options = {**OPTIONS, "variants": ("gama",), "seeds": (0,), "steps": 1, "learning_rate": 1e-2}
    (row,) = study(**options, folder=tmp_path).record["trials"]
    assert row["images"] == OPTIONS["batch_size"]
    assert math.isfinite(row["psnr"])
    assert row["psnr"] != row["psnr_input"]
