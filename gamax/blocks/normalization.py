"""Normalisation: over the channels of every pixel, and to unit length."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float


class LayerNorm(nn.Module):
    """`(x - mean) / sqrt(variance + epsilon) * scale + bias` over the channels of `[B, H, W, C]`.

    The statistics are float32 whatever the dtype of `x`, and the variance is the mean squared distance from the
    mean: Flax's own fast form, E[x^2] - E[x]^2, loses digits. With `bias_free` (Restormer, arXiv 2111.09881) it is
    `x / sqrt(variance + epsilon) * scale`: the mean counts in the variance alone.
    """

    epsilon: float = 1e-6
    bias_free: bool = False
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Normalises every pixel; the output has `dtype`, or what `x` and the parameters promote to."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), self.param_dtype)
        values = x.astype(jnp.float32)
        centred = values - values.mean(-1, keepdims=True)
        inverse_deviation = lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + self.epsilon)
        if self.bias_free:
            normalised = values * inverse_deviation * scale
        else:
            bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), self.param_dtype)
            normalised = centred * inverse_deviation * scale + bias
        return normalised.astype(nn.dtypes.canonicalize_dtype(x, scale, dtype=self.dtype))


def l2_normalize(x: Float[Array, "*shape"], axis: int) -> Float[Array, "*shape"]:
    """Divides by the norm along an axis, at least 1e-12, as `torch.nn.functional.normalize` does; float32."""
    values = x.astype(jnp.float32)
    squares = jnp.square(values).sum(axis, keepdims=True)
    return values * lax.rsqrt(jnp.maximum(squares, 1e-24))
