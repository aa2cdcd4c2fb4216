from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import official
import oracles
import pytest
import scipy.special

from gamax.blocks.window_attention import (
    PointwiseFeedForward,
    PositionBias,
    WindowAttention,
    WindowAttentionBlock,
    relative_offsets,
    softmax_plus_one,
    window_regions,
)
from gamax.errors import UserError
from gamax.interop.key_maps import key_map
from gamax.models import count_parameters
from gamax.models.swintormer import Swintormer


@pytest.mark.parametrize(("shift", "tolerance"), [(0, 1e-5), (8, 2e-5)])
def test_it_reproduces_the_official_attention(shared_folder, shift, tolerance):
    config, tensors = official.load(shared_folder / f"fixtures/swintormer/attention_shift{shift}.safetensors")
    attention = WindowAttention(config["num_heads"], config["window_size"], config["shift_size"] > 0)
    official.check(attention, tensors, tolerance, key_map(Swintormer()))


def test_it_reproduces_the_official_block(shared_folder):
    config, tensors = official.load(shared_folder / "fixtures/swintormer/transformer_block_shift8.safetensors")
    block = WindowAttentionBlock(
        config["num_heads"], config["ffn_expansion_factor"], config["window_size"], config["shift_size"] > 0
    )
    official.check(block, tensors, 1e-5, key_map(Swintormer()))


def test_it_reproduces_the_official_position_bias_and_mask(shared_folder):
    _, tensors = official.load(shared_folder / "fixtures/swintormer/attention_shift0.safetensors")
    np.testing.assert_allclose(
        relative_offsets(16), tensors["buffer.relative_coords_table"].reshape(-1, 2), rtol=1e-6, atol=0
    )
    params = {
        "hidden": {"kernel": tensors["param.cpb_mlp.0.weight"].T, "bias": tensors["param.cpb_mlp.0.bias"]},
        "output": {"kernel": tensors["param.cpb_mlp.2.weight"].T},
    }
    bias = jax.jit(PositionBias(2, 16).apply)({"params": jax.tree.map(jnp.asarray, params)})
    np.testing.assert_allclose(bias, tensors["tap.relative_position_bias"], atol=1e-4, rtol=0)

    _, tensors = official.load(shared_folder / "fixtures/swintormer/attention_shift8.safetensors")
    regions = window_regions(2, 3, 16)
    np.testing.assert_array_equal(regions[:, :, None] != regions[:, None], tensors["tap.mask_is_minus_100"] != 0)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("sides", [(4, 4), (8, 12)])
def test_attention_equals_numpy(sides, shifted, random_params):
    x = np.random.default_rng(0).normal(size=(2, *sides, 8))
    attention = WindowAttention(2, 4, shifted)
    params = random_params(attention, x.shape)
    # One head's factor is beyond its limit.
    params["logit_scale"] = jnp.asarray([1.5, 5.0])
    result = jax.jit(attention.apply)({"params": params}, jnp.asarray(x, jnp.float32))
    expected = oracles.window_attention(x, params, heads=2, size=4, shift=2 if shifted else 0)
    np.testing.assert_allclose(result, expected, atol=2e-5 * abs(expected).max(), rtol=0)


def test_softmax_plus_one_equals_numpy_and_an_extra_largest_logit():
    logits = np.random.default_rng(0).normal(0, 40, (3, 4, 7))
    result = np.asarray(jax.jit(softmax_plus_one)(jnp.asarray(logits, jnp.float32)))
    np.testing.assert_allclose(result, oracles.softmax_plus_one(logits), atol=2e-5)
    extended = np.concatenate([logits, logits.max(-1, keepdims=True)], axis=-1)
    np.testing.assert_allclose(result, scipy.special.softmax(extended, axis=-1)[..., :-1], atol=2e-5)
    assert result.max() <= 0.5


def test_softmax_plus_one_neither_overflows_nor_vanishes():
    large = jnp.asarray([[1e30, -1e30], [-1e30, -1e30]], jnp.float32)
    np.testing.assert_allclose(softmax_plus_one(large), [[1 / 2, 0], [1 / 3, 1 / 3]], rtol=1e-6)


