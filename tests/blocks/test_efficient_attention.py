from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from gamax.benchmark.cost import multiply_adds
from gamax.blocks import NAFBlock
from gamax.blocks.efficient_attention import EfficientAttention
from gamax.errors import UserError


def params_for(module: EfficientAttention, *arrays: np.ndarray) -> Any:
    shapes = [jax.ShapeDtypeStruct(array.shape, jnp.float32) for array in arrays]
    abstract = jax.eval_shape(module.init, jax.random.key(0), *shapes)["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32), abstract)


@pytest.mark.parametrize("source_shape", [None, (2, 3, 7, 10)])
def test_it_equals_its_matrix_of_pixels_by_pixels(source_shape):
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape) for shape in ((2, 5, 4, 6), source_shape) if shape]
    x, source = arrays[0], arrays[-1]
    module = EfficientAttention(5)
    params = params_for(module, *arrays)
    apply = jax.jit(lambda *inputs: module.apply({"params": params}, *inputs, mutable="intermediates"))
    result, state = apply(*(jnp.asarray(array, jnp.float32) for array in arrays))

    mask = 1 / (1 + np.exp(-oracles.pointwise(source, params["mask_head"])))
    key, value = (
        oracles.pointwise(mask * source, params[name]).reshape(2, -1, n) for name, n in (("key", 5), ("value", 6))
    )
    key_map = oracles.softmax(key, 1)
    query_map = oracles.softmax(oracles.pointwise(x, params["query"]).reshape(2, 20, 5), 2)
    matrix = query_map @ key_map.swapaxes(1, 2)
    np.testing.assert_allclose(matrix.sum(2), 1)
    expected = oracles.pointwise((matrix @ value).reshape(x.shape), params["output"])
    np.testing.assert_allclose(result, expected, atol=1e-6 * abs(expected).max())
    for name, array in (("mask", mask), ("key_map", key_map), ("query_map", query_map)):
        sown = state["intermediates"][name][0]
        assert sown.shape[:3] == (x if name == "query_map" else source).shape[:3]
        np.testing.assert_allclose(np.reshape(sown, array.shape), array, atol=1e-6)


@pytest.mark.parametrize(("channels", "descriptors"), [(8, 16), (128, 32)])
def test_its_cost_grows_linearly_with_the_pixels_of_both_images(channels, descriptors):
    module = EfficientAttention()

    def count(pixels: int, source_pixels: int) -> int:
        shapes = (1, pixels, 1, channels), (1, source_pixels, 1, channels)
        x, source = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
        variables = jax.eval_shape(module.init, jax.random.key(0), x, source)
        return multiply_adds(module.apply, variables, x, source)

    query = channels * (2 * descriptors + channels)
    assert count(7, 9) == 7 * query + 9 * (query + channels)
    assert count(7_000_000, 9_000_000) == 1_000_000 * count(7, 9)


def test_it_mixes_in_a_naf_block_in_bfloat16(random_params):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 6, 5, 4)), jnp.float32)
    block = NAFBlock(lambda: EfficientAttention(dtype=jnp.bfloat16), dtype=jnp.bfloat16)
    exact_block = NAFBlock(EfficientAttention)
    params = random_params(exact_block, x.shape)

    def loss(params: Any, block: NAFBlock) -> jax.Array:
        return jnp.square(block.apply({"params": params}, x).astype(jnp.float32)).mean()

    exact = jax.jit(lambda params: loss(params, exact_block))(params)
    value, gradients = jax.jit(jax.value_and_grad(lambda params: loss(params, block)))(params)
    assert value == pytest.approx(float(exact), rel=0.02)
    # What is added to all keys of a descriptor, its bias, does not change the soft-max.
    key_bias = gradients["mixing"]["key"].pop("bias")
    assert abs(key_bias).max() < 1e-3
    assert all(jnp.isfinite(leaf).all() and leaf.any() for leaf in jax.tree.leaves(gradients))


def test_it_needs_a_descriptor(random_params):
    with pytest.raises(UserError, match="at least one descriptor, not 0"):
        random_params(EfficientAttention(0), (1, 4, 4, 2))
