from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from gamax.blocks import MIXERS, NonLocal, SqueezeExcite
from gamax.blocks.attention import window_mean
from gamax.models import count_parameters

FORMULAS = {
    "squeeze_excite": lambda c: 2 * c * (c // 16) + c // 16 + c,
    "sca": lambda c: c**2 + c,
    "non_local": lambda c: 2 * c**2 + 5 * c // 2,
    "gama": lambda c: 147,
}


@pytest.mark.parametrize("channels", [16, 42, 80])
@pytest.mark.parametrize("name", FORMULAS)
def test_parameters_follow_the_formula(name, channels):
    variables = jax.eval_shape(
        MIXERS[name]().init, jax.random.key(0), jax.ShapeDtypeStruct((1, 4, 4, channels), np.float32)
    )
    assert count_parameters(variables["params"]) == FORMULAS[name](channels)


@pytest.mark.parametrize("name", ["squeeze_excite", "sca", "non_local"])
def test_it_equals_numpy(name, random_params):
    x = np.random.default_rng(0).normal(size=(2, 5, 3, 32))
    mixer = MIXERS[name]()
    params = random_params(mixer, x.shape)
    expected = oracles.MIXERS[name](x, params)
    # Non-local: logits of magnitude 10 and their exponentials in float32.
    tolerance = 2e-5 * abs(expected).max()
    result = jax.jit(mixer.apply)({"params": params}, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(result, expected, atol=tolerance)


@pytest.mark.parametrize(("channels", "reduction", "hidden"), [(32, 2, 16), (42, 16, 2), (8, 16, 1)])
def test_squeeze_excite_reduces_to_at_least_one_channel(channels, reduction, hidden, random_params):
    params = random_params(SqueezeExcite(reduction), (1, 2, 2, channels))
    assert params["squeeze"]["kernel"].shape == (1, 1, channels, hidden)


def test_non_local_starts_as_the_identity():
    x = jax.random.normal(jax.random.key(0), (1, 4, 5, 6))
    np.testing.assert_array_equal(jax.jit(NonLocal().init_with_output)(jax.random.key(1), x)[0], x)


def test_non_local_refuses_more_pixels_than_it_may_take(random_params):
    random_params(NonLocal(max_pixels=20), (1, 5, 4, 4))
    with pytest.raises(ValueError, match=r"5x4 pixels.*max_pixels \(now 19\)"):
        random_params(NonLocal(max_pixels=19), (1, 5, 4, 4))


@pytest.mark.parametrize(("height", "width", "window"), [(9, 12, 4), (9, 12, 5), (9, 12, 10), (3, 40, 7), (6, 6, 1)])
def test_window_means_equal_a_loop(height, width, window):
    x = np.random.default_rng(0).normal(size=(2, height, width, 3))
    expected = np.empty_like(x)
    for row in range(height):
        for column in range(width):
            starts = []
            for position, side in ((row, height), (column, width)):
                size = min(window, side)
                starts.append((min(max(position - (size - 1) // 2, 0), side - size), size))
            (top, rows), (left, columns) = starts
            expected[:, row, column] = x[:, top : top + rows, left : left + columns].mean((1, 2))
    np.testing.assert_allclose(window_mean(jnp.asarray(x, jnp.float32), window), expected, atol=1e-5)


def test_a_window_as_large_as_the_image_is_the_image():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 7, 3)), jnp.float32)
    for window in (None, 7, 100):
        np.testing.assert_allclose(window_mean(x, window), x.mean((1, 2), keepdims=True), atol=1e-6)