def test_its_gradient_flows_through_the_maximum():
    rng = np.random.default_rng(0)
    logits, cotangent = (jnp.asarray(rng.normal(size=(5, 6)), jnp.float32) for _ in range(2))
    # Equal largest logits share, as in the gradient of `max`.
    logits = logits.at[0].set(1.0).at[1, 2:4].set(3.0)

    def plain(logits):
        exponentials = jnp.exp(logits - logits.max(-1, keepdims=True))
        return exponentials / (1 + exponentials.sum(-1, keepdims=True))

    expected = jax.vjp(plain, logits)[1](cotangent)[0]
    np.testing.assert_allclose(jax.vjp(softmax_plus_one, logits)[1](cotangent)[0], expected, atol=1e-6)
    assert abs(np.asarray(expected).sum(-1)).max() < 1e-6


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 3), (3, 2)])
def test_regions_are_those_of_swin(rows, columns):
    size, shift = 4, 2
    image = np.zeros((rows * size, columns * size))
    slices = (slice(0, -size), slice(-size, -shift), slice(-shift, None))
    for number, (vertical, horizontal) in enumerate((a, b) for a in slices for b in slices):
        image[vertical, horizontal] = number
    windows = image.reshape(rows, size, columns, size).swapaxes(1, 2).reshape(-1, size**2)
    regions = window_regions(rows, columns, size)
    np.testing.assert_array_equal(regions[:, :, None] == regions[:, None], windows[:, :, None] == windows[:, None])


def test_pixels_of_other_windows_and_opposite_borders_do_not_matter_between_pixels(random_params):
    attention = WindowAttention(1, 4, shifted=True)
    params = random_params(attention, (1, 8, 8, 4))
    # Without the channels' half, which looks at the whole window whatever its regions.
    params["project"]["kernel"] = params["project"]["kernel"].at[..., 2:, :].set(0)
    # Nor the neighbours in the convolution.
    params["qkv_spatial"]["kernel"] = jnp.zeros((3, 3, 1, 12)).at[1, 1].set(params["qkv_spatial"]["kernel"][1, 1])
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 8, 8, 4)), jnp.float32)
    reach = jax.jit(jax.grad(lambda x: jnp.square(attention.apply({"params": params}, x)[0, 0, 0]).sum()))(x)
    touched = abs(np.asarray(reach)[0]).max(-1) > 0
    np.testing.assert_array_equal(touched, np.outer(np.arange(8) < 2, np.arange(8) < 2))


@pytest.mark.parametrize(("channels", "heads", "parameters"), [(48, 1, 31_041), (384, 8, 1_783_560)])
def test_parameters_of_a_block(channels, heads, parameters):
    block, x = WindowAttentionBlock(heads), jax.ShapeDtypeStruct((1, 16, 16, channels), jnp.float32)
    assert count_parameters(jax.eval_shape(block.init, jax.random.key(0), x)["params"]) == parameters


def test_initial_values_are_those_of_the_authors():
    attention, x = WindowAttention(2, 4), jnp.zeros((1, 4, 4, 64))
    params = jax.jit(attention.init)(jax.random.key(0), x)["params"]
    for kernel in (params["qkv"], params["project"], params["qkv_spatial"], *params["position_bias"].values()):
        assert np.std(kernel["kernel"]) == pytest.approx(0.02, rel=0.1)
    assert not params["position_bias"]["hidden"]["bias"].any()
    np.testing.assert_allclose(params["logit_scale"], math.log(10), rtol=1e-6)


def test_attention_of_a_black_image_has_finite_gradients(random_params):
    attention, x = WindowAttention(2, 4, shifted=True), jnp.zeros((1, 8, 4, 8))
    params = random_params(attention, x.shape)
    result, gradients = jax.jit(jax.value_and_grad(lambda x: attention.apply({"params": params}, x).sum()))(x)
    assert result == 0
    assert jnp.isfinite(gradients).all()


def test_the_feed_forward_half_is_a_product_of_halves(random_params):
    x = np.random.default_rng(0).normal(size=(1, 2, 3, 4))
    params = random_params(PointwiseFeedForward(1.5), x.shape)
    result = jax.jit(PointwiseFeedForward(1.5).apply)({"params": params}, jnp.asarray(x, jnp.float32))
    expand, project = (np.asarray(params[name]["kernel"], np.float64)[0, 0] for name in ("expand", "project"))
    assert expand.shape == (4, 12)
    np.testing.assert_allclose(result, oracles.gate(x @ expand) @ project, atol=1e-5)


@pytest.mark.parametrize(
    ("attention", "channels", "words"),
    [
        (WindowAttention(1, 16), 8, "windows of 16x16 pixels do not divide 16x8 pixels"),
        (WindowAttention(1, 1), 8, "must be even and at least 2, not 1"),
        (WindowAttention(4, 8), 12, "12 channels cannot be halved and divided among 4 heads"),
    ],
)
def test_what_does_not_fit_is_named(attention, channels, words):
    with pytest.raises(UserError, match=words):
        jax.eval_shape(attention.init, jax.random.key(0), jnp.zeros((1, 16, 8, channels)))
