"""A convolution whose taps every pixel weighs and moves for itself: the local branch of SAPHN (arXiv 2402.06117)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gamax.blocks.convolution import Conv, torch_uniform
from gamax.errors import UserError


class PixelDependentFilter(nn.Module):
    """A `kernel_size` convolution whose taps each pixel weighs and moves by up to `max_offset` pixels.

        y[p] = bias + sum_k modulation[p, k] * x(p + p_k + offsets[p, k]) @ kernel[k]

    `x(.)` is bilinear, zero outside the image; `p_k` is the place of tap `k`, row by row. A modulated deformable
    convolution (arXiv 1811.11168) with `offsets = max_offset * tanh(offset_head(x))` and
    `modulation = 1 + modulation_head(x)`, both 3x3 convolutions that start at zero: a fresh filter is an ordinary
    convolution. The bound, like all of SAPHN's local branch, is a reconstruction. With `max_offset=0` there are no
    offsets and no parameters for them. Sows the intermediates `offsets [B, H, W, K*K, 2]` (down and right, in pixels)
    and `modulation [B, H, W, K*K]`. Differentiable in reverse mode only.
    """

    kernel_size: int = 5
    max_offset: int = 2
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Filters features; `UserError` for an even kernel size or a negative offset."""
        size, channels = self.kernel_size, x.shape[-1]
        taps = size * size
        if size < 1 or size % 2 == 0:
            raise UserError(f"kernel_size of PixelDependentFilter must be odd and at least 1, not {size}")
        if self.max_offset < 0:
            raise UserError(f"max_offset of PixelDependentFilter must be 0 pixels or more, not {self.max_offset}")
        init = torch_uniform(taps * channels)
        kernel = self.param("kernel", init, (size, size, channels, channels), self.param_dtype)
        bias = self.param("bias", init, (channels,), self.param_dtype)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        options = {"initializer": nn.initializers.zeros, "dtype": self.dtype, "param_dtype": self.param_dtype}

        modulation = 1 + Conv(taps, 3, name="modulation_head", **options)(x)
        if self.max_offset > 0:
            moved = Conv(2 * taps, 3, name="offset_head", **options)(x).reshape(*x.shape[:3], taps, 2)
            offsets = self.max_offset * jnp.tanh(moved.astype(jnp.promote_types(moved.dtype, jnp.float32)))
        else:
            offsets = jnp.zeros((*x.shape[:3], taps, 2), jnp.float32)
        self.sow("intermediates", "offsets", offsets)
        self.sow("intermediates", "modulation", modulation)
        return pixel_dependent_filter(x, offsets, modulation, kernel, self.max_offset) + bias


@partial(jax.jit, static_argnames="max_offset")
def pixel_dependent_filter(
    x: Float[Array, "b h w c"],
    offsets: Float[Array, "b h w taps 2"],
    modulation: Float[Array, "b h w taps"],
    kernel: Float[Array, "k k c d"],
    max_offset: int,
) -> Float[Array, "b h w d"]:
    """`sum_k modulation[p, k] * x(p + p_k + offsets[p, k]) @ kernel[k]`, bilinear and zero outside the image.

    `offsets` are pixels down and right, of magnitude `max_offset` at most; with 0 they do not count. Sampled and summed
    in float32. Differentiable in reverse mode only; the gradient samples again, so memory does not grow with the taps.
    """
    # On CPU, shifting takes up to twice as long as gathering, and its gradient more than ten times. It is for TPUs,
    # which have no fast way to gather from, or scatter to, places that differ from pixel to pixel; not measured there.
    shifted, gathered = (partial(function, max_offset=max_offset) for function in (shifted_filter, gathered_filter))
    if max_offset == 0:
        return shifted(x, offsets, modulation, kernel)
    return lax.platform_dependent(x, offsets, modulation, kernel, tpu=shifted, default=gathered)


def gathered_filter(
    x: Float[Array, "b h w c"],
    offsets: Float[Array, "b h w taps 2"],
    modulation: Float[Array, "b h w taps"],
    kernel: Float[Array, "k k c d"],
    max_offset: int,
) -> Float[Array, "b h w d"]:
    """`pixel_dependent_filter` as a gather of 2x2 pixels for every pixel and tap."""
    reach = kernel.shape[0] // 2 + max_offset
    padded = _padded(x, reach, reach + 1)
    # Not `jnp.indices`, which takes no sides that are known only when an exported program runs.
    pixels = jnp.stack([lax.broadcasted_iota(jnp.int32, x.shape[1:3], axis) for axis in (0, 1)], axis=-1)

    def sample(tap: Array, offsets: Array, modulation: Array) -> Array:
        whole = jnp.floor(offsets)
        corners = pixels + tap + max_offset + whole.astype(jnp.int32)
        return _bilinear(padded, corners, offsets - whole, modulation)

    return _sum_over_taps(sample, x, offsets, modulation, kernel)


