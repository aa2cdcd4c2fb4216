"""The training loop: from a configuration to trained parameters, resuming where an earlier start was cut off."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
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
from gamax.evaluation.evaluate import Evaluation
from gamax.training.checkpoints import Checkpoints
from gamax.training.optimizer import make_optimizer
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
    checkpoints: Checkpoints,
    evaluate_params: Callable[[Any], Evaluation],
) -> tuple[Any, float]:
    """Trains, or finishes training that was interrupted.

    Args:
        experiment: the checked configuration.
        model: the network.
        dataset: the images to train on.
        mesh: the devices.
        run_dir: the run folder, already opened.
        checkpoints: those of the run.
        evaluate_params: scores parameters; called every `evaluation.every` steps, its means are logged.

    Returns:
        The parameters to use (their moving average if the run keeps one), and the seconds spent in training, over all
        starts, without evaluations.

    Raises:
        UserError: if the data is not that of the earlier start, or the gradients stay infinite or not a number.
    """
    training = experiment.training
    initial_state = partial(
        create_state,
        model,
        make_optimizer(experiment.optimizer),
        training.seed,
        experiment.data.patch_size,
        training.ema_decay is not None,
    )
    abstract_state = jax.eval_shape(initial_state)
    shardings = state_sharding(mesh, abstract_state)
    train_step = jax.jit(
        make_train_step(model, experiment),
        donate_argnums=0,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
    )

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
        batch_size=training.batch_size,
        seed=training.seed,
        threads=experiment.data.loader_threads,
        skip_corrupt=experiment.data.skip_corrupt,
    )
    # One batch a step: the position in the data follows from the step.
    batches.set_state({"next_index": step})
    log = MetricsLog(run_dir, step, experiment.logging.tensorboard)

    # Moved forward by the time that evaluations take, which is not training.
    started = time.monotonic() - float(progress["seconds"])
    logged_at, logged_step, note = time.monotonic(), step, ""
    bar = progress_bar("training", training.steps, "images", step, training.batch_size)
    with closing(batches), closing(log), bar as update:
        while step < training.steps:
            state, metrics = train_step(state, jax.device_put(next(batches), batch_sharding(mesh)))
            step += 1
            last = step == training.steps

            values: dict[str, float] = {}
            if step % experiment.logging.every == 0 or last:
                values = {name: float(value) for name, value in jax.device_get(metrics).items()}
                note = f"loss {values['loss']:.4f}"
                now = time.monotonic()
                values["samples"] = step * training.batch_size
                values["images_per_second"] = (step - logged_step) * training.batch_size / (now - logged_at)
                logged_at, logged_step = now, step
                if values["skipped"] >= (1 if last else training.max_skipped_steps):
                    raise UserError(
                        f"the gradient was not finite in the last {values['skipped']:.0f} step(s), up to step {step}; "
                        f"start again in another --logging.run-dir with a lower optimizer.learning_rate"
                    )
            update(step, note)

            if experiment.evaluation.every and step % experiment.evaluation.every == 0 and not last:
                before = time.monotonic()
                scores = evaluate_params(result_params(state))
                values |= {metric: scores.mean(metric) for metric in ("psnr", "ssim")}
                paused = time.monotonic() - before
                started, logged_at = started + paused, logged_at + paused
            if values:
                log.write(step, values)
            if step % training.checkpoint_every == 0 or last:
                progress = {"seconds": time.monotonic() - started, "data": dataset.fingerprint}
                checkpoints.save(step, state, progress)
    return result_params(state), float(progress["seconds"])


def result_params(state: TrainState) -> Any:
    """The parameters that a run is judged by."""
    return state.params if state.ema_params is None else state.ema_params
