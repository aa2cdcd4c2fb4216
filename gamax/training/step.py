"""One training step: a pure function from state and batch to state and metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Shaped

from gamax.config import Experiment
from gamax.data.examples import order_views
from gamax.data.preprocessing import preprocess
from gamax.training.losses import weighted_sum
from gamax.training.optimizer import make_optimizer, make_schedule
from gamax.training.sharding import gather, rows_divisible, split_rows
from gamax.training.state import TrainState, frozen_parts, split_params

Batch = Mapping[str, Shaped[Array, "b h w c"]]
Metrics = dict[str, Float[Array, ""]]


def make_train_step(
    model: nn.Module, experiment: Experiment, *, mesh: Mesh | None = None, gradient_accumulation: int = 1
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Returns `train_step(state, batch)`, to be jitted with the state donated.

    The batch holds integer images `target` and, for paired data, `input`, `[B, P, P, C]`, the left of two views first.
    Augmentation and degradation happen inside, keyed by the step, to the whole batch, which then goes through the
    network in `gradient_accumulation` parts. On a mesh, parameters are gathered and images split as the rules of
    `sharding` say. An update with a loss or a gradient that is not finite is skipped and counted. Frozen parts have no
    gradient, and go through as they are. The metrics include what the network itself reports of its training, if it
    does.
    """
    data, training = experiment.data, experiment.training
    divisible, frozen = rows_divisible(model), frozen_parts(model, training)
    network_loss = make_network_loss(model, weighted_sum({**training.auxiliary_losses, training.loss: 1.0}))
    optimizer = make_optimizer(experiment.optimizer)
    schedule = make_schedule(experiment.optimizer, training.steps)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        inputs, targets = preprocess(batch, key, data)
        inputs = order_views(inputs, model)
        progress = state.step / training.steps
        old_trained, fixed = split_params(state.params, frozen)

        def loss_of(trained: Any, inputs: Array, targets: Array, keys: Array) -> tuple[Array, Metrics]:
            params = {**trained, **fixed}
            if mesh is not None:
                params = gather(mesh, params)
                inputs, targets = split_rows(mesh, (inputs, targets), divisible=divisible)
            return network_loss(params, inputs, targets, keys, progress)

        (loss, figures), grads = _mean_over_parts(
            jax.value_and_grad(loss_of, has_aux=True),
            old_trained,
            (inputs, targets, network_keys(key, len(inputs))),
            gradient_accumulation,
        )
        gradient_norm = optax.tree.norm(grads)
        # A loss that has overflowed may have a gradient of zero.
        finite = jnp.isfinite(gradient_norm) & jnp.isfinite(loss)

        learning_rate = schedule(state.step)
        updates, opt_state = optimizer.update(grads, state.opt_state, old_trained)
        trained = jax.tree.map(lambda param, update: param - learning_rate * update, old_trained, updates)
        ema_params = state.ema_params
        if training.ema_decay is not None:
            ema_params = optax.incremental_update(trained, ema_params, 1 - training.ema_decay)

        new, old = (trained, ema_params, opt_state), (old_trained, state.ema_params, state.opt_state)
        trained, ema_params, opt_state = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
        skipped = jnp.where(finite, 0, state.skipped + 1)
        skipped_total = state.skipped_total + jnp.where(finite, 0, 1)
        metrics = {
            **figures,
            "loss": loss,
            "gradient_norm": gradient_norm,
            "update_norm": learning_rate * optax.tree.norm(updates),
            "learning_rate": learning_rate,
            "skipped": skipped,
            "skipped_total": skipped_total,
        }
        params = {**trained, **fixed}
        return TrainState(state.step + 1, params, ema_params, opt_state, state.key, skipped, skipped_total), metrics

    return train_step


def make_network_loss(
    model: nn.Module, loss: Callable[[Any, Array], Array]
) -> Callable[..., tuple[Float[Array, ""], Metrics]]:
    """The loss of a batch as a function of parameters, inputs, targets, keys and progress, with further metrics.

    A network that has a method `training_loss(inputs, targets, keys, progress, loss)` computes it itself, with random
    numbers from one key for each image if it needs any, and the part of the training that is done. Of any other it is
    `loss(restored, targets)`, and there are no further metrics.
    """

    def own_loss(params: Any, *arguments: Any) -> Any:
        return model.apply({"params": params}, *arguments, loss, method="training_loss")

    def loss_of_result(params: Any, inputs: Array, targets: Array, *_: Any) -> Any:
        return loss(model.apply({"params": params}, inputs), targets), {}

    return own_loss if hasattr(model, "training_loss") else loss_of_result


def network_keys(step_key: Array, batch_size: int) -> Array:
    """A key for each image of a batch, apart from those that `preprocess` makes of the step's key."""
    return jax.random.split(jax.random.fold_in(step_key, 3), batch_size)


def _mean_over_parts(function: Callable[..., Any], params: Any, batch: tuple[Array, ...], parts: int) -> Any:
    """The mean of `function(params, *part)` over equal parts of the batch, one after the other in a loop."""
    if parts == 1:
        return function(params, *batch)

    def split(images: Array) -> Array:
        # Each part takes every `parts`-th image, so that a batch divided over devices needs not be moved.
        return images.reshape(-1, parts, *images.shape[1:]).swapaxes(0, 1)

    def add(total: Any, part: tuple[Array, ...]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, function(params, *part)), None

    shapes = jax.eval_shape(function, params, *(images[: len(images) // parts] for images in batch))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = lax.scan(add, zeros, tuple(map(split, batch)))
    return jax.tree.map(lambda leaf: leaf / parts, total)
