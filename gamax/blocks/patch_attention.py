"""The patch attention of LIR (arXiv 2402.01368): one weight for every dilated grid of pixels."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gamax.blocks.activation import gelu
from gamax.blocks.convolution import Conv, torch_uniform
from gamax.blocks.normalization import LayerNorm
from gamax.errors import UserError


class PatchAttention(nn.Module):
    """`(weight + skip_scale) * x`, one weight for each group of `patch` x `patch` pixels that lie far apart.

    A group is a grid over the whole image: its pixels are H / patch rows and W / patch columns from each other, so that
    there are as many groups as pixels in one cell. Its weight comes from a perceptron over the pixels of `C //
    reduction` channels and is not squashed. `skip_scale [C]` starts at zero: a fresh module has no identity path. As
    the grids span the image, no local conversion (arXiv 2112.04491) applies here.
    """

    patch: int
    reduction: int
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Weighs the pixels of every group; `UserError` if `patch` does not divide the sides."""
        batch, height, width, channels = x.shape
        patch, pixels = self.patch, self.patch**2
        if height % patch or width % patch:
            raise UserError(f"patches of {patch}x{patch} pixels do not divide {height}x{width} pixels")
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        rows, columns = height // patch, width // patch
        reduced = max(channels // self.reduction, 1)

        def dense(features: int, inputs: int, name: str) -> nn.Module:
            init = torch_uniform(inputs)
            return nn.Dense(features, kernel_init=init, bias_init=init, name=name, **dtypes)

        y = Conv(reduced, 1, use_bias=False, name="reduce", **dtypes)(x)
        # `[B, rows, columns, C', patch, patch]`: the perceptron reads channels, then rows, then columns.
        groups = y.reshape(batch, patch, rows, patch, columns, reduced).transpose(0, 2, 4, 5, 1, 3)
        groups = groups.reshape(batch, rows, columns, reduced * pixels)
        hidden = dense(pixels, reduced * pixels, "hidden")(groups)
        hidden = gelu(LayerNorm(epsilon=1e-5, name="hidden_norm", **dtypes)(hidden))
        weight = dense(1, pixels, "weight")(hidden)

        skip_scale = self.param("skip_scale", nn.initializers.zeros, (channels,), self.param_dtype).astype(weight.dtype)
        grids = x.astype(weight.dtype).reshape(batch, patch, rows, patch, columns, channels)
        return (grids * (weight + skip_scale)[:, None, :, None]).reshape(x.shape)
