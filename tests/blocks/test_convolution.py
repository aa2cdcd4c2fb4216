from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from scipy.stats import kstest

from gamax.blocks import Conv, ConvTranspose, depthwise_conv
from gamax.blocks.convolution import conv, doubling_conv
from gamax.errors import UserError
from gamax.training.program import collectives

SHAPES = [((2, 7, 5, 3), 3), ((1, 11, 6, 4), 7), ((1, 1, 1, 2), 3), ((1, 2, 9, 1), 5)]


def grouped_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    reach = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        [(reach, reach)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def example(shape: tuple[int, ...], size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=shape), rng.normal(size=(size, size, 1, shape[-1])), rng.normal(size=shape)


def gradients_by_the_definition(x: np.ndarray, kernel: np.ndarray, grad: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each output is a sum of products: hand its gradient to both factors of each."""
    grad_x, grad_kernel, reach = np.zeros(x.shape), np.zeros(kernel.shape), kernel.shape[0] // 2
    _, height, width, channels = x.shape
    for image, row, column, c in np.ndindex(len(x), height, width, channels):
        for i, j in np.ndindex(kernel.shape[:2]):
            y, z = row + i - reach, column + j - reach
            if 0 <= y < height and 0 <= z < width:
                grad_x[image, y, z, c] += kernel[i, j, 0, c] * grad[image, row, column, c]
                grad_kernel[i, j, 0, c] += x[image, y, z, c] * grad[image, row, column, c]
    return grad_x, grad_kernel


def value_and_gradients(function: Callable[..., jax.Array]) -> Callable[..., Any]:
    def compute(x: jax.Array, kernel: jax.Array, grad: jax.Array) -> Any:
        result, pull_back = jax.vjp(function, x, kernel)
        return result, pull_back(grad)

    return jax.jit(compute)


def float32(*arrays: np.ndarray) -> list[jax.Array]:
    return [jnp.asarray(array, jnp.float32) for array in arrays]


@pytest.fixture(params=["several devices, as in the tests", "one device", "grouped, as on accelerators"])
def formulation(request, monkeypatch):
    if request.param.startswith("grouped"):
        monkeypatch.setattr(lax, "platform_dependent", lambda *arguments, default, **_: default(*arguments))
    if request.param == "one device":
        monkeypatch.setattr(jax, "device_count", lambda: 1)


@pytest.mark.usefixtures("formulation")
@pytest.mark.parametrize(("shape", "size"), SHAPES)
def test_depthwise_conv_and_its_gradients_equal_the_definition(shape, size):
    x, kernel, grad = example(shape, size)
    result, (grad_x, grad_kernel) = value_and_gradients(depthwise_conv)(*float32(x, kernel, grad))
    expected_x, expected_kernel = gradients_by_the_definition(x, kernel, grad)
    # Float32 sums of up to 70 products of magnitude one.
    np.testing.assert_allclose(result, oracles.conv(x, {"kernel": kernel}), atol=1e-5)
    np.testing.assert_allclose(grad_x, expected_x, atol=1e-5)
    np.testing.assert_allclose(grad_kernel, expected_kernel, atol=1e-5)


@pytest.mark.parametrize(("shape", "size"), SHAPES)
def test_depthwise_conv_equals_the_grouped_convolution_of_jax_with_both_gradients(shape, size):
    x, kernel, grad = float32(*example(shape, size))
    result = value_and_gradients(depthwise_conv)(x, kernel, grad)
    expected = value_and_gradients(grouped_conv)(x, kernel, grad)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), result, expected)


@pytest.mark.usefixtures("formulation")
def test_depthwise_conv_and_its_gradients_are_the_same_eager_and_under_vmap():
    x, kernel, grad = float32(*example((3, 6, 5, 4), 3))

    function = value_and_gradients(depthwise_conv)
    expected, (expected_x, expected_kernel) = function(x, kernel, grad)
    with jax.disable_jit():
        eager = function(x, kernel, grad)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), eager, (expected, (expected_x, expected_kernel))
    )

    mapped = jax.jit(jax.vmap(function, (0, None, 0)))(x[:, None], kernel, grad[:, None])
    np.testing.assert_allclose(mapped[0][:, 0], expected, atol=1e-5)
    np.testing.assert_allclose(mapped[1][0][:, 0], expected_x, atol=1e-5)
    np.testing.assert_allclose(mapped[1][1].sum(0), expected_kernel, atol=1e-5)


@pytest.mark.usefixtures("formulation")
@pytest.mark.parametrize("size", [3, 7])
def test_depthwise_conv_in_bfloat16_loses_no_more_than_a_rounding_a_tap(size):
    arrays = [jnp.asarray(array, jnp.bfloat16) for array in example((1, 8, 8, 4), size)]
    x, kernel, grad = (np.asarray(array, np.float64) for array in arrays)
    result, (grad_x, grad_kernel) = value_and_gradients(depthwise_conv)(*arrays)
    expected = (oracles.conv(x, {"kernel": kernel}), *gradients_by_the_definition(x, kernel, grad))
    magnitudes = (
        oracles.conv(abs(x), {"kernel": abs(kernel)}),
        *gradients_by_the_definition(abs(x), abs(kernel), abs(grad)),
    )
    for value, exact, magnitude in zip((result, grad_x, grad_kernel), expected, magnitudes, strict=True):
        assert value.dtype == jnp.bfloat16
        # On the CPU the sum is rounded to 8 bits at every tap: a random walk of as many half units in the last place.
        error = abs(np.asarray(value, np.float64) - exact)
        assert np.all(error <= (1 + size) * 2**-8 * magnitude)


@pytest.mark.parametrize(("platform", "convolutions"), [("cpu", 0), ("cuda", 1), ("tpu", 1)])
def test_depthwise_conv_is_one_convolution_on_accelerators_and_none_on_the_cpu(platform, convolutions):
    x, kernel, _ = float32(*example((1, 8, 8, 4), 3))
    lowered = jax.jit(depthwise_conv).trace(x, kernel).lower(lowering_platforms=(platform,))
    assert lowered.as_text().count("stablehlo.convolution") == convolutions


# Narrow and wide, from few to many channels and back: each has its own gradient of the kernel on the CPU.
DENSE = [
    ((2, 7, 5, 3), 3, 4),
    ((2, 6, 9, 4), 5, 3),
    ((1, 1, 1, 2), 3, 2),
    ((2, 5, 6, 96), 3, 98),
    ((1, 6, 5, 98), 3, 96),
]


def dense_example(shape: tuple[int, ...], size: int, features: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=s) for s in (shape, (size, size, shape[-1], features), (*shape[:3], features))]


def dense_gradients_by_the_definition(
    x: np.ndarray, kernel: np.ndarray, grad: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Tap by tap: the gradient goes to the pixel under the tap and to its weights."""
    reach, (_, height, width, _) = kernel.shape[0] // 2, x.shape
    padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    grad_padded, grad_kernel = np.zeros(padded.shape), np.zeros(kernel.shape)
    for i, j in np.ndindex(kernel.shape[:2]):
        under = np.s_[:, i : i + height, j : j + width]
        grad_padded[under] += grad @ kernel[i, j].T
        grad_kernel[i, j] = np.einsum("bhwc,bhwd->cd", padded[under], grad)
    return grad_padded[:, reach : reach + height, reach : reach + width], grad_kernel


@pytest.mark.usefixtures("formulation")
@pytest.mark.parametrize(("shape", "size", "features"), DENSE)
def test_the_dense_conv_and_its_gradients_equal_the_definition(shape, size, features):
    x, kernel, grad = dense_example(shape, size, features)
    result, (grad_x, grad_kernel) = value_and_gradients(conv)(*float32(x, kernel, grad))
    expected_x, expected_kernel = dense_gradients_by_the_definition(x, kernel, grad)
    # Float32 sums of up to 882 products of magnitude one.
    np.testing.assert_allclose(result, oracles.conv(x, {"kernel": kernel}), rtol=1e-5, atol=5e-5)
    np.testing.assert_allclose(grad_x, expected_x, rtol=1e-5, atol=5e-5)
    np.testing.assert_allclose(grad_kernel, expected_kernel, rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize(("shape", "size", "features"), DENSE)
def test_gradients_of_the_dense_conv_in_bfloat16_are_rounded_once(shape, size, features):
    arrays = [jnp.asarray(array, jnp.bfloat16) for array in dense_example(shape, size, features)]
    _, gradients = value_and_gradients(conv)(*arrays)
    expected = dense_gradients_by_the_definition(*(np.asarray(array, np.float64) for array in arrays))
    for value, exact in zip(gradients, expected, strict=True):
        assert value.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(value, np.float64), exact, rtol=2**-8, atol=5e-5)


def test_gradients_of_the_dense_conv_exchange_halos_and_sums_alone_when_rows_are_divided():
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    rows, whole = NamedSharding(mesh, P(None, "rows")), NamedSharding(mesh, P())
    arrays = dense_example((2, 8, 6, 96), 3, 98)
    function = jax.jit(lambda x, kernel, grad: jax.vjp(conv, x, kernel)[1](grad), out_shardings=(rows, whole))
    placed = [jax.device_put(array, place) for array, place in zip(float32(*arrays), (rows, whole, rows), strict=True)]
    compiled = function.lower(*placed).compile()
    assert set(collectives(compiled.as_text())) == {"all-reduce", "collective-permute"}
    for value, expected in zip(compiled(*placed), dense_gradients_by_the_definition(*arrays), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize(("size", "depthwise"), [(1, False), (3, False), (5, False), (3, True)])
@pytest.mark.parametrize("use_bias", [True, False])
def test_conv_equals_numpy(size, depthwise, use_bias, random_params):
    x = np.random.default_rng(0).normal(size=(2, 5, 7, 6))
    layer = Conv(6 if depthwise else 4, size, depthwise=depthwise, use_bias=use_bias)
    params = random_params(layer, x.shape)
    assert ("bias" in params) == use_bias
    assert params["kernel"].shape == (size, size, 1 if depthwise else 6, 6 if depthwise else 4)
    result = jax.jit(layer.apply)({"params": params}, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(result, oracles.conv(x, params), atol=1e-5)


@pytest.mark.parametrize(
    ("channels", "layer", "fan_in"),
    [(16, Conv(64, 3), 144), (64, Conv(80, 1), 64), (512, Conv(512, 3, depthwise=True), 9)],
    ids=["3x3", "1x1", "depthwise"],
)
def test_weights_and_biases_start_uniform_within_the_bound_of_pytorch(channels, layer, fan_in):
    params = layer.lazy_init(jax.random.key(0), jax.ShapeDtypeStruct((1, 3, 3, channels), jnp.float32))["params"]
    bound = 1 / math.sqrt(fan_in)
    assert abs(params["kernel"]).max() <= bound
    assert abs(params["bias"]).max() <= bound
    uniform = (-bound, 2 * bound)
    assert kstest(np.ravel(params["kernel"]), "uniform", uniform).pvalue > 0.01
    assert kstest(np.ravel(params["bias"]), "uniform", uniform).pvalue > 0.01


def test_conv_computes_in_bfloat16_with_float32_parameters():
    layer = Conv(4, 3, dtype=jnp.bfloat16)
    x = jnp.ones((1, 5, 5, 3))
    result, variables = jax.eval_shape(layer.init_with_output, jax.random.key(0), x)
    assert result.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def strided(x: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    """Output by output: the products of a kernel with what lies under it, `(size - 1) // 2` zeros around the image."""
    size, pad = len(kernel), (len(kernel) - 1) // 2
    padded = np.pad(x, ((0, 0), (pad, size), (pad, size), (0, 0)))
    result = np.zeros((len(x), x.shape[1] // stride, x.shape[2] // stride, kernel.shape[3]))
    for row, column in np.ndindex(result.shape[1:3]):
        patch = padded[:, stride * row : stride * row + size, stride * column : stride * column + size]
        result[:, row, column] = np.einsum("bklc,klcd->bd", patch, kernel)
    return result


def transposed(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Input by input: each adds its multiple of the kernel to the output, at twice its place."""
    batch, height, width, _ = x.shape
    size, pad = len(kernel), (len(kernel) - 2) // 2
    result = np.zeros((batch, 2 * height + 2 * pad, 2 * width + 2 * pad, kernel.shape[2]))
    for row, column in np.ndindex(height, width):
        result[:, 2 * row : 2 * row + size, 2 * column : 2 * column + size] += np.einsum(
            "bc,kldc->bkld", x[:, row, column], kernel
        )
    return result[:, pad : pad + 2 * height, pad : pad + 2 * width]


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_strided_conv_equals_the_definition(size, random_params):
    x = np.random.default_rng(0).normal(size=(2, 6, 8, 3))
    layer = Conv(4, size, stride=2, use_bias=False)
    params = random_params(layer, x.shape)
    result = jax.jit(layer.apply)({"params": params}, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(result, strided(x, np.asarray(params["kernel"], np.float64), 2), atol=1e-5)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("shape", [(2, 3, 5, 3), (1, 1, 1, 2)])
def test_transposed_conv_equals_the_definition(size, shape, random_params):
    x = np.random.default_rng(0).normal(size=shape)
    layer = ConvTranspose(4, size)
    params = random_params(layer, x.shape)
    assert params["kernel"].shape == (size, size, 4, shape[-1])
    result = jax.jit(layer.apply)({"params": params}, jnp.asarray(x, jnp.float32))
    expected = transposed(x, np.asarray(params["kernel"], np.float64)) + np.asarray(params["bias"], np.float64)
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_the_doubling_conv_and_its_gradients_are_those_of_the_dilated_one():
    rng = np.random.default_rng(0)
    shapes = ((2, 3, 5, 3), (4, 4, 6, 3), (2, 6, 10, 6))
    arrays = float32(*(rng.normal(size=shape) for shape in shapes))

    def dilated(x: jax.Array, kernel: jax.Array) -> jax.Array:
        kernel = kernel[::-1, ::-1].swapaxes(2, 3)
        layout = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel, (1, 1), ((2, 2),) * 2, (2, 2), dimension_numbers=layout)

    results, expected = (value_and_gradients(function)(*arrays) for function in (doubling_conv, dilated))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), results, expected)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_the_doubling_conv_is_one_convolution_on_accelerators(platform):
    x, kernel = jnp.ones((1, 4, 4, 3)), jnp.ones((4, 4, 6, 3))
    lowered = jax.jit(doubling_conv).trace(x, kernel).lower(lowering_platforms=(platform,))
    assert lowered.as_text().count("stablehlo.convolution") == 1


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (Conv(4, 4), "odd, or 2 or 4 with stride 2, not 4 with stride 1"),
        (Conv(4, 3, stride=3), "stride of a convolution must be 1 or 2, not 3"),
        (Conv(4, 3, stride=2), "a stride of 2 does not divide 5x6 pixels"),
        (Conv(4, 3, stride=2, depthwise=True), "does not divide|has stride 1"),
        (ConvTranspose(4, 3), "transposed convolution must be 2 or 4, not 3"),
    ],
)
def test_what_no_convolution_takes_is_named(layer, words):
    with pytest.raises(UserError, match=words):
        jax.eval_shape(layer.init, jax.random.key(0), jnp.ones((1, 5, 6, 4)))
