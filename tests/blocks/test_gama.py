from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from gamax.blocks import GAMA
from gamax.errors import UserError
from gamax.models import count_parameters

KERNELS = ("channel_kernel", "height_kernel", "width_kernel")


def shapes(x: jax.Array, **options: object) -> dict[str, jax.ShapeDtypeStruct]:
    return jax.eval_shape(GAMA(**options).init, jax.random.key(0), x)["params"]


@pytest.mark.parametrize("shape", [(1, 8, 8, 1), (1, 2, 3, 5), (2, 9, 4, 80)])
def test_it_has_147_parameters_whatever_the_size(shape):
    params = shapes(jnp.ones(shape))
    assert count_parameters(params) == 147
    assert {name: value.shape for name, value in params.items()} == dict.fromkeys(KERNELS, (7, 7))


@pytest.mark.parametrize("size", [1, 3, 5, 9])
def test_a_kernel_of_side_k_costs_3_k_squared_parameters(size):
    assert count_parameters(shapes(jnp.ones((1, 8, 8, 4)), kernel_size=size)) == 3 * size**2


@pytest.mark.parametrize("shape", [(2, 9, 5, 6), (1, 3, 11, 2), (1, 1, 4, 8)])
@pytest.mark.parametrize("size", [3, 7])
def test_it_equals_the_formula_on_sides_that_differ(shape, size, random_params):
    x = np.random.default_rng(1).normal(size=shape)
    params = random_params(GAMA(size), shape)
    result = jax.jit(GAMA(size).apply)({"params": params}, jnp.asarray(x, jnp.float32))
    # Float32 sums of some 150 products of magnitude one.
    np.testing.assert_allclose(result, oracles.gama(x, params), atol=1e-5)


def test_a_constant_input_with_averaging_kernels_gives_the_known_values():
    params = {name: jnp.full((7, 7), 1 / 49) for name in KERNELS}
    result = jax.jit(GAMA().apply)({"params": params}, jnp.ones((1, 8, 8, 8)))[0]
    np.testing.assert_allclose(result[3, 3, 3], 4, rtol=1e-6)
    np.testing.assert_allclose(result[0, 0, 0], 1 + 3 * 16 / 49, rtol=1e-6)


def test_zero_kernels_make_it_the_identity():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 6, 4)), jnp.float32)
    params = {name: jnp.zeros((7, 7)) for name in KERNELS}
    np.testing.assert_array_equal(jax.jit(GAMA().apply)({"params": params}, x), x)


@pytest.mark.parametrize(("name", "axis"), [("channel", 3), ("height", 1), ("width", 2)])
def test_each_kernel_adds_a_map_that_is_constant_along_its_own_axis(name, axis):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(1, 6, 7, 8)), jnp.float32)
    kernel = jnp.asarray(rng.normal(0, 0.3, (7, 7)), jnp.float32)
    params = {key: kernel if key == f"{name}_kernel" else jnp.zeros((7, 7)) for key in KERNELS}
    added = np.asarray(jax.jit(GAMA().apply)({"params": params}, x)) - np.asarray(x)
    # The sum and the difference round to float32 at magnitude 4.
    assert np.ptp(added, axis).max() < 2e-6
    assert all(np.ptp(added, other).max() > 1e-2 for other in {1, 2, 3} - {axis})


def test_bfloat16_means_are_taken_in_float32():
    # A bfloat16 running sum of ones sticks at 256, so a mean over 1024 rows would be 0.25.
    x = jnp.ones((1, 1024, 1, 1), jnp.bfloat16)
    params = {name: jnp.zeros((7, 7)) for name in KERNELS}
    params["height_kernel"] = jnp.asarray(np.eye(49)[24].reshape(7, 7), jnp.float32)
    result = jax.jit(GAMA(dtype=jnp.bfloat16).apply)({"params": params}, x)
    assert result.dtype == jnp.bfloat16
    np.testing.assert_array_equal(result.astype(jnp.float32), 2)


@pytest.mark.parametrize("window", [1, 4, 7])
def test_local_means_equal_the_formula_on_windows(window, random_params):
    x = np.random.default_rng(1).normal(size=(2, 9, 5, 6))
    params = random_params(GAMA(3), x.shape)
    result = jax.jit(GAMA(3, window).apply)({"params": params}, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(result, oracles.gama(x, params, window), atol=1e-5)


def test_a_window_that_covers_the_image_changes_nothing(random_params):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(1, 6, 5, 4)), jnp.float32)
    params = random_params(GAMA(3), x.shape)
    local, whole = (jax.jit(GAMA(3, window).apply)({"params": params}, x) for window in (6, None))
    np.testing.assert_array_equal(local, whole)


@pytest.mark.parametrize("axes", [("channel",), ("width", "height"), ("channel", "height", "width")])
@pytest.mark.parametrize("combine", ["add", "multiply"])
def test_the_switches_for_ablations_leave_out_means_and_gate(axes, combine, random_params):
    shape = (2, 6, 5, 4)
    x = np.random.default_rng(1).normal(size=shape)
    block = GAMA(3, axes=axes, combine=combine)
    params = random_params(block, shape)
    assert params.keys() == {f"{axis}_kernel" for axis in axes}
    whole = {f"{axis}_kernel": np.zeros((3, 3)) for axis in ("channel", "height", "width")} | params
    maps = oracles.gama(x, whole) - x
    expected = x + maps if combine == "add" else x / (1 + np.exp(-maps))
    result = jax.jit(block.apply)({"params": params}, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"axes": ("depth",)}, "GAMA has no axis 'depth'"),
        ({"axes": ()}, "one to three different axes"),
        ({"axes": ("width", "width")}, "one to three different axes"),
        ({"combine": "mul"}, "unknown combine 'mul' .valid: add, multiply. of GAMA"),
    ],
)
def test_switches_that_there_are_not_are_refused(options, sentence):
    with pytest.raises(UserError, match=sentence):
        shapes(jnp.ones((1, 4, 4, 2)), **options)
