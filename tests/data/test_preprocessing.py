from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gamax.config import DataConfig
from gamax.data.degradations import GaussianNoise
from gamax.data.preprocessing import preprocess


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_paired_images_become_floats_in_step(dtype):
    target = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (16, 8, 8, 3), dtype, endpoint=True)
    batch = {"input": target // 2, "target": target}
    config = DataConfig(dataset="paired_folder", source="unused")
    inputs, targets = jax.jit(partial(preprocess, config=config))(batch, jax.random.key(0))
    assert inputs.dtype == targets.dtype == jnp.float32
    assert 0 <= float(targets.min()) <= float(targets.max()) <= 1
    np.testing.assert_allclose(inputs, targets / 2, atol=0.51 / np.iinfo(dtype).max)
    assert not np.array_equal(targets, target / np.float32(np.iinfo(dtype).max))


def test_without_augmentation_the_pixels_stay_where_they_are():
    target = np.random.default_rng(0).integers(0, 256, (2, 6, 8, 3), np.uint8)
    batch = {"input": 255 - target, "target": target}
    config = DataConfig(dataset="paired_folder", source="unused", augment=False)
    inputs, targets = preprocess(batch, jax.random.key(0), config)
    np.testing.assert_allclose(targets * 255, target, rtol=1e-6)
    np.testing.assert_allclose(inputs * 255, 255 - target, rtol=1e-6)


def test_degradation_makes_the_input_from_the_target():
    batch = {"target": np.full((4, 32, 32, 3), 128, np.uint8)}
    config = DataConfig(degradations=(GaussianNoise((25.0, 25.0)),))
    step = jax.jit(partial(preprocess, config=config))
    inputs, targets = step(batch, jax.random.key(0))
    np.testing.assert_allclose(targets, 128 / 255, rtol=1e-6)
    assert abs(float((inputs - targets).std()) * 255 - 25) < 1
    again, _ = step(batch, jax.random.key(0))
    other, _ = step(batch, jax.random.key(1))
    np.testing.assert_array_equal(inputs, again)
    assert not np.array_equal(inputs, other)


def test_the_noise_does_not_follow_the_augmentation():
    # The keys of the two are independent: the same key with and without turning gives the same noise.
    batch = {"target": jnp.zeros((2, 8, 8, 3), jnp.uint8)}
    noise = [
        preprocess(batch, jax.random.key(0), DataConfig(augment=augment, degradations=(GaussianNoise(),)))[0]
        for augment in (False, True)
    ]
    np.testing.assert_array_equal(noise[0], noise[1])
