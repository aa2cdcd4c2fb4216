"""Other mixers that networks are compared with: they fit the slot that GAMA fills."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gamax.blocks.convolution import Conv
from gamax.blocks.pooling import window_mean
from gamax.errors import UserError


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

    The output projection starts at zero, so a fresh block is the identity. With `subsample` keys and values are the
    maxima of squares of so many pixels (section 3.3 of the paper takes 2, a quarter of the work), cut off at the right
    and bottom border. Memory grows with the number of queries times keys: more than `max_pixels` squared of them turn
    into a clear error.
    """

    max_pixels: int = 64 * 64
    subsample: int = 1
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Adds to every pixel the mean of all pixels, weighted by similarity.

        Raises:
            UserError: if the input has too many pixels for `max_pixels`, or `subsample` is less than 1.

        """
        batch, height, width, channels = x.shape
        if self.subsample < 1:
            raise UserError(f"NonLocal needs a subsample of at least 1, not {self.subsample}")
        queries = height * width
        keys = -(-height // self.subsample) * -(-width // self.subsample)
        if queries * keys > self.max_pixels**2:
            raise UserError(
                f"NonLocal on {height}x{width} pixels needs a {queries} x {keys} matrix an image; "
                f"raise max_pixels (now {self.max_pixels}) if that fits in memory, or subsample (now {self.subsample})"
            )
        conv = partial(Conv, kernel_size=1, dtype=self.dtype, param_dtype=self.param_dtype)
        query = conv(channels // 2, name="query")(x).reshape(batch, queries, -1)
        key, value = (
            _maxima(conv(channels // 2, name=name)(x), self.subsample).reshape(batch, keys, -1)
            for name in ("key", "value")
        )
        logits = jnp.einsum("bqc,bkc->bqk", query, key, preferred_element_type=jnp.float32)
        attention = jax.nn.softmax(logits).astype(value.dtype)
        attended = jnp.einsum("bqk,bkc->bqc", attention, value).reshape(batch, height, width, -1)
        return x + conv(channels, initializer=nn.initializers.zeros, name="projection")(attended)


def _maxima(x: Float[Array, "b h w c"], size: int) -> Float[Array, "b h2 w2 c"]:
    """The largest value in every square of `size` pixels, or in what the border leaves of it."""
    padding = tuple((0, -side % size) for side in x.shape[1:3])
    return x if size == 1 else nn.max_pool(x, (size, size), strides=(size, size), padding=padding)
