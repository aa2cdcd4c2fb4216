"""Convolution in the fastest exact formulation for the device it is compiled for.

Measured on CPU, XLA's grouped convolution takes some 50 times longer than shifting and adding, and its
1x1 convolution twice as long as the matrix product that it is (`docs/design.md`). The choice is made by
`jax.lax.platform_dependent` when a program is lowered, so compiling for a TPU on a CPU machine chooses
rightly too; one gradient also goes by the number of devices when it is traced. Parameters have the same names and
shapes whatever the formulation.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from gamax.errors import UserError

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def differentiable_choice(
    *,
    cpu: Callable[[Array, Array], Array],
    elsewhere: Callable[[Array, Array], Array],
    cpu_gradient: Callable[[Array, Array, Array], tuple[Array, Array]] | None = None,
) -> Callable[[Array, Array], Array]:
    """One of two equal functions of images and a kernel, differentiable in reverse mode only.

    Each has the gradient that JAX derives from it, but where `cpu_gradient(images, kernel, grad)` is given that of the
    first. Left to itself, JAX would differentiate the choice and store what the gradients of both need.
    """

    @jax.custom_vjp
    def choice(images: Array, kernel: Array) -> Array:
        return lax.platform_dependent(images, kernel, cpu=cpu, default=elsewhere)

    def forward(images: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
        return choice(images, kernel), (images, kernel)

    def backward(arguments: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
        def derived(function: Callable[[Array, Array], Array]) -> Callable[..., tuple[Array, Array]]:
            return lambda images, kernel, grad: jax.vjp(function, images, kernel)[1](grad)

        return lax.platform_dependent(*arguments, grad, cpu=cpu_gradient or derived(cpu), default=derived(elsewhere))

    choice.defvjp(forward, backward)
    return choice


def conv(
    images: Float[Array, "b h w c"], kernel: Float[Array, "k l e d"], stride: int = 1
) -> Float[Array, "b h2 w2 d"]:
    """Cross-correlates with a kernel, zeros outside the image; as many groups as the shapes say.

    The padding is `(size - 1) // 2` on every side: half of an odd kernel; 1 for 4x4, which with stride 2 halves sides.
    One group with stride 1 is differentiable in reverse mode only.
    """
    if stride == 1 and images.shape[-1] == kernel.shape[2]:
        return _dense_conv(images, kernel)
    return _lax_conv(images, kernel, stride)


def _lax_conv(images: Array, kernel: Array, stride: int = 1) -> Array:
    padding = [((size - 1) // 2, (size - 1) // 2) for size in kernel.shape[:2]]
    groups = images.shape[-1] // kernel.shape[2]
    return lax.conv_general_dilated(
        images, kernel, (stride, stride), padding, dimension_numbers=_LAYOUT, feature_group_count=groups
    )


def _dense_gradient(images: Array, kernel: Array, grad: Array) -> tuple[Array, Array]:
    (grad_images,) = jax.linear_transpose(lambda images: _lax_conv(images, kernel), images)(grad)
    return grad_images, _dense_kernel_gradient(images, kernel, grad)


def _dense_kernel_gradient(images: Array, kernel: Array, grad: Array) -> Array:
    """The gradient of a loss by an odd-sized kernel, as XLA's CPU backend computes it fastest."""
    channels, features = kernel.shape[2:]
    if features < channels:
        # Images shifted against a gradient are the gradient shifted the other way against the images. XLA takes ten
        # times as long when the wider one is shifted: the last convolution of a network, to three colours.
        mirrored = _dense_kernel_gradient(grad, kernel.swapaxes(2, 3), images)
        return mirrored[::-1, ::-1].swapaxes(2, 3)
    if channels < 96:
        # Products as narrow as this take up to twice as long as XLA's own gradient, and all shifted images are held.
        return jax.linear_transpose(lambda kernel: _lax_conv(images, kernel), kernel)(grad)[0]
    products = [
        jnp.einsum("bhwc,bhwd->cd", shifted, grad, preferred_element_type=jnp.float32)
        for _, _, shifted in _taps(images, kernel.shape)
    ]
    return jnp.stack(products).reshape(kernel.shape).astype(kernel.dtype)


_dense_conv = differentiable_choice(cpu=_lax_conv, elsewhere=_lax_conv, cpu_gradient=_dense_gradient)


