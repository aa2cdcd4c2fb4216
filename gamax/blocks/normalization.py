"""Normalisation: over the channels of every pixel, and to unit length."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float


class LayerNorm(nn.Module):
    """`(x - mean) / sqrt(variance + epsilon) * scale + bias` over the channels of `[B, H, W, C]`.

    The statistics are float32 whatever the dtype of `x`, and the variance is the mean squared distance from the
    mean: Flax's own fast form, E[x^2] - E[x]^2, loses digits. With `bias_free` (Restormer, arXiv 2111.09881) it is
    `x / sqrt(variance + epsilon) * scale`: the mean counts in the variance alone. Differentiable in reverse mode only.
    """

    epsilon: float = 1e-6
    bias_free: bool = False
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Normalises every pixel; the output has `dtype`, or what `x` and the parameters promote to."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), self.param_dtype)
        normalised = _standardize(x.astype(jnp.float32), self.epsilon, not self.bias_free) * scale
        if not self.bias_free:
            normalised += self.param("bias", nn.initializers.zeros, (x.shape[-1],), self.param_dtype)
        return normalised.astype(nn.dtypes.canonicalize_dtype(x, scale, dtype=self.dtype))


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _standardize(x: Array, epsilon: float, subtract_mean: bool) -> Array:
    """Divides `[B, H, W, C]` by the deviation over the channels; subtracts their mean, or counts it there alone."""
    centred = x - x.mean(-1, keepdims=True)
    inverse_deviation = lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + epsilon)
    return (centred if subtract_mean else x) * inverse_deviation


def _standardize_forward(x: Array, epsilon: float, subtract_mean: bool) -> tuple[Array, tuple[Array, ...]]:
    mean = _channel_mean(x)
    centred = x - mean
    inverse_deviation = lax.rsqrt(_channel_mean(jnp.square(centred)) + epsilon)
    normalised = centred * inverse_deviation
    if subtract_mean:
        return normalised, (normalised, inverse_deviation)
    return x * inverse_deviation, (normalised, inverse_deviation, mean)


def _standardize_backward(
    epsilon: float, subtract_mean: bool, residuals: tuple[Array, ...], grad: Array
) -> tuple[Array]:
    del epsilon
    normalised, inverse_deviation, *mean = residuals
    if subtract_mean:
        output, from_mean = normalised, _channel_mean(grad)
    else:
        output, from_mean = normalised + mean[0] * inverse_deviation, 0.0
    return ((grad - from_mean - normalised * _channel_mean(grad * output)) * inverse_deviation,)


_standardize.defvjp(_standardize_forward, _standardize_backward)


def _channel_mean(x: Array) -> Array:
    """The mean over the channels: `[B, H, W, C]` to `[B, H, W, 1]`.

    On CPU a product with a vector: XLA fuses a reduction there with whatever precedes it in the gradient and computes
    that again and again, three times as long in all. Elsewhere products may round their inputs, sums do not.
    """
    channels = x.shape[-1]

    def product(x: Array) -> Array:
        return x @ jnp.full((channels, 1), 1 / channels, x.dtype)

    return lax.platform_dependent(x, cpu=product, default=lambda x: x.mean(-1, keepdims=True))


def l2_normalize(x: Float[Array, "*shape"], axis: int) -> Float[Array, "*shape"]:
    """Divides by the norm along an axis, at least 1e-12, as `torch.nn.functional.normalize` does; float32."""
    values = x.astype(jnp.float32)
    squares = jnp.square(values).sum(axis, keepdims=True)
    return values * lax.rsqrt(jnp.maximum(squares, 1e-24))
