"""GAMA: global additive multidimensional averaging (arXiv 2404.00807)."""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gamax.blocks.convolution import conv, differentiable_choice, torch_uniform
from gamax.blocks.pooling import box_mean
from gamax.errors import UserError, nearest

AXES = {"channel": 3, "height": 1, "width": 2}
"""The means that GAMA takes, and the axis of `[B, H, W, C]` that each runs over."""


class GAMA(nn.Module):
    """Adds to every feature what its row, its column and its pixel hold on average, filtered.

    Three means, each over one axis of `[H, W, C]`, give three maps; each map is convolved with a 7x7 kernel of its
    own (one channel in and out, no bias, zeros outside) and added back along the axis that was averaged:

        Y[h, w, c] = X[h, w, c] + (K1 * mean_c X)[h, w] + (K2 * mean_h X)[w, c] + (K3 * mean_w X)[h, c]

    3 x 49 = 147 parameters whatever the size. The means over height and width reach over the whole image, so the output
    for a crop is not the crop of the output. Two kernels slide along the channels, whose order matters. Differentiable
    in reverse mode only.

    The identity term and the zero padding come from a third-party reading of the paper.

    With `window` the means over height and width are those of so many pixels around each (`box_mean`), where the image
    is larger: our reconstruction of the test-time local conversion for this block. The filtered maps then differ from
    pixel to pixel, which costs a 7x7 filter for every row and every column.

    Two switches are ours, for ablations: `axes` names the means that are taken, each with its `kernel_size ** 2`
    parameters, and with `combine="multiply"` the sum of the three maps is not added but gates: `X * sigmoid(maps)`.
    """

    kernel_size: int = 7
    window: int | None = None
    axes: tuple[str, ...] = tuple(AXES)
    combine: Literal["add", "multiply"] = "add"
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Maps features to features of the same shape; the means are float32.

        Raises:
            UserError: for an even kernel, or a value of `axes` or `combine` that there is not.

        """
        self._check()
        size = self.kernel_size
        kernels = [
            self.param(f"{name}_kernel", torch_uniform(size * size), (size, size), self.param_dtype)
            for name in self.axes
        ]
        x, *kernels = nn.dtypes.promote_dtype(x, *kernels, dtype=self.dtype)
        result = x if self.combine == "add" else jnp.zeros((), x.dtype)
        for kernel, axis in zip(kernels, (AXES[name] for name in self.axes), strict=True):
            if axis != 3 and self.window is not None and self.window < x.shape[axis]:
                mean = jnp.moveaxis(box_mean(x, self.window, axis), axis, 1).astype(x.dtype)
                # As many maps as rows or columns: their shifted copies would take the memory of 24 images.
                filtered = _convolution(mean.reshape(-1, *mean.shape[2:]), kernel).reshape(mean.shape)
                result = result + jnp.moveaxis(filtered, 1, axis)
            else:
                mean = x.mean(axis, dtype=jnp.float32).astype(x.dtype)
                result = result + jnp.expand_dims(_filter(mean, kernel), axis)
        return result if self.combine == "add" else x * nn.sigmoid(result)

    def _check(self) -> None:
        if self.kernel_size % 2 == 0:
            raise UserError(f"kernel_size must be odd, not {self.kernel_size}")
        for name in self.axes:
            if name not in AXES:
                raise UserError(f"GAMA has no axis {nearest(name, AXES)}")
        if not self.axes or len(set(self.axes)) < len(self.axes):
            raise UserError(f"GAMA takes one to three different axes, not {self.axes}")
        if self.combine not in ("add", "multiply"):
            raise UserError(f"unknown combine {nearest(self.combine, ('add', 'multiply'))} of GAMA")


def _convolution(maps: Float[Array, "b m n"], kernel: Float[Array, "k k"]) -> Float[Array, "b m n"]:
    return conv(maps[..., None], kernel[:, :, None, None])[..., 0]


def _products(maps: Float[Array, "b m n"], kernel: Float[Array, "k k"]) -> Float[Array, "b m n"]:
    # A matrix product weighs the shifted rows for each column of the kernel; shifting and adding these is left. XLA's
    # convolution of one channel takes some ten times as long. Shifting and adding for all taps would be fused into the
    # sum with `x` and done again for every element along the axis of the mean.
    size, (rows, columns) = len(kernel), maps.shape[1:]
    padded = jnp.pad(maps.astype(jnp.float32), ((0, 0), (size // 2, size // 2), (size // 2, size // 2)))
    shifted = jnp.stack([padded[:, row : row + rows] for row in range(size)])
    weighed = jnp.einsum("rk,rbmn->kbmn", kernel.astype(jnp.float32), shifted)
    terms = [weighed[k, :, :, k : k + columns] for k in range(size)]
    return sum(terms[1:], start=terms[0]).astype(maps.dtype)


_filter = differentiable_choice(cpu=_products, elsewhere=_convolution)
