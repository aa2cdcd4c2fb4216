from __future__ import annotations

import hashlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gamax.data.images import write_image
from gamax.errors import UserError
from gamax.lab.small_training import MOST_SQUARES, TEST_SIDE, Budget, Photographs, load_photographs, train_small
from gamax.lab.small_training import random_crops as crops

BUDGET = Budget(steps=60, batch_size=2, patch_size=16, learning_rate=3e-2)


class OneConvolution(nn.Module):
    """The least that can learn to average."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Conv(3, (5, 5))(x)

    input_channels = 3
    size_multiple = 1


class Dividing(OneConvolution):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Conv(3, (1, 1))(x) / (x - x)


FLAT = np.full((2, 32, 32, 3), 99, np.uint8)
PHOTOGRAPHS = Photographs(FLAT, FLAT[:1], "flat", "0")


def test_photographs_are_cut_into_squares_that_do_not_overlap(tmp_path):
    rng = np.random.default_rng(0)
    images = {
        "train": rng.integers(0, 256, (70, 101, 3), np.uint8),
        "test": rng.integers(0, 256, (150, 300, 3), np.uint8),
    }
    for split, image in images.items():
        (tmp_path / split).mkdir()
        write_image(tmp_path / split / "a.png", image)
    found = load_photographs("clean_folder", str(tmp_path), patch_size=16)
    train, test = images["train"], images["test"]
    expected = [train[top : top + 32, left : left + 32] for top in (0, 32) for left in (0, 32, 64)]
    np.testing.assert_array_equal(found.train, np.stack(expected))
    np.testing.assert_array_equal(found.test, np.stack([test[:128, :128], test[:128, 128:256]]))
    assert found.sha256 == hashlib.sha256(found.train.tobytes() + found.test.tobytes()).hexdigest()
    assert "6 squares of 32 (train)" in found.description
    # Where photographs are too small for squares of twice the crop, they are as large as a crop.
    assert load_photographs("clean_folder", str(tmp_path), patch_size=48).train.shape == (2, 48, 48, 3)
    with pytest.raises(UserError, match="train images of clean_folder must be in colour, with sides of at least 71"):
        load_photographs("clean_folder", str(tmp_path), patch_size=71)


def test_the_photographs_of_the_package_are_those_of_the_quick_start():
    found = load_photographs(patch_size=48)
    assert found.train.shape[1:] == (96, 96, 3)
    assert found.test.shape == (MOST_SQUARES[1], TEST_SIDE, TEST_SIDE, 3)
    # Photographs, neither black nor white.
    assert 50 < found.train.mean() < 200
    assert found.train.std() > 40


def test_crops_are_parts_of_the_squares_and_follow_from_the_key():
    squares = jnp.arange(3 * 8 * 8, dtype=jnp.uint8).reshape(3, 8, 8, 1)
    found = np.asarray(crops(jax.random.key(1), squares, 64, 5))
    possible = {
        np.asarray(squares)[index, top : top + 5, left : left + 5].tobytes()
        for index in range(3)
        for top in range(4)
        for left in range(4)
    }
    assert {crop.tobytes() for crop in found} <= possible
    assert len({crop.tobytes() for crop in found}) > 25
    np.testing.assert_array_equal(found, crops(jax.random.key(1), squares, 64, 5))


def test_a_training_follows_from_its_seed_and_is_scored_on_the_way():
    first, again, other = (train_small(OneConvolution(), PHOTOGRAPHS, "denoise", BUDGET, seed) for seed in (0, 0, 1))
    assert first == again
    assert first["psnr"] != other["psnr"]
    assert [step for step, _ in first["curve"]] == [12, 24, 36, 48, 60]
    assert first["curve"][-1][1] == first["psnr"]
    # The held-out squares are degraded in the same way whatever the seed; sigma 25 is 20.17 dB.
    assert first["psnr_input"] == other["psnr_input"] == pytest.approx(20.17, abs=0.4)
    assert (first["images"], first["skipped"]) == (120, 0)
    assert first["psnr"] > first["psnr_input"] + 3


def test_a_network_that_gives_no_numbers_has_no_psnr():
    found = train_small(Dividing(), PHOTOGRAPHS, "derain", BUDGET, 0)
    assert (found["psnr"], found["loss"], found["skipped"]) == (None, None, 60)


def test_what_makes_no_training_is_refused():
    with pytest.raises(UserError, match="unknown task 'deblur'"):
        train_small(OneConvolution(), PHOTOGRAPHS, "deblur", BUDGET, 0)
    with pytest.raises(UserError, match="a training needs steps"):
        Budget(steps=0)
    with pytest.raises(UserError, match="clean_folder"):
        load_photographs("clean_folder", None)
