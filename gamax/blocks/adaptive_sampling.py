"""Adaptive sampling: a policy draws pixels without replacement, a refiner improves them (arXiv 2402.06117).

The abstract establishes that hard regions are sampled non-uniformly and refined progressively. Nothing more is public:
the policy head, the refiner and how they are trained are a reconstruction. Drawing by Gumbel noise is arXiv 1903.06059.
"""

from __future__ import annotations

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from gamax.blocks.activation import gelu
from gamax.blocks.convolution import Conv
from gamax.blocks.efficient_attention import attend
from gamax.blocks.normalization import LayerNorm


def gumbel_top_k(key: Key[Array, ""], logits: Float[Array, " n"], count: int) -> Int[Array, " count"]:
    """Draws `count` of n places one after the other, each with the softmax over those that are left (arXiv 1903.06059).

    They are the largest logits after Gumbel noise, in falling order, which is the order of the draws.
    """
    # The cheaper mode has 2^23 different values, so that among a million pixels the largest would be ties.
    noise = jax.random.gumbel(key, logits.shape, jnp.float32, mode="highest")
    return largest(logits.astype(jnp.float32) + noise, count)


def largest(values: Float[Array, " n"], count: int) -> Int[Array, " count"]:
    """Where the `count` largest values are, in falling order; of equal ones the first comes first.

    Sorts all, so that images of a batch stay on the devices that they are divided over: for `lax.top_k`, which on CPU
    takes a tenth of the time, the compiler gathers them.
    """
    return jnp.argsort(-values)[:count]


def draw_log_probs(logits: Float[Array, " n"], drawn: Int[Array, " count"]) -> Float[Array, " count"]:
    """The log-probability of each draw given those before it (Plackett-Luce); float32 at least, differentiable.

    The normaliser of a draw is the log-sum-exp over the places that are left: those never drawn and those drawn later.
    It is summed up from the last draw to the first in O(n + count). Subtracting the drawn from the sum over all places
    would cancel where a drawn logit dominates.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    at_drawn = logits.at[drawn].get(mode="promise_in_bounds", unique_indices=True)
    # Finite, so that the gradient is finite where all places are drawn.
    lowest = jnp.finfo(logits.dtype).min
    never_drawn = jax.nn.logsumexp(logits.at[drawn].set(lowest, mode="promise_in_bounds", unique_indices=True))
    left = lax.cumlogsumexp(jnp.append(at_drawn, never_drawn), reverse=True)
    return at_drawn - left[:-1]


def policy_gradient_loss(
    logits: Float[Array, " n"], drawn: Int[Array, " count"], advantages: Float[Array, " count"]
) -> Float[Array, ""]:
    """`-mean_k A_k log p(s_k | s_<k)`, whose gradient is the REINFORCE estimate; none flows into the advantages."""
    return -(lax.stop_gradient(advantages) * draw_log_probs(logits, drawn)).mean()


def normalized_entropy(logits: Float[Array, " n"]) -> Float[Array, ""]:
    """The entropy of the softmax over `log n`: 1 where all n > 1 places are equally likely, 0 where one is certain."""
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -(jnp.exp(log_probs) * log_probs).sum() / math.log(logits.size)


class SamplingPolicy(nn.Module):
    """One logit per pixel for how much refining it is worth: two 3x3 convolutions with ReLU and a 1x1; reconstruction.

    No gradient flows into the features and the estimate, so that the policy does not shape what it judges. 20,257
    parameters for 32 features and 32 hidden channels.
    """

    hidden: int = 32
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, features: Float[Array, "b h w f"], estimate: Float[Array, "b h w 3"], images: Float[Array, "b h w 3"]
    ) -> Float[Array, "b h w"]:
        """Returns float32 logits, from features, what has been restored so far and the degraded images in [0, 1]."""
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        seen = lax.stop_gradient((features, estimate))
        x = jnp.concatenate([part.astype(self.dtype or jnp.float32) for part in (*seen, images)], axis=-1)
        x = nn.relu(Conv(self.hidden, 3, name="first", **dtypes)(x))
        x = nn.relu(Conv(self.hidden, 3, name="second", **dtypes)(x))
        # Rounded logits would tie, and ties go to the top of the image.
        logits = Conv(1, 1, name="logit", dtype=jnp.float32, param_dtype=self.param_dtype)(x.astype(jnp.float32))
        return logits[..., 0]


class PixelRefiner(nn.Module):
    """Corrections of colours and features at n chosen pixels, each with the context of all of them; reconstruction.

    A 1x1 convolution to `width`, `layers` of linear-cost attention among the tokens with an MLP, and two output layers
    that start at zero, so that a fresh refiner changes nothing. With 32 features and 30 colours a token it has 60,771
    parameters.
    """

    width: int = 64
    layers: int = 2
    descriptors: int = 16
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, features: Float[Array, "b n f"], colours: Float[Array, "b n c"]
    ) -> tuple[Float[Array, "b n 3"], Float[Array, "b n f"]]:
        """Returns what to add to the colours, float32, and to the features of every chosen pixel.

        Args:
            features: of the network at the pixels.
            colours: around and at the pixels, in [0, 1].

        """
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        tokens = jnp.concatenate([part.astype(self.dtype or jnp.float32) for part in (features, colours)], axis=-1)
        # An image of one row: to the blocks for images, tokens are pixels.
        x = Conv(self.width, 1, name="intro", **dtypes)(tokens[:, None])
        for index in range(self.layers):
            x = _TokenBlock(self.descriptors, name=f"block_{index}", **dtypes)(x)
        last = partial(Conv, kernel_size=1, initializer=nn.initializers.zeros, **dtypes)
        colour_change = last(3, name="colours")(x)[:, 0].astype(jnp.float32)
        return colour_change, last(features.shape[-1], name="features")(x)[:, 0]


class _TokenBlock(nn.Module):
    """`x + attention(norm(x))`, then `x + mlp(norm(x))`, on tokens `[B, 1, N, C]`.

    The attention is that of arXiv 1812.01243: every token takes its mixture of `descriptors` weighted means.
    """

    descriptors: int
    dtype: DTypeLike | None
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b 1 n c"]) -> Float[Array, "b 1 n c"]:
        channels = x.shape[-1]
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv, norm = partial(Conv, kernel_size=1, **dtypes), partial(LayerNorm, **dtypes)

        y = norm(name="attention_norm")(x)
        query, key = (conv(self.descriptors, name=name)(y) for name in ("query", "key"))
        attended, _, _ = attend(query, key, conv(channels, name="value")(y))
        x = x + conv(channels, name="output")(attended)

        y = norm(name="mlp_norm")(x)
        return x + conv(channels, name="project")(gelu(conv(2 * channels, name="expand")(y)))
