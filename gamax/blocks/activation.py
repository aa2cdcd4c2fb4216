"""The activation that needs more than a line."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`x Phi(x)`, Phi the distribution function of the normal distribution (arXiv 1606.08415), not approximated.

    By `erf`, as PyTorch computes it, in float32. `jax.nn.gelu` goes by `erfc`, which XLA evaluates in two branches.
    """
    values = x.astype(jnp.float32)
    return (values * (0.5 + 0.5 * lax.erf(values * math.sqrt(0.5)))).astype(x.dtype)
