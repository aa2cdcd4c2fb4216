"""The content-aware module of SAPHN: global attention and local filtering, mixed pixel by pixel (arXiv 2402.06117)."""

from __future__ import annotations

from typing import Literal, get_args

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gamax.blocks.convolution import Conv
from gamax.blocks.efficient_attention import EfficientAttention
from gamax.blocks.pixel_dependent_filter import PixelDependentFilter
from gamax.errors import UserError

Branches = Literal["both", "attention", "filter"]


class ContentAwareModule(nn.Module):
    """`m * attention(x, source) + (1 - m) * filter(x)` with `m = sigmoid(fusion_head(x))`, one weight a pixel.

    A reconstruction: the paper has no public code, and which sizes it takes is not known. `branches` leaves out one of
    the two, with the fusion; what is left is then the result. `kernel_size` and `max_offset` are those of
    `PixelDependentFilter`, `descriptors` is that of `EfficientAttention`. Sows the intermediate `fusion [B, H, W, 1]`,
    which is `m`. Differentiable in reverse mode only.
    """

    branches: Branches = "both"
    kernel_size: int = 5
    max_offset: int = 2
    descriptors: int | None = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], source: Float[Array, "b h2 w2 d"] | None = None
    ) -> Float[Array, "b h w c"]:
        """Maps features to features of the same shape; the attention reads from `source`, or without one from `x`.

        Raises:
            UserError: if `branches` is none of the three, or a size is not one that its branch takes.

        """
        if self.branches not in get_args(Branches):
            valid = ", ".join(map(repr, get_args(Branches)))
            raise UserError(f"branches of ContentAwareModule must be one of {valid}, not {self.branches!r}")
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        attention = EfficientAttention(self.descriptors, name="attention", **dtypes)
        local_filter = PixelDependentFilter(self.kernel_size, self.max_offset, name="filter", **dtypes)
        if self.branches == "attention":
            return attention(x, source)
        if self.branches == "filter":
            return local_filter(x)
        weight = nn.sigmoid(Conv(1, 3, name="fusion_head", **dtypes)(x))
        self.sow("intermediates", "fusion", weight)
        return weight * attention(x, source) + (1 - weight) * local_filter(x)
