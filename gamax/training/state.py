"""Everything that a training step reads and changes, as one pytree."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from gamax.config import Experiment, TrainingConfig
from gamax.errors import UserError, nearest
from gamax.training.optimizer import make_optimizer


@flax.struct.dataclass
class TrainState:
    """The state of a run after `step` steps; the position in the data follows from the step.

    The leaves are arrays, or whatever stands for them: shapes, shardings.
    """

    step: Any
    params: Any
    ema_params: Any
    """Moving average of the trained parameters, or None."""
    opt_state: Any
    """Of the trained parameters."""
    key: Any
    """Never changes: the randomness of a step comes from folding the step into it."""
    skipped: Any
    """How many updates in a row were skipped because a gradient was not finite."""
    skipped_total: Any
    """How many were skipped since the first step."""


def frozen_parts(model: nn.Module, training: TrainingConfig) -> frozenset[str]:
    """The parts that are not trained: those that the network itself names in `frozen_parts`, and `training.frozen`."""
    return frozenset((*getattr(model, "frozen_parts", ()), *training.frozen))


def split_params(params: Any, frozen: Collection[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The trained and the frozen parts of a tree of parameters; `UserError` if it has no such part, or no other."""
    for part in sorted(frozen):
        if part not in params:
            raise UserError(f"training.frozen names no part of the network: {nearest(part, params)}")
    trained = {part: leaves for part, leaves in params.items() if part not in frozen}
    if not trained:
        raise UserError(f"training.frozen leaves nothing to train: {', '.join(sorted(params))} is all of the network")
    return trained, {part: params[part] for part in frozen}


def create_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    seed: int,
    patch_size: int,
    ema: bool,
    frozen: Collection[str] = (),
) -> TrainState:
    """The state before the first step; a pure function of its arguments.

    Of `frozen` parts there is neither optimizer state nor a moving average. Raises `UserError` if there is no such
    part, or no other.
    """
    init_key, step_key = jax.random.split(jax.random.key(seed))
    # `lazy_init` runs the initialisers alone; `init` would compile every operation of the network first.
    images = jax.ShapeDtypeStruct((1, patch_size, patch_size, model.input_channels), jnp.float32)
    params = model.lazy_init(init_key, images)["params"]
    trained, _ = split_params(params, frozen)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=jax.tree.map(jnp.copy, trained) if ema else None,
        opt_state=optimizer.init(trained),
        key=step_key,
        skipped=jnp.zeros((), jnp.int32),
        skipped_total=jnp.zeros((), jnp.int32),
    )


def initial_state(model: nn.Module, experiment: Experiment) -> TrainState:
    """The state before the first step of an experiment, all of it random; see `initialization` for given weights."""
    training = experiment.training
    ema, frozen = training.ema_decay is not None, frozen_parts(model, training)
    optimizer = make_optimizer(experiment.optimizer)
    return create_state(model, optimizer, training.seed, experiment.data.patch_size, ema, frozen)


def abstract_state(model: nn.Module, experiment: Experiment) -> TrainState:
    """Shapes and types of that state, without computing it."""
    return jax.eval_shape(partial(initial_state, model, experiment))
