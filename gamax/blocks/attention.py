"""Other mixers that networks are compared with: they fit the slot that GAMA fills."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gamax.blocks.convolution import Conv
from gamax.errors import UserError


def window_mean(x: Float[Array, "b h w c"], window: int | None) -> Float[Array, "b h2 w2 c"]:
    """The mean over the image, `[B, 1, 1, C]`, or over a window around every pixel, `[B, H, W, C]`.

    The window is `window` pixels high and wide, at most the image; near the border it is the nearest one that lies
    inside. One that covers the image gives the mean over the image. This is the test-time local conversion of Chu et
    al. (arXiv 2112.04491), for networks that were trained on crops smaller than the images they restore. float32.
    """
    height, width = x.shape[1:3]
    if window is None or window >= max(height, width):
        return x.mean((1, 2), keepdims=True, dtype=jnp.float32)
    means = x.astype(jnp.float32)
    for axis, side in ((1, height), (2, width)):
        size = min(window, side)
        # Differences of running sums along one axis: unlike a sum over the whole image, they keep their precision.
        sums = jnp.cumsum(means, axis=axis)
        first = lax.slice_in_dim(sums, size - 1, size, axis=axis)
        later = lax.slice_in_dim(sums, size, side, axis=axis) - lax.slice_in_dim(sums, 0, side - size, axis=axis)
        means = jnp.concatenate([first, later], axis=axis) / size
        missing = size - 1
        border = [(0, 0)] * 4
        border[axis] = (missing // 2, missing - missing // 2)
        means = jnp.pad(means, border, mode="edge")
    return means


def _mean(x: Array, window: int | None) -> Array:
    return window_mean(x, window).astype(x.dtype)


class SqueezeExcite(nn.Module):
    """`x * sigmoid(W2 relu(W1 mean_hw(x)))` with `C // reduction` hidden channels (arXiv 1709.01507).

    The mean is that of the image, or with `window` of the surroundings of every pixel: see `window_mean`.
    """

    reduction: int = 16
    window: int | None = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Weighs every channel by a gate that depends on the mean of the image."""
        channels = x.shape[-1]
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        gate = Conv(max(channels // self.reduction, 1), 1, name="squeeze", **dtypes)(_mean(x, self.window))
        gate = Conv(channels, 1, name="excite", **dtypes)(nn.relu(gate))
        return x * nn.sigmoid(gate)


class SimplifiedChannelAttention(nn.Module):
    """`x * (W mean_hw(x) + b)`, the channel attention of NAFNet (arXiv 2204.04676).

    The mean is that of the image, or with `window` of the surroundings of every pixel: see `window_mean`.
    """

    window: int | None = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Weighs every channel by a linear function of the means of all channels."""
        weight = Conv(x.shape[-1], 1, name="weight", dtype=self.dtype, param_dtype=self.param_dtype)
        return x * weight(_mean(x, self.window))


class NonLocal(nn.Module):
    """Embedded-Gaussian non-local block (arXiv 1711.07971): every pixel attends to every pixel.

    The output projection starts at zero, so a fresh block is the identity. Memory grows with `(H W)^2`:
    `max_pixels` turns an input that would not fit into a clear error.
    """

    max_pixels: int = 64 * 64
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Adds to every pixel the mean of all pixels, weighted by similarity.

        Raises:
            UserError: if the input has more than `max_pixels` pixels.

        """
        batch, height, width, channels = x.shape
        if height * width > self.max_pixels:
            raise UserError(
                f"NonLocal on {height}x{width} pixels needs a {height * width} x {height * width} matrix an image; "
                f"raise max_pixels (now {self.max_pixels}) if that fits in memory"
            )
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        query, key, value = (
            Conv(channels // 2, 1, name=name, **dtypes)(x).reshape(batch, height * width, -1)
            for name in ("query", "key", "value")
        )
        logits = jnp.einsum("bqc,bkc->bqk", query, key, preferred_element_type=jnp.float32)
        attention = jax.nn.softmax(logits).astype(value.dtype)
        attended = jnp.einsum("bqk,bkc->bqc", attention, value).reshape(batch, height, width, -1)
        return x + Conv(channels, 1, initializer=nn.initializers.zeros, name="projection", **dtypes)(attended)
