from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.test_util import check_grads

from gamax.benchmark.cost import multiply_adds
from gamax.blocks import NAFBlock
from gamax.blocks.pixel_dependent_filter import (
    PixelDependentFilter,
    gathered_filter,
    pixel_dependent_filter,
    shifted_filter,
)
from gamax.errors import UserError

FORMULATIONS = [gathered_filter, shifted_filter]


def example(shape: tuple[int, ...], size: int, bound: int, features: int) -> list[np.ndarray]:
    """Features, offsets between whole pixels and up to the bound, modulation and a kernel, float64."""
    rng, taps = np.random.default_rng(0), size * size
    whole = rng.integers(-bound, max(bound, 1 - bound), (*shape[:3], taps, 2))
    offsets = whole + rng.uniform(0.1, 0.9, whole.shape)
    modulation, kernel = rng.normal(1, 0.5, (*shape[:3], taps)), rng.normal(size=(size, size, shape[3], features))
    return [rng.normal(size=shape), offsets, modulation, kernel]


def by_the_definition(x: np.ndarray, offsets: np.ndarray, modulation: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Pixel by pixel, tap by tap, neighbour by neighbour."""
    batch, height, width, _ = x.shape
    size = len(kernel)
    result = np.zeros((batch, height, width, kernel.shape[3]))
    for image, row, column, i, j in np.ndindex(batch, height, width, size, size):
        down, right = offsets[image, row, column, i * size + j]
        y, z = row + i - size // 2 + down, column + j - size // 2 + right
        value = np.zeros(x.shape[3])
        for k, m in np.ndindex(2, 2):
            a, b = math.floor(y) + k, math.floor(z) + m
            if 0 <= a < height and 0 <= b < width:
                value += (1 - abs(y - a)) * (1 - abs(z - b)) * x[image, a, b]
        result[image, row, column] += modulation[image, row, column, i * size + j] * value @ kernel[i, j]
    return result


def float32(arrays: list[np.ndarray]) -> list[jax.Array]:
    return [jnp.asarray(array, jnp.float32) for array in arrays]


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize(("shape", "size", "bound"), [((2, 5, 4, 3), 3, 2), ((1, 3, 7, 2), 5, 1), ((1, 1, 2, 1), 1, 3)])
def test_it_equals_a_loop_over_pixels_and_taps(shape, size, bound, formulation):
    arrays = example(shape, size, bound, 4)
    # Whole offsets, the bounds among them, where a neighbour changes.
    arrays[1][:, :, ::2] = np.floor(arrays[1][:, :, ::2])
    arrays[1][0, 0, 0] = bound
    expected = by_the_definition(*arrays)
    result = jax.jit(formulation, static_argnums=4)(*float32(arrays), bound)
    np.testing.assert_allclose(result, expected, atol=2e-6 * abs(expected).max())


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_its_gradients_are_those_of_finite_differences(formulation):
    with jax.enable_x64(True):
        arrays = [jnp.asarray(array) for array in example((2, 4, 3, 2), 3, 2, 3)]
        function = jax.jit(lambda *arrays: formulation(*arrays, 2))
        check_grads(function, arrays, order=1, modes=["rev"], atol=1e-8, rtol=1e-8, eps=1e-5)


def test_gathering_is_chosen_on_a_cpu_and_costs_what_a_convolution_does():
    arrays = float32(example((2, 5, 4, 3), 5, 2, 6))
    expected = jax.jit(gathered_filter, static_argnums=4)(*arrays, 2)
    np.testing.assert_array_equal(pixel_dependent_filter(*arrays, 2), expected)
    assert multiply_adds(lambda *arrays: pixel_dependent_filter(*arrays, 2), *arrays) == 2 * 5 * 4 * 25 * 3 * 6


def test_memory_of_its_gradient_holds_no_image_for_every_tap():
    def temporary(size: int) -> int:
        shapes = [(1, 32, 32, 32), (1, 32, 32, size**2, 2), (1, 32, 32, size**2), (size, size, 32, 32)]
        arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        loss = jax.grad(lambda *arrays: jnp.square(pixel_dependent_filter(*arrays, 2)).mean(), (0, 1, 2, 3))
        memory: Any = jax.jit(loss).lower(*arrays).compile().memory_analysis()
        return memory.temp_size_in_bytes

    # A copy of the offsets and the modulation, and of the kernel: an eighth of what the features of a tap would take.
    assert temporary(5) - temporary(3) < (25 - 9) * 4 * (4 * 32**2 + 32 * 32)


@pytest.mark.parametrize(("size", "max_offset"), [(5, 2), (3, 0)])
def test_a_fresh_filter_is_an_ordinary_convolution(size, max_offset):
    x = np.random.default_rng(0).normal(size=(2, 6, 5, 4))
    module = PixelDependentFilter(size, max_offset)
    params = module.init(jax.random.key(0), jnp.asarray(x, jnp.float32))["params"]
    expected = oracles.conv(x, params)
    result = jax.jit(module.apply)({"params": params}, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(result, expected, atol=2e-6 * abs(expected).max())
    heads = {"modulation_head"} | ({"offset_head"} if max_offset else set())
    assert set(params) == {"kernel", "bias"} | heads


@pytest.mark.parametrize("max_offset", [0, 2])
def test_every_pixel_predicts_bounded_offsets_and_weights(max_offset, random_params):
    x = np.random.default_rng(0).normal(size=(1, 5, 4, 3))
    module = PixelDependentFilter(3, max_offset)
    params = random_params(module, x.shape)
    result, state = jax.jit(lambda *arguments: module.apply(*arguments, mutable="intermediates"))(
        {"params": params}, jnp.asarray(x, jnp.float32)
    )
    modulation, offsets = 1 + oracles.conv(x, params["modulation_head"]), np.zeros((1, 5, 4, 9, 2))
    if max_offset:
        offsets = max_offset * np.tanh(oracles.conv(x, params["offset_head"])).reshape(offsets.shape)
    kernel, bias = (np.asarray(params[name], np.float64) for name in ("kernel", "bias"))
    expected = by_the_definition(x, offsets, modulation, kernel) + bias
    np.testing.assert_allclose(result, expected, atol=1e-5 * abs(expected).max())
    np.testing.assert_allclose(state["intermediates"]["offsets"][0], offsets, atol=1e-5)
    np.testing.assert_allclose(state["intermediates"]["modulation"][0], modulation, atol=1e-5)


def test_it_mixes_in_a_naf_block_in_bfloat16(random_params):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 6, 5, 4)), jnp.float32)
    block = NAFBlock(lambda: PixelDependentFilter(3, dtype=jnp.bfloat16), dtype=jnp.bfloat16)
    exact_block = NAFBlock(lambda: PixelDependentFilter(3))
    params = random_params(exact_block, x.shape)

    def loss(params: Any, block: NAFBlock) -> jax.Array:
        return jnp.square(block.apply({"params": params}, x).astype(jnp.float32)).mean()

    exact = jax.jit(lambda params: loss(params, exact_block))(params)
    value, gradients = jax.jit(jax.value_and_grad(lambda params: loss(params, block)))(params)
    assert all(jnp.isfinite(leaf).all() and leaf.any() for leaf in jax.tree.leaves(gradients))
    assert value == pytest.approx(float(exact), rel=0.02)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kernel_size": 4}, "kernel_size of PixelDependentFilter must be odd and at least 1, not 4"),
        ({"max_offset": -1}, "0 pixels or more, not -1"),
    ],
)
def test_what_makes_no_filter_is_named(options, words, random_params):
    with pytest.raises(UserError, match=words):
        random_params(PixelDependentFilter(**options), (1, 4, 4, 2))
