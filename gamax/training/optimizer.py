"""AdamW, clipping and the schedules of the learning rate, from the configuration."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

from gamax.config import OptimizerConfig


def make_schedule(config: OptimizerConfig, steps: int) -> Callable[[ArrayLike], Array]:
    """Learning rate of each step, counted from 0: one cosine, or the periods of the configuration."""
    return periodic_schedule(config) if config.periods else cosine_schedule(config, steps)


def periodic_schedule(config: OptimizerConfig) -> Callable[[ArrayLike], Array]:
    """Half cosines one after the other: the schedule of Restormer, LIR and Swintormer.

    Step `i` has the learning rate of the authors' `CosineAnnealingRestartCyclicLR` after `i` scheduler steps: that
    where one period ends still belongs to it. After the last period, where theirs fails, it stays.
    """
    lengths = np.array([period.steps for period in config.periods])
    ends = np.cumsum(lengths)
    low = np.array([period.final_learning_rate for period in config.periods])
    height = np.array([period.restart for period in config.periods]) * (config.learning_rate - low)

    def learning_rate(step: ArrayLike) -> Array:
        step = jnp.asarray(step)
        index = jnp.minimum(jnp.searchsorted(jnp.asarray(ends), step), len(ends) - 1)
        fraction = jnp.minimum((step - jnp.asarray(ends - lengths)[index]) / jnp.asarray(lengths)[index], 1)
        # (1 + cos 2x) / 2, which in float32 keeps its digits where it is small.
        falling = jnp.square(jnp.cos(jnp.pi / 2 * fraction))
        return jnp.asarray(low, jnp.float32)[index] + jnp.asarray(height, jnp.float32)[index] * falling

    return learning_rate


def cosine_schedule(config: OptimizerConfig, steps: int) -> Callable[[ArrayLike], Array]:
    """Learning rate of each step, counted from 0: linear warm-up, then a half cosine to the final learning rate.

    Without warm-up step `i` has the learning rate of PyTorch's `CosineAnnealingLR` after `i` scheduler steps, so the
    final learning rate would be that of step `steps`, one after the last.
    """

    def learning_rate(step: ArrayLike) -> Array:
        step = jnp.asarray(step)
        warmup = config.warmup_steps
        fraction = jnp.clip((step - warmup) / (steps - warmup), 0, 1)
        cosine = config.final_learning_rate + 0.5 * (config.learning_rate - config.final_learning_rate) * (
            1 + jnp.cos(jnp.pi * fraction)
        )
        return jnp.where(step < warmup, config.learning_rate * (step + 1) / max(warmup, 1), cosine)

    return learning_rate


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Global-norm clipping, then AdamW, up to the learning rate: `parameters -= learning_rate * update`.

    The training step multiplies by the learning rate of its own number, so a skipped update does not delay the
    schedule. The decay is decoupled and multiplied by the learning rate, as in PyTorch.
    """
    clip = optax.identity() if config.gradient_clip is None else optax.clip_by_global_norm(config.gradient_clip)
    return optax.chain(
        clip,
        optax.scale_by_adam(b1=config.beta1, b2=config.beta2),
        optax.add_decayed_weights(config.weight_decay),
    )
