"""Tiles that are averaged with equal weights, as Swintormer's release restores, against a plain loop."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import official
import pytest

from gamax.cli import main
from gamax.data.images import read_image, write_image
from gamax.errors import UserError
from gamax.evaluation.restore_files import restore_files
from gamax.evaluation.restorer import SLIDING_WINDOWS, Restorer, _tile_weights, apply_network
from gamax.interop.key_maps import key_map
from gamax.interop.torch_weights import import_tensors
from gamax.interop.weights import save_weights
from gamax.models.gama_ir import GAMAIR
from gamax.models.swintormer import Swintormer

ROOT = Path(__file__).parents[2]
# With means over the height and width of all it is given, so that every window counts.
GLOBAL = GAMAIR(width=4, depth=3, levels=1, blocks_per_level=1)


@pytest.fixture(scope="module")
def params(random_params):
    return jax.tree.map(lambda leaf: 0.3 * leaf, random_params(GLOBAL, (1, 16, 16, 3)))


def sliding_mean(network: Callable[[np.ndarray], np.ndarray], image: np.ndarray, window: int, step: int) -> np.ndarray:
    """The released recipe: predictions are summed and divided by how many there are of a pixel, then clamped."""
    height, width = image.shape[:2]
    total, hits = np.zeros((height, width, 3)), np.zeros((height, width, 1))
    top = 0
    while True:
        top, left = min(top, height - window), 0
        while True:
            left = min(left, width - window)
            total[top : top + window, left : left + window] += network(image[top : top + window, left : left + window])
            hits[top : top + window, left : left + window] += 1
            if left == width - window:
                break
            left += step
        if top == height - window:
            break
        top += step
    return (total / hits).clip(0, 1)


def test_the_released_sliding_window_gives_our_result(shared_folder):
    config, tensors = official.load(shared_folder / "fixtures/swintormer/swintormer_dim16.safetensors")
    model = Swintormer(
        width=config["dim"],
        blocks=tuple(config["num_blocks"]),
        refinement_blocks=config["num_refinement_blocks"],
        heads=tuple(config["heads"]),
        expansion=config["ffn_expansion_factor"],
        window_size=config["window_size"],
        dual_pixel=True,
    )
    recorded = {name.removeprefix("param."): value for name, value in tensors.items() if name.startswith("param.")}
    params = import_tensors(
        jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 256, 256, 6), np.float32))["params"],
        key_map(model),
        recorded,
        "the network",
    )
    # Windows start at 0, 220 and 244, and at 0 and 20: the last ones are moved back to the border.
    image = np.random.default_rng(0).random((500, 276, 6), np.float32)
    network = jax.jit(model.apply)
    expected = sliding_mean(lambda window: np.asarray(network({"params": params}, window[None])[0]), image, 256, 220)
    before = apply_network._cache_size()
    restored = Restorer(model, params, **SLIDING_WINDOWS["swintormer"])(image)
    assert apply_network._cache_size() - before == 1
    np.testing.assert_allclose(restored.clip(0, 1), expected, atol=1e-5)
    assert np.abs(restored - image[..., :3]).mean() > 1e-3


@pytest.mark.parametrize("size", [(81, 77), (32, 95), (54, 54)])
def test_windows_start_anywhere_and_end_at_the_border(size, params):
    image = np.random.default_rng(1).random((*size, 3), np.float32)
    restorer = Restorer(GLOBAL, params, tile=32, overlap=9, blending="mean")
    expected = sliding_mean(lambda window: Restorer(GLOBAL, params)(window), image, 32, 23)
    np.testing.assert_allclose(restorer(image).clip(0, 1), expected, atol=1e-5)


def test_a_side_shorter_than_a_window_is_padded_as_the_network_pads(params):
    image = np.random.default_rng(2).random((21, 60, 3), np.float32)
    restored = Restorer(GLOBAL, params, tile=32, overlap=9, blending="mean")(image)
    padded = np.pad(image, [(0, 1), (0, 0), (0, 0)], "reflect")
    total, hits = np.zeros(image.shape), np.zeros((1, 60, 1))
    for left in (0, 23, 28):
        total[:, left : left + 32] += Restorer(GLOBAL, params)(padded[:, left : left + 32])[:21]
        hits[:, left : left + 32] += 1
    np.testing.assert_allclose(restored, total / hits, atol=1e-5)


@pytest.mark.parametrize(("size", "tile", "overlap"), [(1680, 256, 36), (257, 256, 36), (70, 32, 15), (100, 32, 0)])
def test_equal_weights_add_up_to_one(size, tile, overlap):
    total, hits = np.zeros(size), np.zeros(size)
    weights = _tile_weights(size, tile, overlap, "mean")
    for start in weights:
        hits[start : start + tile] += 1
    for start, weight in weights.items():
        total[start : start + tile] += weight
        np.testing.assert_allclose(weight, 1 / hits[start : start + tile], rtol=1e-6)
    np.testing.assert_allclose(total, 1, atol=3 * 2**-25)


def test_what_cannot_be_averaged_is_named(params):
    with pytest.raises(UserError, match="blending must be feathered or mean, not 'average'"):
        Restorer(GLOBAL, params, tile=32, blending="average")
    with pytest.raises(UserError, match="overlap must be a number of pixels from 0 to half the tile of 32, not 17"):
        Restorer(GLOBAL, params, tile=32, overlap=17, blending="mean")


def test_the_settings_name_the_blending_only_where_it_is_a_mean(params):
    settings = Restorer(GLOBAL, params, **SLIDING_WINDOWS["swintormer"]).settings()
    assert (settings["tile"], settings["overlap"], settings["blending"]) == (256, 36, "mean")
    # Files in tiles that were restored before there were sliding windows have no such key in their log.
    assert Restorer(GLOBAL, params, tile=32).settings().keys() == settings.keys() - {"blending"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory, params) -> Path:
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_weights(path, params, "gama_ir_tiny", {"width": 4, "depth": 3, "levels": 1, "blocks_per_level": 1})
    return path


@pytest.fixture
def photo(tmp_path) -> Path:
    """Below the size from which `gamax restore` takes tiles by itself."""
    (tmp_path / "photos").mkdir()
    image = np.random.default_rng(3).integers(0, 256, (270, 300, 3), np.uint8)
    write_image(tmp_path / "photos/a.png", image)
    return tmp_path / "photos/a.png"


def test_gamax_restore_has_the_setting(photo, weights, tmp_path, monkeypatch, capsys):
    command = ["restore", photo, "-o", tmp_path / "out", "--weights", weights, "--sliding-window", "swintormer"]
    monkeypatch.setattr(sys, "argv", ["gamax", *map(str, command)])
    main()
    expected = Restorer.from_weights(weights, **SLIDING_WINDOWS["swintormer"])(read_image(photo))
    np.testing.assert_array_equal(read_image(tmp_path / "out/a.png"), expected)
    assert "tiles of 256 pixels, overlap 36, averaged with equal weights;" in capsys.readouterr().out
    (line,) = (tmp_path / "out/restored.jsonl").read_text().splitlines()
    assert json.loads(line)["settings"]["blending"] == "mean"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tile": "256"}, "leave out --tile and --overlap"),
        ({"tile": "whole"}, "leave out --tile and --overlap"),
        ({"overlap": 36}, "leave out --tile and --overlap"),
        ({"sliding_window": "swintorma"}, "unknown sliding window 'swintorma' .did you mean 'swintormer'"),
        ({"rows": 2}, "tile and rows exclude each other"),
    ],
)
def test_the_setting_is_the_only_one(photo, weights, tmp_path, options, words):
    with pytest.raises(UserError, match=words):
        restore_files([photo], tmp_path / "out", weights, **{"sliding_window": "swintormer", **options})
    assert not (tmp_path / "out").exists()


def test_eval_records_the_setting_and_names_its_file_after_it(photo, weights, tmp_path, monkeypatch, capsys):
    script = str(ROOT / "eval.py")

    def score(*options: str) -> None:
        command = [weights, "--protocol", "gauss-color-25", "--data", photo.parent, *options]
        monkeypatch.setattr(sys, "argv", [script, *map(str, command)])
        runpy.run_path(script, run_name="__main__")

    score("--sliding-window", "swintormer")
    (file,) = (weights.parent / "evaluations").glob("*-sliding-window-swintormer.json")
    inference = json.loads(file.read_text())["inference"]
    assert (inference["tile"], inference["overlap"], inference["blending"]) == (256, 36, "mean")
    with pytest.raises(SystemExit):
        score("--sliding-window", "swintormer", "--tile", "32")
    assert "leave out --tile and --overlap" in capsys.readouterr().err
