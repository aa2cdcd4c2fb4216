"""AdamW, clipping and the cosine schedule, from the configuration."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from gamax.config import OptimizerConfig


def cosine_schedule(config: OptimizerConfig, steps: int) -> Callable[[ArrayLike], Array]:
    """Learning rate of each step, counted from 0: linear warm-up, then a half cosine to the final learning rate.

    Without warm-up step `i` has the learning rate of PyTorch's `CosineAnnealingLR` after `i` scheduler steps.
    """

    def learning_rate(step: ArrayLike) -> Array:
        warmup = config.warmup_steps
        step = jnp.asarray(step)
        fraction = jnp.clip((step - warmup) / (steps - warmup), 0, 1)
        cosine = config.final_learning_rate + 0.5 * (config.learning_rate - config.final_learning_rate) * (
            1 + jnp.cos(jnp.pi * fraction)
        )
        return jnp.where(step < warmup, config.learning_rate * (step + 1) / max(warmup, 1), cosine)

    return learning_rate


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Global-norm clipping, then AdamW under the schedule; the decay is multiplied by the learning rate."""
    adamw = optax.adamw(
        cosine_schedule(config, steps), b1=config.beta1, b2=config.beta2, weight_decay=config.weight_decay
    )
    if config.gradient_clip is None:
        return adamw
    return optax.chain(optax.clip_by_global_norm(config.gradient_clip), adamw)
