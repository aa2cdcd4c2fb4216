from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from gamax.diffusion.denoiser import Denoiser, time_embedding
from gamax.diffusion.layers import ResidualBlock, SelfAttention
from gamax.errors import UserError
from gamax.models import count_parameters

GROUPS = {32: 8, 64: 16, 192: 32}
"""By number of channels."""


def group_norm(x: np.ndarray, params: Any, epsilon: float) -> np.ndarray:
    """In groups of neighbouring channels, image by image and group by group."""
    result = np.empty(x.shape)
    groups = np.split(np.arange(x.shape[3]), GROUPS[x.shape[3]])
    for image, channels in ((image, part) for image in range(len(x)) for part in groups):
        values = x[image][..., channels]
        result[image][..., channels] = (values - values.mean()) / np.sqrt(values.var() + epsilon)
    return result * np.asarray(params["scale"], np.float64) + np.asarray(params["bias"], np.float64)


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def close(result: Any, expected: np.ndarray) -> None:
    np.testing.assert_allclose(result, expected, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize("channels", GROUPS)
def test_a_residual_block_equals_numpy(channels):
    rng = np.random.default_rng(0)
    x, embedding = rng.normal(2, 1, (2, 5, 4, channels)), rng.normal(size=(2, 7))
    block = ResidualBlock(64, epsilon=0.1)
    arguments = jnp.asarray(x, jnp.float32), jnp.asarray(embedding, jnp.float32)
    shapes = jax.eval_shape(block.init, jax.random.key(0), *arguments)["params"]
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0.2, 0.3, leaf.shape), jnp.float32), shapes)

    y = oracles.conv(silu(group_norm(x, params["first_norm"], 0.1)), params["first"])
    y += oracles.dense(silu(embedding), params["time"])[:, None, None]
    y = oracles.conv(silu(group_norm(y, params["second_norm"], 0.1)), params["second"])
    assert ("shortcut" in params) == (channels != 64)
    expected = y + (x if channels == 64 else oracles.pointwise(x, params["shortcut"]))
    close(jax.jit(block.apply)({"params": params}, *arguments), expected)


@pytest.mark.parametrize("joint", [True, False])
def test_attention_equals_numpy_head_by_head(joint, random_params):
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 64))
    attention = SelfAttention(32, joint=joint)
    params = random_params(attention, x.shape)
    normalised = group_norm(x, params["norm"], 1e-5).reshape(2, 12, 64)

    def inputs(name: str, first: int) -> np.ndarray:
        """The next 32 of the channels that a convolution gives."""
        kernel, bias = (
            np.asarray(params[name][key], np.float64)[..., first : first + 32] for key in ("kernel", "bias")
        )
        return normalised @ kernel[0, 0] + bias

    attended = np.empty((2, 12, 64))
    for head in range(2):
        if joint:
            query, key, value = (inputs("qkv", 96 * head + 32 * part) for part in range(3))
        else:
            query, key, value = (inputs(name, 32 * head) for name in ("query", "key", "value"))
        weights = oracles.softmax(query @ key.swapaxes(1, 2) / np.sqrt(32), -1)
        attended[..., 32 * head : 32 * head + 32] = weights @ value
    expected = x + oracles.pointwise(attended.reshape(x.shape), params["project"])
    close(jax.jit(attention.apply)({"params": params}, jnp.asarray(x, jnp.float32)), expected)


def test_times_are_embedded_as_cosines_and_sines():
    times = [0, 1, 501, 999]
    expected = [
        [function(time * 10_000 ** (-index / 80)) for function in (np.cos, np.sin) for index in range(80)]
        for time in times
    ]
    # Angles of up to 999 in float32.
    np.testing.assert_allclose(time_embedding(jnp.array(times), 160), expected, atol=2e-4)


def test_it_has_the_published_size():
    x, times = jax.ShapeDtypeStruct((1, 16, 8, 6), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
    predicted, variables = jax.eval_shape(Denoiser().init_with_output, jax.random.key(0), x, times)
    assert count_parameters(variables["params"]) == 113_622_563
    assert predicted.shape == (1, 16, 8, 3)
    assert Denoiser().size_multiple == 8


@pytest.mark.parametrize("block", [ResidualBlock(32, zero_output=True), SelfAttention(32)])
def test_untrained_every_block_of_it_is_the_identity(block):
    x = jax.random.normal(jax.random.key(0), (1, 2, 2, 32))
    np.testing.assert_array_equal(jax.jit(block.init_with_output)(jax.random.key(1), x)[0], x)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"multipliers": ()}, "needs multipliers, blocks and latent channels of at least 1"),
        ({"multipliers": (1, 0)}, "needs multipliers"),
        ({"blocks": 0}, "needs multipliers, blocks"),
        ({"latent_channels": 0}, "latent channels of at least 1"),
        ({"width": 34}, "34 channels cannot be normalised in groups: they must be a multiple of 4"),
        ({"width": 132}, "132 channels cannot .* multiple of 4, and of 32 above 128"),
        ({"width": 0}, "0 channels"),
        ({"width": 96, "head_channels": 64}, "multiple of its head_channels 64, not 96"),
    ],
)
def test_what_cannot_be_built_is_named(options, words):
    with pytest.raises(UserError, match=words):
        Denoiser(**options)
