"""The NAF block (arXiv 2204.04676) with an open slot for the mixer, and the blocks it was made from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gamax.blocks.activation import gelu
from gamax.blocks.attention import SqueezeExcite
from gamax.blocks.convolution import Conv
from gamax.blocks.normalization import LayerNorm
from gamax.errors import UserError, nearest

MixerPosition = Literal["first", "gate", "last"]
"""Where `NAFBlock` has its mixer: before the convolutions of the spatial half, after its gate, or at its end."""


def simple_gate(x: Float[Array, "b h w d"]) -> Float[Array, "b h w c"]:
    """The first half of the channels times the second: `[B, H, W, 2 C]` to `[B, H, W, C]`."""
    first, second = jnp.split(x, 2, axis=-1)
    return first * second


def check_mixer(mixer: object) -> None:
    """Raises `UserError` unless `mixer` is None or makes a module when it is called without arguments."""
    if mixer is not None and (isinstance(mixer, nn.Module) or not callable(mixer)):
        raise UserError(
            f"mixer must be a module class such as GAMA, or a function that makes one such as lambda: "
            f"GAMA(kernel_size=5), not {mixer!r}"
        )


def check_mixer_position(position: str) -> None:
    """Raises `UserError` for a position that `NAFBlock` does not have."""
    if position not in get_args(MixerPosition):
        raise UserError(f"unknown mixer_position {nearest(str(position), get_args(MixerPosition))}")


class NAFBlock(nn.Module):
    """Spatial half (3x3 convolution, gate, mixer) and channel half (gated 1x1), each added with a learned scale.

    Both scales start at zero, so a fresh block is the identity. `mixer` makes the module that fills the
    channel-attention slot: `SimplifiedChannelAttention` gives NAFNet's block, `GAMA` that of GAMA-IR; it must keep
    the shape `[B, H, W, C]`. With `spatial_conv="dense"` one dense 3x3 convolution C -> 2 C stands in for the pair of
    1x1 expansion and depth-wise 3x3: two linear maps in a row could express no more than it does. The slot is after the
    gate, as in those networks; for ablations `mixer_position` moves it before the first convolution (`first`), or to
    the end of the spatial half (`last`).
    """

    mixer: Callable[[], nn.Module] | None = None
    spatial_conv: Literal["depthwise", "dense"] = "depthwise"
    mixer_position: MixerPosition = "gate"
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        """Names the mixer's parameters `mixing`, whichever module it is."""
        check_mixer(self.mixer)
        check_mixer_position(self.mixer_position)
        self.mixing = self.mixer() if self.mixer else None

    def _mix(self, y: Array, position: str) -> Array:
        return y if self.mixing is None or position != self.mixer_position else self.mixing(y)

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Maps features to features of the same shape."""
        channels = x.shape[-1]
        x = x.astype(self.dtype or x.dtype)
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        y = self._mix(LayerNorm(name="spatial_norm", **dtypes)(x), "first")
        if self.spatial_conv == "depthwise":
            y = Conv(2 * channels, 1, name="expand", **dtypes)(y)
            y = Conv(2 * channels, 3, depthwise=True, name="spatial", **dtypes)(y)
        else:
            y = Conv(2 * channels, 3, name="spatial", **dtypes)(y)
        y = self._mix(simple_gate(y), "gate")
        y = self._mix(Conv(channels, 1, name="project", **dtypes)(y), "last")
        x = x + residual_scale(self, "spatial_scale", channels, y.dtype) * y

        y = LayerNorm(name="channel_norm", **dtypes)(x)
        y = Conv(2 * channels, 1, name="channel_expand", **dtypes)(y)
        y = Conv(channels, 1, name="channel_project", **dtypes)(simple_gate(y))
        return x + residual_scale(self, "channel_scale", channels, y.dtype) * y


class BaselineBlock(nn.Module):
    """The block of Baseline (arXiv 2204.04676): GELU for the gates and squeeze-and-excite (r = 2) for the mixer.

    `expansion` times the channels in the depth-wise 3x3 convolution; `window` is that of `SqueezeExcite`. Both scales
    start at zero, so a fresh block is the identity.
    """

    expansion: int = 1
    window: int | None = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Maps features to features of the same shape."""
        channels = x.shape[-1]
        x = x.astype(self.dtype or x.dtype)
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        y = LayerNorm(name="spatial_norm", **dtypes)(x)
        y = Conv(self.expansion * channels, 1, name="expand", **dtypes)(y)
        y = Conv(self.expansion * channels, 3, depthwise=True, name="spatial", **dtypes)(y)
        y = SqueezeExcite(2, self.window, name="mixing", **dtypes)(gelu(y))
        y = Conv(channels, 1, name="project", **dtypes)(y)
        x = x + residual_scale(self, "spatial_scale", channels, y.dtype) * y

        y = LayerNorm(name="channel_norm", **dtypes)(x)
        y = gelu(Conv(2 * channels, 1, name="channel_expand", **dtypes)(y))
        y = Conv(channels, 1, name="channel_project", **dtypes)(y)
        return x + residual_scale(self, "channel_scale", channels, y.dtype) * y


class PlainBlock(nn.Module):
    """The block of PlainNet, where the paper of NAFNet (arXiv 2204.04676) starts: convolutions, ReLU and sums alone.

    Reconstruction, as its code is not public: `BaselineBlock` with ReLU in place of GELU, without its norms and its
    squeeze-and-excite. Both scales start at zero, so a fresh block is the identity.
    """

    expansion: int = 1
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Maps features to features of the same shape."""
        channels = x.shape[-1]
        x = x.astype(self.dtype or x.dtype)
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        y = Conv(self.expansion * channels, 1, name="expand", **dtypes)(x)
        y = nn.relu(Conv(self.expansion * channels, 3, depthwise=True, name="spatial", **dtypes)(y))
        y = Conv(channels, 1, name="project", **dtypes)(y)
        x = x + residual_scale(self, "spatial_scale", channels, y.dtype) * y

        y = nn.relu(Conv(2 * channels, 1, name="channel_expand", **dtypes)(x))
        y = Conv(channels, 1, name="channel_project", **dtypes)(y)
        return x + residual_scale(self, "channel_scale", channels, y.dtype) * y


def residual_scale(block: nn.Module, name: str, channels: int, dtype: DTypeLike) -> Array:
    """The learned scale `[channels]` of a residual, a parameter of `block` that starts at zero."""
    return block.param(name, nn.initializers.zeros, (channels,), block.param_dtype).astype(dtype)
