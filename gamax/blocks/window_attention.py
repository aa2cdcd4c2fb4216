"""The transformer block of Swintormer (arXiv 2401.05907): attention between pixels and channels of shifted windows.

The layout is that of the authors' code, written from its description and checked against tensors recorded from it.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int8, Int32

from gamax.blocks.convolution import Conv
from gamax.blocks.naf import simple_gate
from gamax.blocks.normalization import LayerNorm, l2_normalize
from gamax.errors import UserError

# The authors draw from a normal distribution truncated at +-2, a hundred standard deviations.
small_normal = nn.initializers.normal(0.02)
"""Initialiser of all convolutions and matrices of Swintormer but the last."""

_MAX_LOGIT_SCALE = math.log(100)


@jax.custom_vjp
def softmax_plus_one(logits: Float[Array, "*b n"]) -> Float[Array, "*b n"]:
    """`exp(x_i - m) / (1 + sum_j exp(x_j - m))` over the last axis, m being the largest of its logits.

    The one is meant to let a head attend to nothing. Added after the largest logit is subtracted, as the authors do, it
    stands for one more logit as large as that one instead of one of 0, so no weight exceeds a half and the weights
    depend on m: the gradient flows through the maximum too, in equal shares where several logits are the largest.
    Differentiable in reverse mode only.
    """
    exponentials = jnp.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / (1 + exponentials.sum(-1, keepdims=True))


def _softmax_forward(logits: Array) -> tuple[Array, Array]:
    # Weights alone are kept, which their product with the values keeps anyway: logits, exponentials and the position of
    # the maximum as well would make a training step take almost twice the memory.
    weights = softmax_plus_one(logits)
    return weights, weights


def _softmax_backward(weights: Array, grad: Array) -> tuple[Array]:
    mean = (weights * grad).sum(-1, keepdims=True)
    # The weight of the largest logit, and of the one that was added.
    largest = weights.max(-1, keepdims=True)
    is_largest = weights == largest
    share = mean * largest / is_largest.sum(-1, keepdims=True)
    return (weights * (grad - mean) - is_largest * share,)


softmax_plus_one.defvjp(_softmax_forward, _softmax_backward)


def window_regions(rows: int, columns: int, size: int) -> Int8[np.ndarray, "n p"]:
    """Which pixels of a window belong together after the shift, `[rows * columns, size^2]`: those of equal number.

    Rolling an image by half a window brings pixels from opposite borders together in the windows of the last row and
    column. Of a single window, rolled in itself, all four quarters are apart.
    """
    wrapped = np.arange(size) >= size - size // 2
    vertically = (np.arange(rows) == rows - 1)[:, None] & wrapped
    horizontally = (np.arange(columns) == columns - 1)[:, None] & wrapped
    regions = 2 * vertically[:, None, :, None] + horizontally[:, None]
    return regions.reshape(rows * columns, size**2).astype(np.int8)


def relative_offsets(size: int) -> Float[np.ndarray, "n 2"]:
    """All offsets between two pixels of a window, on a logarithmic scale: `[(2 size - 1)^2, 2]` within +-log8(9).

    Row `(dy + size - 1) * (2 size - 1) + dx + size - 1` holds dy and dx (Swin v2, arXiv 2111.09883).
    """
    offsets = np.arange(1 - size, size) / (size - 1) * 8
    scaled = np.sign(offsets) * np.log2(np.abs(offsets) + 1) / 3
    return np.stack(np.meshgrid(scaled, scaled, indexing="ij"), axis=-1).reshape(-1, 2).astype(np.float32)


def _offset_rows(size: int) -> Int32[np.ndarray, "p p"]:
    """The row of `relative_offsets` for every pair of pixels: query minus key."""
    y, x = np.divmod(np.arange(size**2, dtype=np.int32), size)
    return (y[:, None] - y + size - 1) * (2 * size - 1) + x[:, None] - x + size - 1


class PositionBias(nn.Module):
    """A bias for every head and pair of pixels of a window, from a small network on their offset (arXiv 2111.09883).

    `16 * sigmoid(MLP(offset))` with 512 hidden units: float32, `[heads, size^2, size^2]`.
    """

    heads: int
    window_size: int
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self) -> Float[Array, "heads p p"]:
        """Returns the bias of query (second axis) and key (third axis)."""
        size = self.window_size
        options = {"kernel_init": small_normal, "dtype": jnp.float32, "param_dtype": self.param_dtype}
        hidden = nn.relu(nn.Dense(512, name="hidden", **options)(relative_offsets(size)))
        table = nn.Dense(self.heads, use_bias=False, name="output", **options)(hidden)
        return (16 * nn.sigmoid(table)).T[:, _offset_rows(size)]


class WindowAttention(nn.Module):
    """Shifted-window dconv attention (SWDA): half the channels attend between pixels, half between channels.

    All of it happens inside windows of `window_size` squared pixels, which with `shifted` are those of the image rolled
    by half a window. The depth-wise 3x3 convolution behind queries, keys and values sees zeros outside the window. In
    the first half of the channels every pixel attends to the pixels of the window by the cosine of query and key, times
    a learned factor of at most 100, plus a bias for their offset; in the second half every channel attends to the
    channels of its head by the cosine over the pixels of the window. Both use `softmax_plus_one`. Convolutions have no
    bias. Memory is that of `[windows, heads, window_size^2, window_size^2]` float32 logits.

    Pixels that the shift has brought together from opposite borders do not attend to each other: -100, as in Swin.
    Unlike Swin, and like the authors' code, an image of a single window is shifted all the same. The half between
    channels knows nothing of the borders.
    """

    heads: int
    window_size: int = 16
    shifted: bool = False
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Maps features to features of the same shape.

        Raises:
            UserError: for an odd window_size, sides that it does not divide, or channels that twice the heads do not.

        """
        batch, height, width, channels = x.shape
        size, heads = self.window_size, self.heads
        if size < 2 or size % 2:
            raise UserError(f"window_size must be even and at least 2, not {size}")
        if height % size or width % size:
            raise UserError(f"windows of {size}x{size} pixels do not divide {height}x{width} pixels")
        if channels % (2 * heads):
            raise UserError(f"{channels} channels cannot be halved and divided among {heads} heads")
        rows, columns, pixels = height // size, width // size, size**2
        options = {"use_bias": False, "initializer": small_normal, "dtype": self.dtype, "param_dtype": self.param_dtype}

        if self.shifted:
            x = jnp.roll(x, (-size // 2, -size // 2), (1, 2))
        x = x.reshape(batch, rows, size, columns, size, channels).swapaxes(2, 3).reshape(-1, size, size, channels)
        qkv = Conv(3 * channels, 1, name="qkv", **options)(x)
        qkv = Conv(3 * channels, 3, depthwise=True, name="qkv_spatial", **options)(qkv)
        between_pixels, between_channels = jnp.split(qkv.reshape(len(qkv), pixels, -1), 2, axis=-1)
        attended = jnp.concatenate(
            [self._between_pixels(between_pixels, rows, columns), self._between_channels(between_channels)], axis=-1
        )
        y = Conv(channels, 1, name="project", **options)(attended.reshape(-1, size, size, channels))
        y = y.reshape(batch, rows, columns, size, size, channels).swapaxes(2, 3).reshape(batch, height, width, channels)
        return jnp.roll(y, (size // 2, size // 2), (1, 2)) if self.shifted else y

    def _heads(self, qkv: Float[Array, "n p c"]) -> Float[Array, "3 n p heads d"]:
        return jnp.moveaxis(qkv.reshape(*qkv.shape[:2], 3, self.heads, -1), 2, 0)

    def _between_pixels(self, qkv: Float[Array, "n p c"], rows: int, columns: int) -> Float[Array, "n p d"]:
        query, key, value = self._heads(qkv)
        logit_scale = self.param("logit_scale", nn.initializers.constant(math.log(10)), (self.heads,), self.param_dtype)
        factor = jnp.exp(jnp.minimum(logit_scale.astype(jnp.float32), _MAX_LOGIT_SCALE))
        query = (l2_normalize(query, -1) * factor[:, None]).astype(value.dtype)
        key = l2_normalize(key, -1).astype(value.dtype)
        logits = jnp.einsum("nqhd,nkhd->nhqk", query, key, preferred_element_type=jnp.float32)
        bias = PositionBias(self.heads, self.window_size, param_dtype=self.param_dtype, name="position_bias")
        logits = logits + bias()
        if self.shifted:
            regions = np.tile(window_regions(rows, columns, self.window_size), (len(qkv) // (rows * columns), 1))
            apart = jnp.asarray(regions)[:, None, :, None] != regions[:, None, None, :]
            logits = logits - 100.0 * apart
        attention = softmax_plus_one(logits).astype(value.dtype)
        return jnp.einsum("nhqk,nkhd->nqhd", attention, value).reshape(*qkv.shape[:2], -1)

    def _between_channels(self, qkv: Float[Array, "n p c"]) -> Float[Array, "n p d"]:
        query, key, value = self._heads(qkv)
        query, key = l2_normalize(query, 1).astype(value.dtype), l2_normalize(key, 1).astype(value.dtype)
        cosines = jnp.einsum("nphc,nphd->nhcd", query, key, preferred_element_type=jnp.float32)
        attention = softmax_plus_one(cosines).astype(value.dtype)
        return jnp.einsum("nhcd,nphd->nphc", attention, value).reshape(*qkv.shape[:2], -1)


class PointwiseFeedForward(nn.Module):
    """`project(a * b)`, a and b the halves of a 1x1 convolution to `2 int(expansion * C)` channels; no bias.

    The feed-forward half of Restormer without its depth-wise convolution and without an activation.
    """

    expansion: float = 2.66
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Maps features to features of the same shape."""
        channels = x.shape[-1]
        options = {"use_bias": False, "initializer": small_normal, "dtype": self.dtype, "param_dtype": self.param_dtype}
        y = Conv(2 * int(self.expansion * channels), 1, name="expand", **options)(x)
        return Conv(channels, 1, name="project", **options)(simple_gate(y))


class WindowAttentionBlock(nn.Module):
    """`x + attention(norm(x))`, then `x + feed_forward(norm(x))`: the transformer block of Swintormer."""

    heads: int
    expansion: float = 2.66
    window_size: int = 16
    shifted: bool = False
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Maps features to features of the same shape, whose sides `window_size` divides."""
        x = x.astype(self.dtype or x.dtype)
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        attention = WindowAttention(self.heads, self.window_size, self.shifted, name="attention", **dtypes)
        x = x + attention(LayerNorm(1e-5, name="attention_norm", **dtypes)(x))
        feed_forward = PointwiseFeedForward(self.expansion, name="feed_forward", **dtypes)
        return x + feed_forward(LayerNorm(1e-5, name="feed_forward_norm", **dtypes)(x))
