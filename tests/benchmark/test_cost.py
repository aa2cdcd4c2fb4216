from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from gamax.benchmark.cost import model_multiply_adds, multiply_adds
from gamax.blocks import depthwise_conv
from gamax.models import abstract_params, create_model


def shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


@pytest.mark.parametrize(
    ("name", "options", "billions"),
    [
        ("gama_ir_s", {}, 14.204),
        ("gama_ir_l", {}, 53.073),
        ("gama_ir_s", {"levels": 3}, 13.921),
        ("gama_ir_l", {"levels": 3}, 52.042),
    ],
)
def test_networks_cost_what_the_specification_says(name, options, billions):
    model = create_model(name, **options)
    assert round(model_multiply_adds(model, abstract_params(model), 256, 256) / 1e9, 3) == billions


def test_the_cost_grows_with_the_batch():
    model = create_model("gama_ir_tiny")
    costs = [model_multiply_adds(model, abstract_params(model), 32, 48, batch) for batch in (1, 3)]
    assert costs[1] == 3 * costs[0] > 0


conv = partial(lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.mark.parametrize(
    ("function", "shapes", "expected"),
    [
        (jnp.dot, [shape(3, 5), shape(5, 7)], 3 * 5 * 7),
        (jnp.dot, [shape(5), shape(5)], 5),
        (jnp.matmul, [shape(2, 3, 5), shape(2, 5, 7)], 2 * 3 * 5 * 7),
        (partial(jnp.einsum, "bqc,bkc->bqk"), [shape(2, 6, 4), shape(2, 9, 4)], 2 * 6 * 9 * 4),
        (
            partial(conv, window_strides=(1, 1), padding="SAME"),
            [shape(2, 8, 9, 3), shape(3, 3, 3, 5)],
            2 * 8 * 9 * 5 * 27,
        ),
        (
            partial(conv, window_strides=(1, 1), padding="VALID"),
            [shape(1, 8, 9, 3), shape(3, 3, 3, 5)],
            6 * 7 * 5 * 27,
        ),
        (
            partial(conv, window_strides=(2, 2), padding=[(1, 1), (1, 1)]),
            [shape(1, 8, 6, 3), shape(3, 3, 3, 5)],
            4 * 3 * 5 * 27,
        ),
        (
            partial(conv, window_strides=(1, 1), padding="SAME", feature_group_count=4),
            [shape(1, 8, 9, 12), shape(3, 3, 3, 8)],
            8 * 9 * 8 * 27,
        ),
        # A transposed convolution: every input meets every tap of the 4x4 kernel once.
        (
            partial(lax.conv_transpose, strides=(2, 2), padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")),
            [shape(2, 5, 6, 3), shape(4, 4, 3, 7)],
            2 * 5 * 6 * 4 * 4 * 3 * 7,
        ),
        (lambda x: x * 2 + jnp.exp(x).mean(), [shape(4, 4)], 0),
    ],
    ids=["dot", "vectors", "batched", "einsum", "conv", "valid", "strided", "grouped", "transposed", "element-wise"],
)
def test_operations_cost_their_definition(function, shapes, expected):
    assert multiply_adds(function, *shapes) == expected
    assert multiply_adds(jax.jit(function), *shapes) == expected
    assert multiply_adds(jax.checkpoint(function), *shapes) == expected


def test_a_scan_costs_as_often_as_it_runs():
    def function(x: jax.Array, matrix: jax.Array) -> jax.Array:
        return lax.scan(lambda carry, _: (matrix @ carry, None), x, length=6)[0]

    assert multiply_adds(function, shape(5), shape(5, 5)) == 6 * 25


def test_a_choice_costs_its_dearest_branch():
    def function(x: jax.Array) -> jax.Array:
        return lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x @ x @ x, x)

    assert multiply_adds(function, shape(4, 4)) == 2 * 4**3


def test_vmap_multiplies():
    assert multiply_adds(jax.vmap(jnp.dot, (0, None)), shape(7, 5), shape(5)) == 35


def test_the_depthwise_convolution_counts_once_however_it_is_computed():
    shapes = [shape(2, 6, 7, 8), shape(3, 3, 1, 8)]
    assert multiply_adds(depthwise_conv, *shapes) == 2 * 6 * 7 * 8 * 9
    assert multiply_adds(jax.jit(depthwise_conv), *shapes) == 2 * 6 * 7 * 8 * 9
