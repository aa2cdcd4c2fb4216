"""The training loop: from a configuration to trained parameters, resuming where an earlier start was cut off."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh

from gamax.config import Experiment
from gamax.console import progress_bar, say
from gamax.data.datasets import PreparedDataset
from gamax.data.pipeline import training_batches
from gamax.errors import UserError
from gamax.training.checkpoints import Checkpoints
from gamax.training.optimizer import cosine_schedule, make_optimizer
from gamax.training.run_folder import MetricsLog
from gamax.training.sharding import batch_sharding, replicated, state_sharding
from gamax.training.state import TrainState, create_state
from gamax.training.step import make_train_step


def train(
    experiment: Experiment,
    model: nn.Module,
    dataset: PreparedDataset,
    mesh: Mesh,
    run_dir: Path,
    evaluate_params: Callable[[Any], dict[str, float]],
) -> tuple[Any, float]:
    """Trains, or finishes training that was interrupted.

    Args:
        experiment: the checked configuration.
        model: the network.
        dataset: the images to train on.
        mesh: the devices.
        run_dir: the run folder, already opened.
        evaluate_params: scores parameters; called every `evaluation.every` steps, its values are logged.

    Returns:
        The parameters to use (their moving average if the run keeps one), and the seconds spent in training, over all
        starts.

    Raises:
        UserError: if the data is not that of the earlier start, or the gradients stay infinite or not a number.

    """
    training, logging = experiment.training, experiment.logging
    optimizer = make_optimizer(experiment.optimizer, training.steps)
    initial_state = partial(
        create_state, model, optimizer, training.seed, experiment.data.patch_size, training.ema_decay is not None
    )
    abstract_state = jax.eval_shape(initial_state)
    shardings = state_sharding(mesh, abstract_state)

    checkpoints = Checkpoints(run_dir / "checkpoints", training.checkpoints_kept)
    restored = checkpoints.restore(abstract_state, shardings)
    if restored:
        state, progress = restored
        say(f"resuming from the checkpoint of step {int(state.step)}")
        if progress["data"] != dataset.fingerprint:
            raise UserError(
                f"the training images have changed since the checkpoint in '{run_dir}' was written; "
                "start anew with another --logging.run-dir, or put the images back"
            )
    else:
        state, progress = jax.device_put(initial_state(), shardings), {"seconds": 0.0}
    step = int(state.step)

    batches = training_batches(
        dataset.train,
        patch_size=experiment.data.patch_size,
        batch_size=training.batch_size // jax.process_count(),
        seed=training.seed,
        threads=experiment.data.loader_threads,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    # One batch a step, whatever the number of hosts: the position in the data follows from the step.
    batches.set_state({"next_index": step})
    to_device = partial(jax.make_array_from_process_local_data, batch_sharding(mesh))

    train_step = jax.jit(
        make_train_step(model, optimizer, experiment.data, training),
        donate_argnums=0,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
    )
    learning_rate = cosine_schedule(experiment.optimizer, training.steps)
    log = MetricsLog(run_dir, step, logging.tensorboard)
    started, logged_at, logged_step = time.monotonic(), time.monotonic(), step
    seconds_before = float(progress["seconds"])

    with progress_bar("training", training.steps, "images", step, training.batch_size) as update:
        while step < training.steps:
            batch = jax.tree.map(to_device, next(batches))
            state, metrics = train_step(state, batch)
            step += 1

            if step % logging.every == 0 or step == training.steps:
                values: dict[str, float] = {name: float(value) for name, value in metrics.items()}
                now = time.monotonic()
                rate = (step - logged_step) * training.batch_size / (now - logged_at)
                logged_at, logged_step = now, step
                update(step, f"loss {values['loss']:.4f}")
                log.write(
                    step,
                    samples=step * training.batch_size,
                    learning_rate=learning_rate(step - 1).item(),
                    images_per_second=rate,
                    **values,
                )
                if values["skipped"] >= training.max_skipped_steps:
                    raise UserError(
                        f"the gradient was not finite in the last {values['skipped']:.0f} steps before step {step}; "
                        f"resume from an earlier checkpoint in '{run_dir}' with a lower optimizer.learning_rate"
                    )
            if step % training.checkpoint_every == 0 or step == training.steps:
                spent = seconds_before + time.monotonic() - started
                progress = {"seconds": spent, "data": dataset.fingerprint}
                checkpoints.save(step, state, progress)
            if experiment.evaluation.every and step % experiment.evaluation.every == 0 and step < training.steps:
                log.write(step, **evaluate_params(result_params(state)))
    batches.close()
    checkpoints.close()
    log.close()
    return result_params(state), float(progress["seconds"])


def result_params(state: TrainState) -> Any:
    """The parameters that a run is judged by."""
    return state.params if state.ema_params is None else state.ema_params
