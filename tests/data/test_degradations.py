from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gamax.data.degradations import gaussian_noise


@pytest.mark.parametrize("sigma", [15.0, 25.0, 50.0])
def test_noise_has_the_asked_mean_and_deviation(sigma):
    images = jnp.full((4, 64, 64, 3), 0.5)
    noise = np.asarray(jax.jit(gaussian_noise, static_argnums=2)(jax.random.key(0), images, (sigma, sigma)) - images)
    assert noise.dtype == np.float32
    assert abs(noise.mean() * 255) < 0.02 * sigma
    np.testing.assert_allclose(noise.std(axis=(1, 2, 3)) * 255, sigma, rtol=0.03)
    normalised = noise / noise.std()
    assert abs((normalised**3).mean()) < 0.05
    assert abs((normalised**4).mean() - 3) < 0.1


def test_noise_is_white_and_differs_between_images_and_channels():
    noise = gaussian_noise(jax.random.key(0), jnp.zeros((2, 64, 64, 3)), (25.0, 25.0)) * 255 / 25
    pairs = [(noise[0], noise[1]), (noise[..., 0], noise[..., 1]), (noise[:, 1:], noise[:, :-1])]
    for left, right in pairs:
        assert abs(float((left * right).mean())) < 0.03


def test_noise_is_not_clipped():
    images = jnp.concatenate([jnp.zeros((1, 32, 32, 3)), jnp.ones((1, 32, 32, 3))])
    noisy = gaussian_noise(jax.random.key(0), images, (25.0, 25.0))
    assert float(noisy.min()) < -0.1
    assert float(noisy.max()) > 1.1


def test_each_image_draws_its_deviation_from_the_range():
    noise = gaussian_noise(jax.random.key(0), jnp.zeros((400, 24, 24, 3)), (10.0, 50.0))
    deviations = np.asarray(noise).std(axis=(1, 2, 3)) * 255
    # Each is measured from 1728 samples, within about 5 %.
    assert deviations.min() > 9
    assert deviations.max() < 54
    np.testing.assert_allclose(np.quantile(deviations, [0.25, 0.5, 0.75]), [20, 30, 40], atol=4)


def test_the_key_decides_and_vmap_agrees():
    images = jnp.zeros((2, 3, 8, 8, 3))
    keys = jax.random.split(jax.random.key(5), 2)
    noisy = jax.vmap(gaussian_noise, in_axes=(0, 0, None))(keys, images, (5.0, 20.0))
    assert not np.array_equal(noisy[0], noisy[1])
    for i in range(2):
        np.testing.assert_allclose(noisy[i], gaussian_noise(keys[i], images[i], (5.0, 20.0)), rtol=1e-6)


def test_degradations_and_augmentations_need_jax_alone():
    program = (
        "import sys, gamax.data.augmentations, gamax.data.degradations;"
        "print([name for name in ('cv2', 'grain', 'skimage', 'tensorflow_datasets') if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"
