from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from gamax.benchmark.cost import Cost, cost, model_cost, model_multiply_adds, multiply_adds
from gamax.blocks import adaptive_filter, depthwise_conv
from gamax.blocks.convolution import conv as convolve
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
    costs = [model_cost(model, abstract_params(model), 32, 48, batch) for batch in (1, 3)]
    assert costs[1].multiply_adds == 3 * costs[0].multiply_adds > 0
    assert costs[1].activations == 3 * costs[0].activations
    # Parameters are read once for the whole batch.
    assert costs[0].product_bytes < costs[1].product_bytes < 3 * costs[0].product_bytes
    assert costs[1].depth == costs[0].depth


def test_lir_costs_what_is_published_when_its_fixed_filters_are_convolutions(monkeypatch):
    """The authors' code convolves with the Gaussian's 15x15 taps, and with eight edge filters one after the other."""

    def blur(images: jax.Array) -> jax.Array:
        return convolve(images, jnp.zeros((15, 15, 1, images.shape[-1])))

    def edges(images: jax.Array, kernel: jax.Array) -> jax.Array:
        return sum(depthwise_conv(images, kernel) for _ in range(8))

    monkeypatch.setattr(adaptive_filter, "gaussian_blur", blur)
    monkeypatch.setattr(adaptive_filter, "depthwise_conv", edges)
    model = create_model("lir")
    # The count with merged edge filters, 63.39, is in tests/models/test_lir.py.
    assert model_multiply_adds(model, abstract_params(model, 128), 256, 256) / 1e9 == pytest.approx(64.89, abs=0.006)


def test_layers_count_what_they_write_and_what_they_move():
    def two_layers(x: jax.Array, kernel: jax.Array, matrix: jax.Array) -> jax.Array:
        return jnp.tanh(convolve(x, kernel, 2)) @ matrix

    counted = cost(two_layers, shape(2, 8, 6, 3), shape(3, 3, 3, 5), shape(5, 7))
    assert counted == Cost(
        multiply_adds=2 * 4 * 3 * 5 * 27 + 2 * 4 * 3 * 5 * 7,
        activations=2 * 4 * 3 * 5 + 2 * 4 * 3 * 7,
        product_bytes=4 * (2 * 8 * 6 * 3 + 27 * 5 + 2 * 4 * 3 * 5 + 2 * 4 * 3 * 5 + 5 * 7 + 2 * 4 * 3 * 7),
        depth=2,
    )
    half = [jax.ShapeDtypeStruct(sizes, jnp.bfloat16) for sizes in ((2, 8, 6, 3), (3, 3, 3, 5), (5, 7))]
    assert 2 * cost(two_layers, *half).product_bytes == counted.product_bytes


def test_scanned_blocks_cost_what_unrolled_ones_do():
    model = create_model("gama_ir_tiny")
    images = shape(1, 32, 48, 3)
    unrolled = cost(lambda params, images: model.apply({"params": params}, images), abstract_params(model), images)
    assert model_cost(model, abstract_params(model), 32, 48) == unrolled


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


def test_what_is_computed_for_one_kind_of_device_alone_does_not_count():
    def function(x: jax.Array) -> jax.Array:
        return lax.platform_dependent(x, cpu=lambda x: x @ x @ x, default=lambda x: x @ x)

    assert cost(function, shape(4, 4)) == cost(jnp.matmul, shape(4, 4), shape(4, 4))


def test_a_gradient_of_its_own_does_not_count():
    @jax.custom_vjp
    def function(x: jax.Array) -> jax.Array:
        return x @ x

    function.defvjp(lambda x: (x @ x @ x, x), lambda x, grad: (grad @ x @ x,))
    assert multiply_adds(function, shape(4, 4)) == 4**3
    # But where a gradient is taken, what it computes does.
    assert multiply_adds(jax.grad(lambda x: function(x).sum()), shape(4, 4)) == 4 * 4**3
