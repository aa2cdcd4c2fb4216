"""Everything that a training step reads and changes, as one pytree."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from gamax.config import Experiment
from gamax.training.optimizer import make_optimizer


@flax.struct.dataclass
class TrainState:
    """The state of a run after `step` steps; the position in the data follows from the step.

    The leaves are arrays, or whatever stands for them: shapes, shardings.
    """

    step: Any
    params: Any
    ema_params: Any
    """Moving average of the parameters, or None."""
    opt_state: Any
    key: Any
    """Never changes: the randomness of a step comes from folding the step into it."""
    skipped: Any
    """How many updates in a row were skipped because a gradient was not finite."""
    skipped_total: Any
    """How many were skipped since the first step."""


def create_state(
    model: nn.Module, optimizer: optax.GradientTransformation, seed: int, patch_size: int, ema: bool
) -> TrainState:
    """The state before the first step; a pure function of its arguments."""
    init_key, step_key = jax.random.split(jax.random.key(seed))
    # `lazy_init` runs the initialisers alone; `init` would compile every operation of the network first.
    images = jax.ShapeDtypeStruct((1, patch_size, patch_size, 3), jnp.float32)
    params = model.lazy_init(init_key, images)["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=jax.tree.map(jnp.copy, params) if ema else None,
        opt_state=optimizer.init(params),
        key=step_key,
        skipped=jnp.zeros((), jnp.int32),
        skipped_total=jnp.zeros((), jnp.int32),
    )


def initial_state(model: nn.Module, experiment: Experiment) -> TrainState:
    """The state before the first step of an experiment."""
    ema = experiment.training.ema_decay is not None
    optimizer = make_optimizer(experiment.optimizer)
    return create_state(model, optimizer, experiment.training.seed, experiment.data.patch_size, ema)


def abstract_state(model: nn.Module, experiment: Experiment) -> TrainState:
    """Shapes and types of that state, without computing it."""
    return jax.eval_shape(partial(initial_state, model, experiment))
