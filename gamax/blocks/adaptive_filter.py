"""The adaptive filter of LIR (arXiv 2402.01368): a learned mix of fixed edge filters and a Gaussian high-pass."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gamax.blocks.convolution import depthwise_conv
from gamax.errors import UserError

_EDGE_FILTERS = 1e-3 * np.array(
    [
        [[1, 0, -1], [2, 0, -2], [1, 0, -1]],  # Sobel x
        [[1, 2, 1], [0, 0, 0], [-1, -2, -1]],  # Sobel y
        [[0, 1, 0], [1, -4, 1], [0, 1, 0]],  # Laplacian
        [[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]],  # edge
        [[0, 1, 2], [-1, 0, 1], [-2, -1, 0]],  # Sobel xy
        [[-2, -1, 0], [-1, 0, 1], [0, 1, 2]],  # Sobel yx
        [[1, 0, 0], [0, -1, 0], [0, 0, 0]],  # Roberts x
        [[0, 1, 0], [-1, 0, 0], [0, 0, 0]],  # Roberts y
    ]
)
_REACH, _SIGMA = 7, 5.0
_GAUSSIAN = np.exp(-0.5 * (np.arange(_REACH + 1) / _SIGMA) ** 2)
_GAUSSIAN /= 2 * _GAUSSIAN.sum() - _GAUSSIAN[0]


def gaussian_blur(images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Convolves every channel with a 15x15 Gaussian (sigma 5), the image reflected at its border; float32.

    Sides of at least 8 pixels. Differentiable in reverse mode only.
    """
    return _blur(images.astype(jnp.float32))


@jax.custom_vjp
def _blur(images: Array) -> Array:
    for axis in (1, 2):
        images = _weighted_shifts(jnp.pad(images, _along(axis, _REACH, _REACH), mode="reflect"), axis)
    return images


def _along(axis: int, before: int, after: int) -> list[tuple[int, int]]:
    return [(before, after) if index == axis else (0, 0) for index in range(4)]


def _weighted_shifts(padded: Array, axis: int) -> Array:
    """The Gaussian along one axis, which becomes 14 shorter.

    On CPU this takes half the time of products with banded matrices, or less, and a twentieth of a grouped
    convolution's.
    """
    size = padded.shape[axis] - 2 * _REACH

    def shifted(offset: int) -> Array:
        return lax.slice_in_dim(padded, _REACH + offset, _REACH + offset + size, axis=axis)

    pairs = (float(_GAUSSIAN[t]) * (shifted(-t) + shifted(t)) for t in range(1, _REACH + 1))
    return sum(pairs, start=float(_GAUSSIAN[0]) * shifted(0))


def _blur_forward(images: Array) -> tuple[Array, None]:
    return _blur(images), None


def _blur_backward(_: None, grad: Array) -> tuple[Array]:
    # The Gaussian is symmetric, so its transpose is itself; what it leaves outside the image goes back to the pixels
    # that were reflected there. XLA's own gradient, a sum of padded copies, takes forty times as long or more on CPU.
    for axis in (2, 1):
        size = grad.shape[axis]
        spread = _weighted_shifts(jnp.pad(grad, _along(axis, 2 * _REACH, 2 * _REACH)), axis)
        before, inside, after = jnp.split(spread, (_REACH, _REACH + size), axis)
        rest = size - _REACH - 1
        grad = inside + jnp.pad(jnp.flip(before, axis), _along(axis, 1, rest))
        grad += jnp.pad(jnp.flip(after, axis), _along(axis, rest, 1))
    return (grad,)


_blur.defvjp(_blur_forward, _blur_backward)


class AdaptiveFilter(nn.Module):
    """`sum_i weight_i filter_i(x) + identity_weight * x` over nine fixed filters, the same for every channel.

    Eight are 3x3 edge filters times 1/1000 with zeros outside the image, in the order Sobel x and y, Laplacian, edge,
    Sobel xy and yx, Roberts x and y; they are merged into one kernel, which is exact. The ninth is the high-pass
    `x - gaussian_blur(x)`. `filter_weights [9]` start at one and `identity_weight [1]` at zero, so a fresh filter is
    little else than the high-pass. That is a small difference of large numbers, so all is computed in float32. The
    authors' merged inference path takes the weights in another order than their training: this is that of training.
    """

    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Filters every channel; `UserError` for sides shorter than 8 pixels, which cannot be reflected."""
        height, width, channels = x.shape[1:]
        if height <= _REACH or width <= _REACH:
            raise UserError(f"AdaptiveFilter needs sides of at least {_REACH + 1} pixels, not {height}x{width}")
        weights = self.param("filter_weights", nn.initializers.ones, (9,), self.param_dtype)
        identity_weight = self.param("identity_weight", nn.initializers.zeros, (1,), self.param_dtype)
        weights, identity_weight = weights.astype(jnp.float32), identity_weight.astype(jnp.float32)
        values = x.astype(jnp.float32)
        kernel = (weights[:8, None, None] * _EDGE_FILTERS.astype(np.float32)).sum(0)
        edges = depthwise_conv(values, jnp.broadcast_to(kernel[:, :, None, None], (3, 3, 1, channels)))
        # The high-pass stays outside the kernel: accelerators round what they convolve, and the difference would show.
        high_pass = values - gaussian_blur(values)
        return (edges + weights[8] * high_pass + identity_weight * values).astype(self.dtype or x.dtype)
