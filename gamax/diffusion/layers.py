"""What the autoencoder and the denoiser of latent diffusion are built of (arXiv 2112.10752)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gamax.blocks.convolution import Conv, torch_uniform
from gamax.errors import UserError

MOST_GROUPS = 32
"""Of a group norm, as published."""
FEWEST_CHANNELS = 4
"""Of a group. Narrow networks have fewer groups: those of one channel would take the brightness from an image."""


def group_norm(x: Float[Array, "b h w c"], epsilon: float, name: str, dtypes: Mapping[str, Any]) -> Array:
    """Normalises over pixels and groups of channels, with statistics in float32; inside a compact method.

    There are 32 groups from 128 channels on, as published, and one for every 4 channels below.
    """
    groups = number_of_groups(x.shape[-1])
    # The fast variance, E[x^2] - E[x]^2, loses digits.
    return nn.GroupNorm(groups, epsilon=epsilon, use_fast_variance=False, name=name, **dtypes)(x)


def number_of_groups(channels: int) -> int:
    """How many groups a group norm divides the channels into; `UserError` if they cannot be."""
    groups = min(MOST_GROUPS, channels // FEWEST_CHANNELS)
    if groups < 1 or channels % groups:
        raise UserError(
            f"{channels} channels cannot be normalised in groups: they must be a multiple of {FEWEST_CHANNELS}, and of "
            f"{MOST_GROUPS} above {MOST_GROUPS * FEWEST_CHANNELS}"
        )
    return groups


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each behind a group norm and SiLU, added to the input: `[B, H, W, C]` to `features`.

    An `embedding` `[B, E]` adds to every channel, between the two, a linear function of its SiLU. Where the number of
    channels changes, the input goes through a 1x1 convolution. `zero_output`: the second one starts at zero.
    """

    features: int
    epsilon: float = 1e-5
    zero_output: bool = False
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], embedding: Float[Array, "b e"] | None = None
    ) -> Float[Array, "b h w d"]:
        """Returns features of the same height and width."""
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        y = nn.silu(group_norm(x, self.epsilon, "first_norm", dtypes))
        y = Conv(self.features, name="first", **dtypes)(y)
        if embedding is not None:
            y += dense(self.features, embedding.shape[-1], "time", **dtypes)(nn.silu(embedding))[:, None, None]
        y = nn.silu(group_norm(y, self.epsilon, "second_norm", dtypes))
        initializer = nn.initializers.zeros if self.zero_output else None
        y = Conv(self.features, initializer=initializer, name="second", **dtypes)(y)
        if x.shape[-1] != self.features:
            x = Conv(self.features, 1, name="shortcut", **dtypes)(x)
        return x + y


class SelfAttention(nn.Module):
    """Every pixel attends to every pixel, in heads of `head_channels`, added to the input.

    `joint`: query, key and value come from one convolution `qkv`, head by head, and the projection starts at zero, as
    in the denoiser; else from three, `query`, `key` and `value`, as in the autoencoder. Memory grows with the square of
    the number of pixels.
    """

    head_channels: int
    epsilon: float = 1e-5
    joint: bool = True
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Returns features of the same shape."""
        batch, height, width, channels = x.shape
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv = partial(Conv, kernel_size=1, **dtypes)
        heads = (batch, height * width, channels // self.head_channels)

        y = group_norm(x, self.epsilon, "norm", dtypes)
        if self.joint:
            qkv = conv(3 * channels, name="qkv")(y).reshape(*heads, 3 * self.head_channels)
            query, key, value = jnp.split(qkv, 3, axis=-1)
        else:
            query, key, value = (
                conv(channels, name=name)(y).reshape(*heads, self.head_channels) for name in ("query", "key", "value")
            )
        attended = jax.nn.dot_product_attention(query, key, value).reshape(x.shape)
        initializer = nn.initializers.zeros if self.joint else None
        return x + conv(channels, initializer=initializer, name="project")(attended)


def dense(
    features: int, inputs: int, name: str, dtype: DTypeLike = jnp.float32, param_dtype: DTypeLike = jnp.float32
) -> nn.Dense:
    """A matrix product with bias, initialised as PyTorch does."""
    init = torch_uniform(inputs)
    return nn.Dense(features, kernel_init=init, bias_init=init, dtype=dtype, param_dtype=param_dtype, name=name)


def double(x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
    """Every pixel four times."""
    return x.repeat(2, axis=1).repeat(2, axis=2)