def shifted_filter(
    x: Float[Array, "b h w c"],
    offsets: Float[Array, "b h w taps 2"],
    modulation: Float[Array, "b h w taps"],
    kernel: Float[Array, "k k c d"],
    max_offset: int,
) -> Float[Array, "b h w d"]:
    """`pixel_dependent_filter` as a sum over all whole shifts that the bound allows; at most four count at a pixel."""
    reach = kernel.shape[0] // 2 + max_offset
    padded = _padded(x, reach, reach)
    shifts = range(-max_offset, max_offset + 1)

    def sample(tap: Array, offsets: Array, modulation: Array) -> Array:
        batch, height, width, channels = x.shape
        size = (batch, height + 2 * max_offset, width + 2 * max_offset, channels)
        near = lax.dynamic_slice(padded, (0, *tap, 0), size)
        if max_offset == 0:
            return modulation[..., None] * near
        down, right = (
            [jnp.maximum(0, 1 - abs(offset - shift)) for shift in shifts]
            for offset in (offsets[..., :1], offsets[..., 1:])
        )
        terms = [
            down[row] * right[column] * near[:, row : row + height, column : column + width]
            for row in range(len(shifts))
            for column in range(len(shifts))
        ]
        return modulation[..., None] * sum(terms[1:], start=terms[0])

    return _sum_over_taps(sample, x, offsets, modulation, kernel)


def _padded(x: Array, before: int, after: int) -> Array:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return jnp.pad(wide, ((0, 0), (before, after), (before, after), (0, 0)))


def _sum_over_taps(
    sample: Callable[[Array, Array, Array], Array], x: Array, offsets: Array, modulation: Array, kernel: Array
) -> Array:
    """Adds up the taps: `sample(row and column, offsets, modulation)` gives what one of them meets at every pixel."""
    size, _, channels, features = kernel.shape
    wide = jnp.promote_types(x.dtype, jnp.float32)

    # The loop keeps what runs forwards apart from the gradient, so no barrier has to keep the two from being merged.
    @partial(jax.checkpoint, prevent_cse=False)
    def contribution(tap: Array, offsets: Array, modulation: Array, weight: Array) -> Array:
        values = sample(tap, offsets.astype(wide), modulation.astype(wide)).astype(x.dtype)
        return jnp.matmul(values, weight, preferred_element_type=wide)

    def add(total: Array, tap: tuple[Array, ...]) -> tuple[Array, None]:
        return total + contribution(*tap), None

    positions = jnp.moveaxis(jnp.indices((size, size)), 0, -1).reshape(-1, 2)
    per_tap = jnp.moveaxis(offsets, 3, 0), jnp.moveaxis(modulation, 3, 0), kernel.reshape(-1, channels, features)
    total, _ = lax.scan(add, jnp.zeros((*x.shape[:3], features), wide), (positions, *per_tap))
    return total.astype(x.dtype)


_SQUARES = lax.GatherDimensionNumbers(offset_dims=(2, 3, 4), collapsed_slice_dims=(), start_index_map=(0, 1))


def _squares(padded: Array, corners: Array) -> Array:
    """The 2x2 pixels `[B, H, W, 2, 2, C]` whose upper left ones are at the rows and columns `corners [B, H, W, 2]`."""
    size = (2, 2, padded.shape[-1])
    return jax.vmap(lambda image, corners: lax.gather(image, corners, _SQUARES, size, mode="clip"))(padded, corners)


def _quarters(squares: Array) -> tuple[Array, ...]:
    return tuple(squares[:, :, :, row, column] for row in (0, 1) for column in (0, 1))


@jax.custom_vjp
def _bilinear(padded: Array, corners: Array, fractions: Array, modulation: Array) -> Array:
    """`modulation [B, H, W]` times what is `fractions` of a pixel down and right of `corners`, both `[B, H, W, 2]`."""
    upper_left, upper_right, lower_left, lower_right = _quarters(_squares(padded, corners))
    down, right = fractions[..., :1], fractions[..., 1:]
    left = upper_left + down * (lower_left - upper_left)
    return modulation[..., None] * (left + right * (upper_right + down * (lower_right - upper_right) - left))


def _bilinear_forward(*arguments: Array) -> tuple[Array, tuple[Array, ...]]:
    return _bilinear(*arguments), arguments


def _bilinear_backward(arguments: tuple[Array, ...], grad: Array) -> tuple[Array | None, ...]:
    # Sums over the channels as products of matrices, and one scatter of squares: on CPU the sums, and the gradient of
    # slices of squares, that JAX derives take four times as long.
    padded, corners, fractions, modulation = arguments
    squares, scatter = jax.vjp(lambda padded: _squares(padded, corners), padded)
    upper_left, upper_right, lower_left, lower_right = _quarters(jnp.einsum("bhwrsc,bhwc->bhwrs", squares, grad))
    down, right = fractions[..., 0], fractions[..., 1]
    up, left = 1 - down, 1 - right
    grad_fractions = modulation[..., None] * jnp.stack(
        [
            left * (lower_left - upper_left) + right * (lower_right - upper_right),
            up * (upper_right - upper_left) + down * (lower_right - lower_left),
        ],
        axis=-1,
    )
    grad_modulation = up * (left * upper_left + right * upper_right) + down * (left * lower_left + right * lower_right)
    weights = modulation[..., None] * jnp.stack([up * left, up * right, down * left, down * right], axis=-1)
    (grad_padded,) = scatter(weights.reshape(*modulation.shape, 2, 2, 1) * grad[:, :, :, None, None])
    return grad_padded, None, grad_fractions, grad_modulation


_bilinear.defvjp(_bilinear_forward, _bilinear_backward)
