"""The blocks of LIR (arXiv 2402.01368): attention in four steps, and a small encoder-decoder made of it.

The authors' code calls the whole EAA block, efficient adaptive attention; later versions of the paper, LAA.
"""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gamax.blocks.activation import gelu
from gamax.blocks.adaptive_filter import AdaptiveFilter
from gamax.blocks.attention import SqueezeExcite
from gamax.blocks.convolution import Conv, ConvTranspose
from gamax.blocks.naf import residual_scale, simple_gate
from gamax.blocks.normalization import LayerNorm
from gamax.blocks.patch_attention import PatchAttention


class ResBlock(nn.Module):
    """`x + residual_scale * f(x)`: 1x1, depth-wise 3x3, norm, GELU and 1x1, with 2 C channels in between.

    With `channel_attention` f ends in squeeze-and-excite (r = 16), whose means are local with `window`: see
    `window_mean`. The scale starts at zero, so a fresh block is the identity; the convolutions have no bias.
    """

    channel_attention: bool = False
    window: int | None = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Maps features to features of the same shape."""
        channels = x.shape[-1]
        x = x.astype(self.dtype or x.dtype)
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        y = Conv(2 * channels, 1, use_bias=False, name="expand", **dtypes)(x)
        y = Conv(2 * channels, 3, depthwise=True, use_bias=False, name="spatial", **dtypes)(y)
        scale = residual_scale(self, "residual_scale", channels, y.dtype)
        y = _stored(y, scale[0])
        y = gelu(LayerNorm(name="norm", **dtypes)(y))
        y = Conv(channels, 1, use_bias=False, name="project", **dtypes)(y)
        if self.channel_attention:
            y = SqueezeExcite(16, self.window, name="attention", **dtypes)(y)
        return x + scale * y


class ResidualGate(nn.Module):
    """`x + residual_scale * gate(W norm(x) + b)`, W of 1x1 pixels to 2 C channels and the gate `simple_gate`.

    The authors call it SimpleGate. The scale starts at zero, so a fresh module is the identity.
    """

    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Maps features to features of the same shape."""
        channels = x.shape[-1]
        x = x.astype(self.dtype or x.dtype)
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        y = Conv(2 * channels, 1, name="expand", **dtypes)(LayerNorm(name="norm", **dtypes)(x))
        return x + residual_scale(self, "residual_scale", channels, y.dtype) * simple_gate(y)


class AttentionBlock(nn.Module):
    """Convolutions, patch attention, a gate and channel attention, one after the other.

    `patch` and `reduction` are those of `PatchAttention`, `window` that of the channel attention alone.
    """

    patch: int
    reduction: int
    window: int | None = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Maps features to features of the same shape; `patch` must divide the sides."""
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = ResBlock(name="convolutions", **dtypes)(x)
        x = PatchAttention(self.patch, self.reduction, name="patch_attention", **dtypes)(x)
        x = ResidualGate(name="gate", **dtypes)(x)
        return ResBlock(True, self.window, name="channel_attention", **dtypes)(x)


class EAABlock(nn.Module):
    """Five stages of attention at full, half, quarter, quarter and half resolution, all but the first after a filter.

    What stages 2 to 4 changed at half resolution is taken for degradation: a transposed convolution of it is subtracted
    from the residual. `patch`, which must be even and is half as wide in stages 2 to 4, and `reduction` are those of
    `PatchAttention`; sides must be multiples of 2 `patch` and at least 32. `window` is that of the channel attention at
    full resolution, halved and quartered further down. Convolutions have no bias.
    """

    patch: int
    reduction: int
    window: int | None = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Maps features to features of the same shape; `UserError` for sides that the stages cannot take."""
        channels = x.shape[-1]
        x = x.astype(self.dtype or x.dtype)
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        double = partial(ConvTranspose, channels, 4, use_bias=False, **dtypes)
        halve = partial(Conv, channels, 3, stride=2, use_bias=False, **dtypes)

        def attention(stage: int, patch: int, level: int, y: Array) -> Array:
            if stage > 1:
                y = AdaptiveFilter(name=f"filter_{stage}", **dtypes)(y)
            window = self.window and max(self.window >> level, 1)
            return AttentionBlock(patch, self.reduction, window, name=f"attention_{stage}", **dtypes)(y)

        half = halve(name="downsample_1")(attention(1, self.patch, 0, x))
        y = halve(name="downsample_2")(attention(2, self.patch // 2, 1, half))
        y = attention(3, self.patch // 2, 2, y)
        refined = double(name="upsample_4")(attention(4, self.patch // 2, 2, y))
        y = attention(5, self.patch, 1, jnp.concatenate([refined, half], axis=-1))
        y = double(name="upsample_5")(y)
        return y + x - double(name="degradation")(half - refined)


def _stored(x: Float[Array, "b h w c"], any_number: Float[Array, ""]) -> Float[Array, "b h w c"]:
    """The same values, which on CPU are written to memory before they are used.

    XLA would repeat a depth-wise convolution of shifts and adds inside each sum of the norm that follows it, value by
    value: the whole block then takes seven times as long. It removes barriers, but it keeps a choice of branches that
    depends on a number it cannot know.
    """

    def choose(x: Array, any_number: Array) -> Array:
        return lax.cond(jnp.isfinite(any_number), lambda x: x, lax.optimization_barrier, x)

    return lax.platform_dependent(x, any_number, cpu=choose, default=lambda x, _: x)
