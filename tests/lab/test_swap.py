from __future__ import annotations

import sys

import pytest

from gamax.blocks import MIXERS
from gamax.errors import UserError
from gamax.lab import swap
from gamax.lab.study import write_report
from gamax.models import create_model

OVERRIDES = {"width": 4, "encoder_blocks": (1,), "middle_blocks": 0, "decoder_blocks": (0,)}
OPTIONS = {
    **{"network": "nafnet_sidd_w32", "mixer": "squeeze_excite(reduction=2)", "overrides": OVERRIDES, "task": "denoise"},
    **{"dataset": "sample_photographs", "source": None, "steps": 1, "batch_size": 1, "patch_size": 16},
    **{"learning_rate": 1e-3, "seeds": (0,), "latency_size": "32x32", "reproduce": "gamax lab swap"},
}

BLOCK = """
import flax.linen as nn
import jax


class Scale(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x * self.param("scale", nn.initializers.ones, (x.shape[-1],))


class TakesHalf(nn.Module):
    def __call__(self, x):
        return x[:, ::2]


class WrongGradient(nn.Module):
    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        return x * scale + jax.lax.stop_gradient(x * scale)
"""


@pytest.fixture(autouse=True)
def measured(monkeypatch):
    """Stands in for the processes that measure: the folders and cases that were asked for."""
    asked = []

    def measure_cost(cases, folder):
        asked.append((cases, folder))
        latency = {"latency_ms_median": 2.0, "latency_ms_p10": 1.5, "latency_ms_p90": 3.0}
        return {
            label: {"parameters": 1000, "multiply_adds": 2_000_000, "program_bytes": 3_000_000, **latency}
            for label in cases
        }

    monkeypatch.setattr(swap, "measure_cost", measure_cost)
    return asked


@pytest.fixture
def own_blocks(tmp_path, monkeypatch):
    """A file of blocks in the working folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "blocks_to_swap.py"
    path.write_text(BLOCK)
    yield path
    sys.modules.pop("blocks_to_swap", None)


def test_both_networks_are_measured_checked_and_trained(tmp_path, measured):
    report = swap.study(**OPTIONS, folder=tmp_path)
    ((cases, folder),) = measured
    assert folder == tmp_path
    assert {label: case.overrides for label, case in cases.items()} == {
        "sca": {**OVERRIDES, "mixer": "sca"},
        OPTIONS["mixer"]: {**OVERRIDES, "mixer": OPTIONS["mixer"]},
    }
    assert {(case.model, case.height, case.width) for case in cases.values()} == {("nafnet_sidd_w32", 32, 32)}
    assert [trial["name"] for trial in report.record["trials"]] == ["sca", OPTIONS["mixer"]]
    assert [len(trial["curve"]) for trial in report.record["trials"]] == [1, 1]
    assert all(0 < error < 0.05 for error in report.record["gradients"]["relative_error"].values())
    assert report.record["block"]["parameters"] == 8 * 4 + 4 + 4 * 8 + 8
    assert not any("Warning" in note for note in report.notes)
    (rows,) = report.tables.values()
    assert [row["mixer"] for row in rows] == ["sca", OPTIONS["mixer"]]
    assert rows[0]["PSNR, dB"] == f"{report.record['trials'][0]['psnr']:.2f}"
    files = {path.name for path in write_report(report, tmp_path)}
    assert files == {"swap.json", "swap.md", "swap.png"}


def test_a_block_of_ones_own_is_trained_again_when_its_file_changes(own_blocks, tmp_path, measured, monkeypatch):
    trained = []

    def train_small(model, photographs, task, budget, seed, update):
        trained.append(model.mixer)
        return {"psnr": 20.0, "psnr_input": 20.0, "curve": [[2, 20.0]], "loss": 1.0, "skipped": 0, "images": 2}

    monkeypatch.setattr(swap, "train_small", train_small)
    monkeypatch.setattr(swap, "_gradient_error", lambda model: 0.0)
    options = {**OPTIONS, "mixer": "blocks_to_swap:Scale", "folder": tmp_path / "out"}
    before = swap.study(**options).record["source_sha256_of_block"]
    swap.study(**options)
    assert trained == ["sca", "blocks_to_swap:Scale"]
    own_blocks.write_text(BLOCK + "\n# Another version.\n")
    after = swap.study(**options).record["source_sha256_of_block"]
    assert trained == ["sca", "blocks_to_swap:Scale", "blocks_to_swap:Scale"]
    assert before["sca"] is after["sca"] is None
    assert before["blocks_to_swap:Scale"] != after["blocks_to_swap:Scale"]
    assert [folder for _, folder in measured] == [tmp_path / "out"] * 3


def test_a_wrong_gradient_is_a_warning_and_steps_of_0_train_nothing(own_blocks, tmp_path):
    mixer = "blocks_to_swap:WrongGradient"
    report = swap.study(**{**OPTIONS, "mixer": mixer, "steps": 0}, folder=tmp_path)
    warnings = [note for note in report.notes if note.startswith("Warning")]
    named = [f"Warning: {what} {mixer} has gradients that are not its" for what in ("The block", "The network with")]
    assert [note[: len(start)] for note, start in zip(warnings, named, strict=True)] == named
    assert report.record["trials"] == []
    assert len(report.figures["swap.png"].axes) == 2


def test_a_faulty_block_is_refused_before_anything_runs(own_blocks, tmp_path, measured):
    with pytest.raises(UserError, match=r"blocks_to_swap:TakesHalf maps \[2, 16, 24, 8\] to \[2, 8, 24, 8\]"):
        swap.study(**{**OPTIONS, "mixer": "blocks_to_swap:TakesHalf"}, folder=tmp_path)
    assert not measured


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"network": "unet", "overrides": {}}, "unet has no slot for a mixer; choose one of gama_ir_tiny, gama_ir_s"),
        (
            {"overrides": {"block": "baseline"}},
            r"nafnet_sidd_w32 \(block=baseline\) has no slot",
        ),
        ({"mixer": "sca"}, "sca is in the slot of nafnet_sidd_w32 .* already"),
        ({"mixer": "gamma"}, "unknown mixer 'gamma' .did you mean 'gama'"),
        ({"mixer": "nowhere:Block"}, "cannot import the mixer 'nowhere:Block'"),
        ({"latency_size": "32"}, "'32' is not a size"),
        ({"steps": -1}, "a training needs steps"),
        ({"task": "deblur"}, "unknown task 'deblur'"),
    ],
)
def test_what_cannot_be_swapped_is_refused_at_once(changes, sentence, tmp_path, measured):
    with pytest.raises(UserError, match=sentence):
        swap.study(**{**OPTIONS, **changes}, folder=tmp_path)
    assert not measured


def test_the_networks_with_a_slot_take_every_mixer():
    names = swap.networks_with_slot()
    assert {"gama_ir_tiny", "nafnet_sidd_w32", "gama_ir_s_sampling"} <= set(names)
    assert not {"unet", "baseline_sidd_w32", "restormer_denoising"} & set(names)
    for name in names:
        for mixer in MIXERS:
            assert swap._slot(create_model(name, mixer=mixer)).mixer == mixer
