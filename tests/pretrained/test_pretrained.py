from __future__ import annotations

import io
import json
import runpy
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from skimage import data

import gamax
from gamax.config import load
from gamax.errors import UserError
from gamax.interop.weights import find_weights, load_weights
from gamax.pretrained import PRETRAINED, PRETRAINED_FOLDER, TRAINING_EXAMPLES, weights_for

ROOT = Path(__file__).parents[2]
NAMES = list(PRETRAINED)


def test_every_file_of_the_folder_is_listed_and_small():
    assert {path.stem for path in PRETRAINED_FOLDER.glob("*.safetensors")} == set(NAMES)
    assert {path.stem for path in PRETRAINED_FOLDER.glob("*.md")} == set(NAMES)
    assert max(weights.path.stat().st_size for weights in PRETRAINED.values()) <= 12e6


@pytest.mark.parametrize("name", NAMES)
def test_weights_fit_a_gama_ir_and_are_float32_in_memory(name):
    model, params = load_weights(name)
    assert type(model).__name__ == "GAMAIR"
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    assert find_weights(name) == PRETRAINED[name].path


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    """The program that trains the weights and writes the cards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "docs")
        return runpy.run_path(str(ROOT / "docs/train_pretrained.py"))


@pytest.mark.parametrize("name", NAMES)
def test_the_card_is_made_of_the_results_and_says_the_terms(name, script):
    card = PRETRAINED[name].card.read_text()
    assert card == script["card_text"](name), "give the command in docs/train_pretrained.py again"
    assert PRETRAINED[name].licence in card


@pytest.mark.parametrize("name", NAMES)
def test_the_configuration_is_the_one_that_was_trained(name, script):
    training = json.loads((ROOT / f"docs/results/training/{name}.json").read_text())
    assert script["settings_of"](load(ROOT / script["config_of"](name))) == training["settings"]


@pytest.mark.parametrize("name", ["denoise-gaussian", "denoise-photo"])
@pytest.mark.parametrize("sigma", [5, 15, 50])
def test_the_blind_denoisers_gain_at_every_strength(name, sigma):
    clean = data.astronaut()[40:136, 180:276] / 255
    noisy = clean + np.random.default_rng(0).normal(0, sigma / 255, clean.shape)
    restored = gamax.Restorer.from_weights(name)(noisy.astype(np.float32))
    assert gamax.psnr(restored, clean, peak=1) > gamax.psnr(noisy, clean, peak=1) + {5: 1, 15: 4, 50: 9}[sigma]


@pytest.mark.parametrize("subsampling", ["4:2:0", "4:4:4"])
@pytest.mark.parametrize("quality", [75, 95])
def test_the_default_weights_denoise_photographs_stored_as_jpeg(quality, subsampling):
    clean = data.astronaut()[40:168, 160:288]
    noisy = np.clip(np.rint(clean + np.random.default_rng(0).normal(0, 25, clean.shape)), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, "JPEG", quality=quality, subsampling=subsampling)
    stored = np.asarray(Image.open(file))
    restored = gamax.Restorer.from_weights(weights_for("denoise").name)(stored)
    assert gamax.psnr(restored, clean, peak=255) > gamax.psnr(stored, clean, peak=255) + 4


def test_a_folder_of_that_name_counts_more(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("derain").mkdir()
    with pytest.raises(UserError, match=r"'derain' holds no weights\.safetensors"):
        find_weights("derain")


def test_tasks_with_and_without_weights():
    assert weights_for("denoise").name == "denoise-photo"
    assert weights_for("derain").name == "derain"
    for task, config in TRAINING_EXAMPLES.items():
        assert (ROOT / config).is_file()
        with pytest.raises(UserError, match=f"no weights for the task {task}"):
            weights_for(task)
