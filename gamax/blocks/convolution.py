"""Convolution in the fastest exact formulation for the device it is compiled for.

Measured on CPU, XLA's grouped convolution takes some 50 times longer than shifting and adding, and its
1x1 convolution twice as long as the matrix product that it is (`docs/design.md`). The choice is made by
`jax.lax.platform_dependent` when a program is lowered, so compiling for a TPU on a CPU machine chooses
rightly too. Parameters have the same names and shapes whatever the formulation.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gamax.errors import UserError


@jax.custom_vjp
def depthwise_conv(images: Float[Array, "b h w c"], kernel: Float[Array, "k l 1 c"]) -> Float[Array, "b h w c"]:
    """Cross-correlates every channel with its own odd-sized filter, zeros outside the image.

    Differentiable in reverse mode only.
    """
    return lax.platform_dependent(images, kernel, cpu=_shift_and_add, default=conv)


def conv(images: Float[Array, "b h w c"], kernel: Float[Array, "k l e d"]) -> Float[Array, "b h w d"]:
    """Cross-correlates with an odd-sized kernel, zeros outside the image; as many groups as the shapes say."""
    padding = [(size // 2, size // 2) for size in kernel.shape[:2]]
    groups = images.shape[-1] // kernel.shape[2]
    return lax.conv_general_dilated(
        images, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


def _taps(images: Array, kernel_shape: tuple[int, ...]) -> list[tuple[int, int, Array]]:
    """The image shifted to every position of the filter: `(row, column, [B, H, W, C])` each."""
    rows, columns = kernel_shape[:2]
    height, width = images.shape[1:3]
    padded = jnp.pad(images, ((0, 0), (rows // 2, rows // 2), (columns // 2, columns // 2), (0, 0)))
    return [
        (row, column, padded[:, row : row + height, column : column + width])
        for row in range(rows)
        for column in range(columns)
    ]


def _shift_and_add(images: Array, kernel: Array) -> Array:
    # Summed in float32 and rounded once, as `lax.conv` does for lower precisions.
    wide = kernel.astype(jnp.float32)
    terms = [shifted * wide[row, column, 0] for row, column, shifted in _taps(images, kernel.shape)]
    return sum(terms[1:], start=terms[0]).astype(images.dtype)


def _depthwise_forward(images: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return depthwise_conv(images, kernel), (images, kernel)


def _depthwise_backward(residuals: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    images, kernel = residuals

    def shift_and_add(images: Array, kernel: Array, grad: Array) -> tuple[Array, Array]:
        grad_images = _shift_and_add(grad, kernel[::-1, ::-1])
        # One reduction with an output per tap reads the images once; over the width alone it is vectorised and
        # sums pairwise enough to keep digits. A sum per tap takes ten times as long.
        products = tuple(shifted.astype(jnp.float32) * grad for _, _, shifted in _taps(images, kernel.shape))
        zeros = (jnp.zeros((), jnp.float32),) * len(products)
        over_width = lax.reduce(products, zeros, lambda a, b: tuple(map(lax.add, a, b)), (2,))
        grad_kernel = jnp.stack(over_width).sum((1, 2)).reshape(kernel.shape)
        return grad_images, grad_kernel.astype(kernel.dtype)

    def grouped(images: Array, kernel: Array, grad: Array) -> tuple[Array, Array]:
        return jax.vjp(conv, images, kernel)[1](grad)

    return lax.platform_dependent(images, kernel, grad, cpu=shift_and_add, default=grouped)


depthwise_conv.defvjp(_depthwise_forward, _depthwise_backward)


def torch_uniform(fan_in: int) -> Callable[..., Array]:
    """PyTorch's default initialiser of convolutions, weights and biases alike: uniform in +-1/sqrt(fan_in)."""
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


class Conv(nn.Module):
    """2-D convolution with zero padding of half the odd kernel size, initialised as PyTorch does.

    Maps `[B, H, W, C]` to `[B, H, W, features]`. Parameters: `kernel [k, k, C, features]`, or `[k, k, 1, features]` if
    depth-wise, and `bias [features]`; `initializer` replaces the default of both.
    """

    features: int
    kernel_size: int = 3
    depthwise: bool = False
    use_bias: bool = True
    initializer: Callable[..., Array] | None = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        """Convolves `x`; `UserError` if the kernel is even, or `depthwise` and the channels are not `features`."""
        size, channels = self.kernel_size, x.shape[-1]
        if size % 2 == 0:
            raise UserError(f"kernel_size must be odd, not {size}")
        if self.depthwise and channels != self.features:
            raise UserError(f"a depth-wise convolution of {channels} channels cannot give {self.features} features")
        inputs = 1 if self.depthwise else channels
        init = self.initializer or torch_uniform(size * size * inputs)
        kernel = self.param("kernel", init, (size, size, inputs, self.features), self.param_dtype)
        bias = self.param("bias", init, (self.features,), self.param_dtype) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        if self.depthwise:
            x = depthwise_conv(x, kernel)
        elif size == 1:
            x = jnp.einsum("bhwc,cd->bhwd", x, kernel[0, 0])
        else:
            x = conv(x, kernel)
        return x if bias is None else x + bias
