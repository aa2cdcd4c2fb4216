from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import official
import oracles
import pytest
from scipy.ndimage import gaussian_filter1d

from gamax.blocks.adaptive_filter import AdaptiveFilter, gaussian_blur
from gamax.errors import UserError
from gamax.interop.key_maps import key_map
from gamax.models.lir import LIR


@pytest.mark.parametrize(("name", "tolerance"), [("filters_dim16", 2e-5), ("filters_dim16_large_alpha", 1e-5)])
def test_it_reproduces_the_official_filter(shared_folder, name, tolerance):
    _, tensors = official.load(shared_folder / f"fixtures/lir/{name}.safetensors")
    official.check(AdaptiveFilter(), tensors, tolerance, key_map(LIR()))


@pytest.mark.parametrize("size", [(8, 8), (9, 21)])
def test_it_equals_numpy(size, random_params):
    x = np.random.default_rng(0).normal(size=(2, *size, 3))
    params = random_params(AdaptiveFilter(), x.shape)
    # Weights at which every edge filter shows.
    params["filter_weights"] *= jnp.where(jnp.arange(9) < 8, 1e3, 1)
    expected = oracles.adaptive_filter(x, params)
    result = jax.jit(AdaptiveFilter().apply)({"params": params}, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(result, expected, atol=1e-5 * abs(expected).max())


def test_a_fresh_filter_is_the_high_pass_and_a_touch_of_edges():
    x = np.random.default_rng(0).random((1, 20, 16, 2))
    result, variables = AdaptiveFilter().init_with_output(jax.random.key(0), jnp.asarray(x, jnp.float32))
    assert [leaf.shape for leaf in jax.tree.leaves(variables)] == [(9,), (1,)]
    high_pass = x - oracles.gaussian_filter(x, 5, radius=7, mode="mirror", axes=(1, 2))
    assert 1e-3 < abs(result - high_pass).max() < 0.05


@pytest.mark.parametrize("size", [(8, 9), (24, 15)])
def test_the_gradient_of_the_blur_is_its_transpose(size):
    grad = np.random.default_rng(0).normal(size=(1, *size, 2))
    rows, columns = (gaussian_filter1d(np.eye(side), 5, axis=0, radius=7, mode="mirror") for side in size)
    expected = np.einsum("hk,bhwc,wl->bklc", rows, grad, columns)
    x = jnp.zeros(grad.shape, jnp.bfloat16)
    pull_back = jax.vjp(gaussian_blur, x.astype(jnp.float32))[1]
    np.testing.assert_allclose(pull_back(jnp.asarray(grad, jnp.float32))[0], expected, atol=1e-6)
    assert jax.vjp(gaussian_blur, x)[1](jnp.asarray(grad, jnp.float32))[0].dtype == jnp.bfloat16


def test_gradients_belong_to_the_filters(random_params):
    rng = np.random.default_rng(0)
    x, grad = (jnp.asarray(rng.normal(size=(1, 10, 9, 3)), jnp.float32) for _ in range(2))
    params = random_params(AdaptiveFilter(), x.shape)

    @jax.jit
    def inner_product(params, x):
        return (AdaptiveFilter().apply({"params": params}, x) * grad).sum()

    gradients, grad_x = jax.jit(jax.grad(inner_product, (0, 1)))(params, x)
    # Linear in the weights as in the image.
    total = inner_product(params, x)
    assert (grad_x * x).sum() == pytest.approx(float(total), abs=1e-4)
    nothing = jax.tree.map(jnp.zeros_like, params)
    for index in range(9):
        alone = {**nothing, "filter_weights": nothing["filter_weights"].at[index].set(1)}
        assert gradients["filter_weights"][index] == pytest.approx(float(inner_product(alone, x)), abs=1e-4)
    assert gradients["identity_weight"][0] == pytest.approx(float((x * grad).sum()), abs=1e-4)


def test_small_differences_survive_bfloat16(random_params):
    x = 1 + jnp.asarray(np.random.default_rng(0).normal(0, 0.02, (1, 16, 16, 4)), jnp.bfloat16)
    params = random_params(AdaptiveFilter(), x.shape)
    params = {**params, "identity_weight": jnp.zeros(1)}
    exact = jax.jit(AdaptiveFilter(dtype=jnp.float32).apply)({"params": params}, x)
    rounded = jax.jit(AdaptiveFilter(dtype=jnp.bfloat16).apply)({"params": params}, x)
    assert rounded.dtype == jnp.bfloat16
    np.testing.assert_allclose(rounded.astype(jnp.float32), exact, rtol=2**-8, atol=1e-6)


def test_sides_that_cannot_be_reflected_are_refused():
    with pytest.raises(UserError, match="sides of at least 8 pixels, not 7x16"):
        jax.eval_shape(AdaptiveFilter().init, jax.random.key(0), jnp.zeros((1, 7, 16, 1)))
