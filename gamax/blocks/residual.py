"""Blocks of plain 3x3 convolutions with a sum: those of DMPHN (arXiv 1904.03468) and of the plain UNet.

The layouts are those of the authors' code; that of DMPHN is checked against tensors recorded from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gamax.blocks.convolution import Conv, ConvTranspose
from gamax.blocks.repetition import repeat


def fan_out_normal(fan_out: int) -> Callable[..., Array]:
    """DMPHN's initialiser of convolutions: normal with deviation `0.5 sqrt(2 / fan_out)`, and biases of zero."""
    deviation = 0.5 * math.sqrt(2 / fan_out)

    def init(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        return jnp.zeros(shape, dtype) if len(shape) == 1 else deviation * jax.random.normal(key, shape, dtype)

    return init


class ResidualBlock(nn.Module):
    """`x + conv(relu(conv(x)))` with two 3x3 convolutions: the block of DMPHN. Nothing follows the sum."""

    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Maps features to features of the same shape."""
        channels = x.shape[-1]
        x = x.astype(self.dtype or x.dtype)
        init = fan_out_normal(9 * channels)
        conv = partial(Conv, channels, 3, initializer=init, dtype=self.dtype, param_dtype=self.param_dtype)
        return x + conv(name="second")(nn.relu(conv(name="first")(x)))


class ResidualEncoder(nn.Module):
    """The encoder of DMPHN: a 3x3 convolution for each width, from the second on with stride 2, and two blocks.

    Maps `[B, H, W, C]` to `[B, H / 4, W / 4, widths[-1]]` with three widths. The published widths make 868,288
    parameters.
    """

    widths: tuple[int, ...] = (32, 64, 128)
    scan: bool = False
    remat: bool = False
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        """Encodes images whose sides can be halved as often; `UserError` for others."""
        x, dtypes = images, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        block = partial(ResidualBlock, **dtypes)
        for level, features in enumerate(self.widths):
            name, stride = (f"down_{level - 1}", 2) if level else ("intro", 1)
            x = Conv(features, 3, stride, initializer=fan_out_normal(9 * features), name=name, **dtypes)(x)
            x = repeat(self, block, 2, x, f"blocks_{level}", scan=self.scan, remat=self.remat)
        return x


class ResidualDecoder(nn.Module):
    """The decoder of DMPHN: two blocks for each width, 4x4 transposed convolutions between, a 3x3 convolution last.

    Maps `[B, H, W, widths[-1]]` to `[B, 4 H, 4 W, features]` with three widths, which are given from the highest
    resolution down, as those of the encoder. There are no skips. The published widths make 939,843 parameters.
    """

    features: int = 3
    widths: tuple[int, ...] = (32, 64, 128)
    scan: bool = False
    remat: bool = False
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        """Decodes features into images."""
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        block = partial(ResidualBlock, **dtypes)
        for level in reversed(range(len(self.widths))):
            x = repeat(self, block, 2, x, f"blocks_{level}", scan=self.scan, remat=self.remat)
            if level > 0:
                width = self.widths[level - 1]
                init = fan_out_normal(16 * width)
                x = ConvTranspose(width, 4, initializer=init, name=f"up_{level - 1}", **dtypes)(x)
        return Conv(self.features, 3, initializer=fan_out_normal(9 * self.features), name="ending", **dtypes)(x)


class ProjectedResidualBlock(nn.Module):
    """Two 3x3 convolutions with leaky ReLU (slope 0.01) each, plus a 1x1 convolution of the input: the UNet's block.

    Maps `[B, H, W, C]` to `[B, H, W, features]`.
    """

    features: int
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        """Maps features to `features` features."""
        conv = partial(Conv, self.features, dtype=self.dtype, param_dtype=self.param_dtype)
        y = nn.leaky_relu(conv(3, name="first")(x), 0.01)
        y = nn.leaky_relu(conv(3, name="second")(y), 0.01)
        return y + conv(1, name="shortcut")(x)
