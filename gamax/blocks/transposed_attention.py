"""The transformer block of Restormer (arXiv 2111.09881): attention between channels and a gated feed-forward half."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gamax.blocks.activation import gelu
from gamax.blocks.convolution import Conv
from gamax.blocks.normalization import LayerNorm
from gamax.errors import UserError


class TransposedAttention(nn.Module):
    """Multi-Dconv head transposed attention (MDTA): every channel attends to the channels of its head.

    The attention matrix is `[C / heads, C / heads]` whatever the size of the image: its entries are the cosines
    between channels over all pixels, times a learned temperature. Convolutions have no bias.

    With `window` there is such a matrix for every window of at most that many pixels a side. Windows lie evenly over
    the image, neighbours share at least a quarter, and what a pixel gets is the mean over the windows that hold it.
    This is the test-time local conversion (arXiv 2112.04491) for networks trained on crops; how its authors lay the
    windows for this attention is not described, so that part is a reconstruction. Each window is a part of the program,
    so many small ones take long to compile.
    """

    heads: int
    window: int | None = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Maps features to features of the same shape; `UserError` if the heads do not divide the channels."""
        height, width, channels = x.shape[1:]
        if channels % self.heads:
            raise UserError(f"{channels} channels cannot be divided among {self.heads} heads")
        options = {"use_bias": False, "dtype": self.dtype, "param_dtype": self.param_dtype}
        qkv = Conv(3 * channels, 1, name="qkv", **options)(x)
        qkv = Conv(3 * channels, 3, depthwise=True, name="qkv_spatial", **options)(qkv)
        temperature = self.param("temperature", nn.initializers.ones, (self.heads,), self.param_dtype)
        if self.window is None or self.window >= max(height, width):
            attended = self._attend(qkv, temperature)
        else:
            attended = self._attend_in_windows(qkv, temperature, self.window)
        return Conv(channels, 1, name="project", **options)(attended)

    def _attend(self, qkv: Float[Array, "b h w d"], temperature: Float[Array, " heads"]) -> Float[Array, "b h w c"]:
        batch, height, width, channels = qkv.shape
        channels //= 3
        per_head = (batch, height * width, self.heads, channels // self.heads)
        query, key, value = (part.reshape(per_head) for part in jnp.split(qkv, 3, axis=-1))
        # Dividing the products by the norms instead of the vectors saves writing both anew, and XLA's gradient of the
        # division over all pixels, which on CPU took half of that of the attention.
        products = jnp.einsum("bphc,bphd->bhcd", query, key, preferred_element_type=jnp.float32)
        cosines = products * _inverse_norm(query)[..., None] * _inverse_norm(key)[:, :, None]
        attention = jax.nn.softmax(cosines * temperature[:, None, None].astype(jnp.float32)).astype(value.dtype)
        return jnp.einsum("bhcd,bphd->bphc", attention, value).reshape(batch, height, width, channels)

    def _attend_in_windows(self, qkv: Array, temperature: Array, window: int) -> Array:
        batch, height, width, channels = qkv.shape
        rows, columns = min(window, height), min(window, width)
        places = [(top, left) for top in _starts(height, rows) for left in _starts(width, columns)]
        windows = [qkv[:, top : top + rows, left : left + columns] for top, left in places]
        attended = self._attend(jnp.concatenate(windows), temperature).astype(jnp.float32)
        total = jnp.zeros((batch, height, width, channels // 3), jnp.float32)
        count = np.zeros((height, width, 1), np.float32)
        for (top, left), part in zip(places, jnp.split(attended, len(places)), strict=True):
            total = total.at[:, top : top + rows, left : left + columns].add(part)
            count[top : top + rows, left : left + columns] += 1
        return (total / count).astype(qkv.dtype)


def _inverse_norm(x: Float[Array, "b p h c"]) -> Float[Array, "b h c"]:
    """One over the norm along the pixels, which counts as at least 1e-12, as in `torch.nn.functional.normalize`."""
    squares = jnp.square(x.astype(jnp.float32)).sum(1)
    return lax.rsqrt(jnp.maximum(squares, 1e-24))


def _starts(size: int, window: int) -> list[int]:
    """Where windows begin that cover `size` evenly, as few as share at least a quarter with their neighbours."""
    if window < 1:
        raise UserError(f"a window needs at least one pixel, not {window}")
    steps = -(-(size - window) // (window - window // 4))
    return [round(index * (size - window) / steps) for index in range(steps + 1)] if steps else [0]


class GatedFeedForward(nn.Module):
    """Gated-Dconv feed-forward network (GDFN): `project(gelu(a) * b)`, a and b from a 1x1 and a depth-wise 3x3.

    `int(expansion * C)` hidden channels; convolutions have no bias.
    """

    expansion: float = 2.66
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Maps features to features of the same shape."""
        channels = x.shape[-1]
        hidden = int(self.expansion * channels)
        options = {"use_bias": False, "dtype": self.dtype, "param_dtype": self.param_dtype}
        y = Conv(2 * hidden, 1, name="expand", **options)(x)
        y = Conv(2 * hidden, 3, depthwise=True, name="spatial", **options)(y)
        gate, content = jnp.split(y, 2, axis=-1)
        return Conv(channels, 1, name="project", **options)(gelu(gate) * content)


class TransposedAttentionBlock(nn.Module):
    """`x + attention(norm(x))`, then `x + feed_forward(norm(x))`: the transformer block of Restormer.

    `bias_free` takes the norm of its denoising networks, which neither subtracts the mean nor adds a bias.
    """

    heads: int
    expansion: float = 2.66
    bias_free: bool = False
    window: int | None = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Maps features to features of the same shape."""
        x = x.astype(self.dtype or x.dtype)
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        norm = {"epsilon": 1e-5, "bias_free": self.bias_free, **dtypes}
        attention = TransposedAttention(self.heads, self.window, name="attention", **dtypes)
        x = x + attention(LayerNorm(name="attention_norm", **norm)(x))
        feed_forward = GatedFeedForward(self.expansion, name="feed_forward", **dtypes)
        return x + feed_forward(LayerNorm(name="feed_forward_norm", **norm)(x))
