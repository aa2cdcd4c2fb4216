"""The denoiser of latent diffusion: a U-Net that knows the time (arXiv 2112.10752, after arXiv 2105.05233)."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from gamax.blocks.convolution import Conv
from gamax.diffusion.layers import ResidualBlock, SelfAttention, dense, double, group_norm, number_of_groups
from gamax.errors import UserError


class Denoiser(nn.Module):
    """Predicts the noise in `[B, H, W, C]`, noisy latents and behind them what they are conditioned on.

    `width` times the `multipliers` are the channels of the levels, each of which halves the sides; `blocks` residual
    blocks on each on the way down, one more on the way up. Attention, in heads of `head_channels`, follows the blocks
    of the levels whose down-sampling factor is in `attention_factors`, and stands in the middle. The defaults are those
    of the published super-resolution model: 113,622,563 parameters. H and W must be multiples of `size_multiple`.

    Raises `UserError` for numbers that make no network.
    """

    latent_channels: int = 3
    width: int = 160
    multipliers: tuple[int, ...] = (1, 2, 2, 4)
    blocks: int = 2
    attention_factors: tuple[int, ...] = (8,)
    head_channels: int = 32
    remat: bool = False
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        if not self.multipliers or min(*self.multipliers, self.blocks, self.latent_channels) < 1:
            raise UserError("a Denoiser needs multipliers, blocks and latent channels of at least 1")
        for multiplier in self.multipliers:
            number_of_groups(self.width * multiplier)
        if self.head_channels < 1 or self.width % self.head_channels:
            raise UserError(f"the width must be a multiple of its head_channels {self.head_channels}, not {self.width}")
        super().__post_init__()

    @property
    def size_multiple(self) -> int:
        """What the sides must be multiples of."""
        return 2 ** (len(self.multipliers) - 1)

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], times: Shaped[Array, " b"]) -> Float[Array, "b h w d"]:
        """Returns the predicted noise `[B, H, W, latent_channels]`, float32, at `times` from 0 to 999."""
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        residual = partial(nn.remat(ResidualBlock) if self.remat else ResidualBlock, zero_output=True, **dtypes)
        attention = partial(nn.remat(SelfAttention) if self.remat else SelfAttention, self.head_channels, **dtypes)

        def block(x: Array, level: int, way: str, index: int) -> Array:
            features = self.width * self.multipliers[level]
            x = residual(features, name=f"{way}_{level}_{index}")(x, embedding)
            if 2**level in self.attention_factors:
                x = attention(name=f"{way}_attention_{level}_{index}")(x)
            return x

        embedding = time_embedding(times, self.width)
        embedding = dense(4 * self.width, self.width, "time_first", **dtypes)(embedding)
        embedding = dense(4 * self.width, 4 * self.width, "time_second", **dtypes)(nn.silu(embedding))

        x = Conv(self.width, name="input", **dtypes)(x)
        skips = [x]
        last = len(self.multipliers) - 1
        for level in range(last + 1):
            for index in range(self.blocks):
                x = block(x, level, "down", index)
                skips.append(x)
            if level < last:
                x = Conv(x.shape[-1], stride=2, name=f"downsample_{level}", **dtypes)(x)
                skips.append(x)

        x = residual(x.shape[-1], name="middle_0")(x, embedding)
        x = attention(name="middle_attention")(x)
        x = residual(x.shape[-1], name="middle_1")(x, embedding)

        for level in reversed(range(last + 1)):
            for index in range(self.blocks + 1):
                x = block(jnp.concatenate([x, skips.pop()], axis=-1), level, "up", index)
            if level > 0:
                x = Conv(x.shape[-1], name=f"upsample_{level}", **dtypes)(double(x))

        x = nn.silu(group_norm(x, 1e-5, "output_norm", dtypes))
        x = Conv(self.latent_channels, initializer=nn.initializers.zeros, name="output", **dtypes)(x)
        return x.astype(jnp.float32)


def time_embedding(times: Shaped[Array, " b"], size: int) -> Float[Array, "b n"]:
    """Cosines, then sines of the times at `size // 2` frequencies from 1 down to nearly 1/10000; float32."""
    frequencies = 10_000 ** (-jnp.arange(size // 2, dtype=jnp.float32) / (size // 2))
    angles = times.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