def depthwise_conv(images: Float[Array, "b h w c"], kernel: Float[Array, "k l 1 c"]) -> Float[Array, "b h w c"]:
    """Cross-correlates every channel with its own odd-sized filter, zeros outside the image.

    Differentiable in reverse mode only.
    """
    return _depthwise_conv(images, kernel)


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


def _depthwise_gradient(images: Array, kernel: Array, grad: Array) -> tuple[Array, Array]:
    grad_kernel = _depthwise_kernel_gradient(images, grad, kernel.shape)
    return _shift_and_add(grad, kernel[::-1, ::-1]), grad_kernel.astype(kernel.dtype)


def _depthwise_kernel_gradient(images: Array, grad: Array, kernel_shape: tuple[int, ...]) -> Array:
    rows, columns = kernel_shape[:2]
    batch, height, width, channels = images.shape
    if jax.device_count() > 1:
        # Simulated devices may share the rows of an image, which a loop over rows would gather.
        products = tuple(shifted.astype(jnp.float32) * grad for _, _, shifted in _taps(images, kernel_shape))
        zeros = (jnp.zeros((), jnp.float32),) * len(products)
        over_width = lax.reduce(products, zeros, lambda a, b: tuple(map(lax.add, a, b)), (2,))
        return jnp.stack(over_width).sum((1, 2)).reshape(kernel_shape)

    # Row by row, with a running sum for each tap, all of which stay in the cache. Columns and channels are one axis, so
    # that it is vectorised whatever the number of channels. The reduction above takes two to eight times as long.
    padded = jnp.pad(images, ((0, 0), (rows // 2, rows // 2), (columns // 2, columns // 2), (0, 0)))
    padded, grad = (array.reshape(batch, array.shape[1], -1).astype(jnp.float32) for array in (padded, grad))
    taps = [(row, column) for row in range(rows) for column in range(columns)]

    def add_row(index: ArrayLike, sums: tuple[Array, ...]) -> tuple[Array, ...]:
        grad_row = lax.dynamic_index_in_dim(grad, index, axis=1, keepdims=False)
        image_rows = lax.dynamic_slice_in_dim(padded, index, rows, axis=1)
        return tuple(
            total + image_rows[:, row, column * channels : (column + width) * channels] * grad_row
            for total, (row, column) in zip(sums, taps, strict=True)
        )

    zeros = (jnp.zeros((batch, width * channels), jnp.float32),) * len(taps)
    sums = lax.fori_loop(0, height, add_row, zeros)
    return jnp.stack([total.reshape(-1, channels).sum(0) for total in sums]).reshape(kernel_shape)


_depthwise_conv = differentiable_choice(cpu=_shift_and_add, elsewhere=_lax_conv, cpu_gradient=_depthwise_gradient)


def doubling_conv(images: Float[Array, "b h w c"], kernel: Float[Array, "4 4 d c"]) -> Float[Array, "b h2 w2 d"]:
    """The transpose of a 4x4 convolution with stride 2 and padding 1: `[B, H, W, C]` to `[B, 2 H, 2 W, D]`.

    Differentiable in reverse mode only.
    """
    return _doubling_conv(images, kernel)


def _dilated_conv(images: Array, kernel: Array) -> Array:
    flipped = kernel[::-1, ::-1].swapaxes(2, 3)
    return lax.conv_general_dilated(
        images, flipped, (1, 1), ((2, 2), (2, 2)), lhs_dilation=(2, 2), dimension_numbers=_LAYOUT
    )


def _doubling_products(images: Array, kernel: Array) -> Array:
    # An output pixel meets 2x2 inputs and, by the parity of its row and column, one of four 2x2 kernels cut from the
    # 4x4: a sum of four matrix products. XLA's gradient of the dilated convolution takes ten times as long on CPU.
    batch, height, width, channels = images.shape
    features = kernel.shape[2]
    # Row 2 i + p meets input i - 1 + p + t with kernel row 3 - p - 2 t.
    taps = kernel[::-1, ::-1].reshape(2, 2, 2, 2, features, channels)
    taps = taps.transpose(0, 2, 5, 1, 3, 4).reshape(2, 2, channels, 4 * features)
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    products = sum(
        padded[:, row : row + height + 1, column : column + width + 1] @ taps[row, column]
        for row in (0, 1)
        for column in (0, 1)
    )
    products = jnp.reshape(products, (batch, height + 1, width + 1, 2, 2, features))
    rows = [jnp.stack([products[:, p : p + height, q : q + width, p, q] for q in (0, 1)], axis=3) for p in (0, 1)]
    return jnp.stack(rows, axis=2).reshape(batch, 2 * height, 2 * width, features)


_doubling_conv = differentiable_choice(cpu=_doubling_products, elsewhere=_dilated_conv)


def torch_uniform(fan_in: int) -> Callable[..., Array]:
    """PyTorch's default initialiser of convolutions, weights and biases alike: uniform in +-1/sqrt(fan_in)."""
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


class Conv(nn.Module):
    """2-D convolution with zero padding of half the kernel size, initialised as PyTorch does.

    Maps `[B, H, W, C]` to `[B, H / stride, W / stride, features]`. The kernel size is odd, or with stride 2 it is 2 or
    4. Parameters: `kernel [k, k, C, features]`, or `[k, k, 1, features]` if depth-wise, and `bias [features]`;
    `initializer` replaces the default of both.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    depthwise: bool = False
    use_bias: bool = True
    initializer: Callable[..., Array] | None = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        """Convolves `x`; `UserError` for a kernel, stride, sides or channels that do not go together."""
        size, stride, channels = self.kernel_size, self.stride, x.shape[-1]
        if size % 2 == 0 and (size, stride) not in ((2, 2), (4, 2)):
            raise UserError(f"kernel_size must be odd, or 2 or 4 with stride 2, not {size} with stride {stride}")
        if stride not in (1, 2):
            raise UserError(f"the stride of a convolution must be 1 or 2, not {stride}")
        if x.shape[1] % stride or x.shape[2] % stride:
            raise UserError(f"a stride of {stride} does not divide {x.shape[1]}x{x.shape[2]} pixels")
        if self.depthwise and stride != 1:
            raise UserError(f"a depth-wise convolution has stride 1, not {stride}")
        if self.depthwise and channels != self.features:
            raise UserError(f"a depth-wise convolution of {channels} channels cannot give {self.features} features")
        inputs = 1 if self.depthwise else channels
        init = self.initializer or torch_uniform(size * size * inputs)
        kernel = self.param("kernel", init, (size, size, inputs, self.features), self.param_dtype)
        bias = self.param("bias", init, (self.features,), self.param_dtype) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        if self.depthwise:
            x = depthwise_conv(x, kernel)
        elif size == stride:
            # Squares of pixels that do not overlap: a matrix product.
            batch, height, width, _ = x.shape
            x = x.reshape(batch, height // size, size, width // size, size, channels)
            x = jnp.einsum("bhrwsc,rscd->bhwd", x, kernel)
        else:
            x = conv(x, kernel, stride)
        return x if bias is None else x + bias


class ConvTranspose(nn.Module):
    """Transposed convolution with stride 2, initialised as PyTorch does: `[B, H, W, C]` to `[B, 2 H, 2 W, features]`.

    The kernel size is 2, or 4 with padding 1. Parameters: `kernel [k, k, features, C]`, not flipped, as PyTorch has it,
    and `bias [features]`; `initializer` replaces the default of both.
    """

    features: int
    kernel_size: int
    use_bias: bool = True
    initializer: Callable[..., Array] | None = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        """Doubles the sides of `x`; `UserError` if the kernel size is neither 2 nor 4."""
        size = self.kernel_size
        if size not in (2, 4):
            raise UserError(f"kernel_size of a transposed convolution must be 2 or 4, not {size}")
        # PyTorch takes the fan-in from the features, too.
        init = self.initializer or torch_uniform(size * size * self.features)
        kernel = self.param("kernel", init, (size, size, self.features, x.shape[-1]), self.param_dtype)
        bias = self.param("bias", init, (self.features,), self.param_dtype) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        if size == 2:
            batch, height, width, _ = x.shape
            x = jnp.einsum("bhwc,rsdc->bhrwsd", x, kernel).reshape(batch, 2 * height, 2 * width, self.features)
        else:
            x = doubling_conv(x, kernel)
        return x if bias is None else x + bias
