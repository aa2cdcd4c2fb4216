from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from gamax.blocks import MIXERS, NonLocal, SqueezeExcite
from gamax.errors import UserError
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


@pytest.mark.parametrize(("size", "subsample"), [((6, 4), 2), ((5, 3), 2), ((4, 7), 3), ((2, 3), 4)])
def test_non_local_attends_to_the_maxima_of_squares_of_keys_and_of_values(size, subsample, random_params):
    x = np.random.default_rng(0).normal(size=(2, *size, 6))
    params = random_params(NonLocal(), x.shape)
    query, key, value = (oracles.pointwise(x, params[name]) for name in ("query", "key", "value"))
    starts = [(row, column) for row in range(0, size[0], subsample) for column in range(0, size[1], subsample)]

    def maxima(y: np.ndarray) -> np.ndarray:
        squares = [y[:, row : row + subsample, column : column + subsample] for row, column in starts]
        return np.stack([square.max((1, 2)) for square in squares], axis=1)

    logits = np.einsum("bhwc,bkc->bhwk", query, maxima(key))
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    attended = np.einsum("bhwk,bkc->bhwc", weights, maxima(value))
    expected = x + oracles.pointwise(attended, params["projection"])
    result = jax.jit(NonLocal(subsample=subsample).apply)({"params": params}, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(result, expected, atol=1e-5 * abs(expected).max())


def test_non_local_subsampled_has_a_gradient_and_works_in_bfloat16(random_params):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 5, 4, 8)), jnp.float32)
    params = random_params(NonLocal(), x.shape)

    def loss(params: Any, dtype: Any) -> jax.Array:
        return jnp.square(NonLocal(subsample=2, dtype=dtype).apply({"params": params}, x)).mean()

    exact, gradients = jax.jit(jax.value_and_grad(lambda params: loss(params, jnp.float32)))(params)
    assert all(jnp.isfinite(leaf).all() and leaf.any() for leaf in jax.tree.leaves(gradients))
    assert jax.jit(lambda params: loss(params, jnp.bfloat16))(params) == pytest.approx(float(exact), rel=0.05)


def test_non_local_refuses_more_pixels_than_it_may_take(random_params):
    random_params(NonLocal(max_pixels=20), (1, 5, 4, 4))
    with pytest.raises(ValueError, match=r"5x4 pixels.*max_pixels \(now 19\)"):
        random_params(NonLocal(max_pixels=19), (1, 5, 4, 4))


def test_non_local_counts_queries_times_keys(random_params):
    # 20 queries and 3 x 2 keys: 120 entries.
    random_params(NonLocal(max_pixels=11, subsample=2), (1, 5, 4, 4))
    with pytest.raises(UserError, match=r"20 x 6 matrix.*max_pixels \(now 10\).*subsample \(now 2\)"):
        random_params(NonLocal(max_pixels=10, subsample=2), (1, 5, 4, 4))
    with pytest.raises(UserError, match="subsample of at least 1, not 0"):
        random_params(NonLocal(subsample=0), (1, 5, 4, 4))
