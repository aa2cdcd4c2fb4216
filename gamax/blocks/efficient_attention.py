"""Efficient attention: every pixel reads a few descriptors of the whole image (arXiv 1812.01243)."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gamax.blocks.convolution import Conv
from gamax.errors import UserError


class EfficientAttention(nn.Module):
    """Attention with two separate soft-maxes in place of one, whose cost grows linearly with the pixels.

    From the source, `descriptors` means of its values are taken, each with weights of its own over all positions; every
    pixel of `x` then gets a mixture of them. With the maps `K` (sums to 1 over positions) and `R` (sums to 1 over
    descriptors), `V` the values and all pixels in one axis:

        m = sigmoid(mask_head(source)),  s = m * source
        K = softmax_positions(key(s)),  V = value(s),  R = softmax_descriptors(query(x))
        y = output(R (K^T V))

    which is `output((R K^T) V)` without the pixels-by-pixels matrix `R K^T`. The mask, which lets the source drop
    pixels, and the absence of a residual are those of the reconstruction of SAPHN's global branch (arXiv 2402.06117,
    no public code). `mask_head`, `key`, `value`, `query` and `output` are 1x1 convolutions; `descriptors=None` means
    `max(16, C // 4)`. Sows the intermediates `mask [B, H2, W2, 1]`, `key_map [B, H2, W2, D]` and
    `query_map [B, H, W, D]`.
    """

    descriptors: int | None = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], source: Float[Array, "b h2 w2 d"] | None = None
    ) -> Float[Array, "b h w c"]:
        """Reads from `source`, of any size and number of channels, or without one from `x` itself.

        The soft-maxes are float32.

        Raises:
            UserError: if there is less than one descriptor.

        """
        channels = x.shape[-1]
        descriptors = max(16, channels // 4) if self.descriptors is None else self.descriptors
        if descriptors < 1:
            raise UserError(f"EfficientAttention needs at least one descriptor, not {descriptors}")
        source = x if source is None else source
        conv = partial(Conv, kernel_size=1, dtype=self.dtype, param_dtype=self.param_dtype)

        mask = nn.sigmoid(conv(1, name="mask_head")(source))
        kept = source * mask
        key = conv(descriptors, name="key")(kept)
        value = conv(channels, name="value")(kept)
        query = conv(descriptors, name="query")(x)
        attended, query_map, key_map = attend(query, key, value)
        for name, values in (("mask", mask), ("key_map", key_map), ("query_map", query_map)):
            self.sow("intermediates", name, values)

        return conv(channels, name="output")(attended)


def attend(
    query: Float[Array, "b h w n"], key: Float[Array, "b h2 w2 n"], value: Float[Array, "b h2 w2 c"]
) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w n"], Float[Array, "b h2 w2 n"]]:
    """Every pixel's mixture of n weighted means of the values (arXiv 1812.01243), in time linear in the pixels.

    Args:
        query: logits of the means for every pixel.
        key: logits of the positions for every mean.
        value: what is averaged, in the precision of the products.

    Returns:
        What every pixel reads, and the soft-maxes of `query` over the means and of `key` over the positions, which are
        float32 at least.
    """
    key_map = jax.nn.softmax(key.astype(jnp.promote_types(key.dtype, jnp.float32)), axis=(1, 2))
    query_map = jax.nn.softmax(query.astype(key_map.dtype))
    means = jnp.einsum("bhwn,bhwc->bnc", key_map.astype(value.dtype), value, preferred_element_type=key_map.dtype)
    attended = jnp.einsum("bhwn,bnc->bhwc", query_map.astype(value.dtype), means.astype(value.dtype))
    return attended, query_map, key_map
