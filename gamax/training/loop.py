"""The training loop: from a configuration to trained parameters, resuming where an earlier start was cut off."""

from __future__ import annotations

import itertools
import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import flax.linen as nn
import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from gamax import hosts
from gamax.config import Experiment, Stage, samples_seen, stage_ends, to_dict
from gamax.console import progress_bar, say
from gamax.data.datasets import PreparedDataset
from gamax.data.pipeline import training_batches
from gamax.errors import INTERRUPTED_EXIT_CODE, RESTART_EXIT_CODE, StoppedError, UserError
from gamax.evaluation.evaluate import Evaluation
from gamax.evaluation.pictures import save_comparison
from gamax.training import diagnosis
from gamax.training.checkpoints import Checkpoints
from gamax.training.initialization import begin_with, read_initial_weights, source_hashes
from gamax.training.program import StepProgram
from gamax.training.sharding import state_sharding
from gamax.training.state import TrainState, abstract_state, initial_state
from gamax.training.watching import InputWait, MetricsLog, Profiler, memory_use

STEPS_IN_FLIGHT = 2
"""Steps that the host may be ahead of the devices: enough to keep them busy, few enough to hold few batches."""


@dataclass(frozen=True)
class Trained:
    """What training ends with."""

    params: Any
    """The parameters to use (their moving average if the run keeps one), whole, as NumPy arrays."""
    seconds: float
    """Spent in training over all starts, without evaluations."""
    input_wait: float
    """The part of `seconds` that the devices may have waited for images."""
    skipped: int
    """Updates skipped because a gradient was not finite."""
    loss: float
    """Of the last step."""
    best: tuple[int, float] | None
    """Step and PSNR of the best evaluation during training."""
    initial_weights: dict[str, str]
    """SHA-256 of the files that training began with, by part of the network."""


def train(
    experiment: Experiment,
    model: nn.Module,
    dataset: PreparedDataset,
    meshes: Mapping[Stage, Mesh],
    program_of: Callable[[Stage], StepProgram],
    run_dir: Path,
    checkpoints: Checkpoints,
    evaluate_params: Callable[[Any], Evaluation],
    save_best: Callable[[Any], object],
) -> Trained:
    """Trains, or finishes training that was interrupted. Every process of a cluster calls it.

    Args:
        experiment: the checked configuration.
        model: the network.
        dataset: the images to train on.
        meshes: the devices of every stage.
        program_of: the compiled step of a stage.
        run_dir: the run folder, already opened.
        checkpoints: those of the run.
        evaluate_params: scores parameters; called every `evaluation.every` steps, its means are logged.
        save_best: called with the parameters whenever an evaluation is the best so far.

    Raises:
        UserError: if the data is not that of the earlier start, or the gradients stay infinite or not a number.
        StoppedError: when the system asked to stop (SIGTERM, Ctrl-C) and everything has been saved.

    """
    training, every = experiment.training, experiment.logging.every
    state, progress = _start(experiment, model, dataset, meshes, checkpoints, run_dir)
    step = int(state.step)
    waited, waited_before = InputWait(), progress["input_wait"]
    # Moved forward by the time that evaluations take, which is not training.
    started = time.monotonic() - progress["seconds"]
    logged_at, logged_samples, note = time.monotonic(), samples_seen(experiment, step), ""
    in_flight: deque[jax.Array] = deque()
    mesh = next(iter(meshes.values()))

    with ExitStack() as stack:
        stop_requested = stack.enter_context(_stop_signals())
        batches = stack.enter_context(closing(_batches(experiment, dataset, program_of, step)))
        update = stack.enter_context(progress_bar("training", training.steps, "steps", step))
        log = None
        if hosts.is_first():
            log = stack.enter_context(closing(MetricsLog(run_dir, step, experiment.logging, to_dict(experiment))))
        profiler = Profiler(run_dir, experiment.logging.profile)

        while step < training.steps:
            profiler.before(step + 1)
            with waited:
                program, batch = next(batches)
            if program.mesh != mesh:
                state, mesh = jax.jit(lambda leaves: leaves, out_shardings=program.state_shardings)(state), program.mesh
            state, metrics = program.step(state, batch)
            step += 1
            profiler.after(step, metrics)
            in_flight.append(metrics["loss"])
            if len(in_flight) > STEPS_IN_FLIGHT:
                in_flight.popleft().block_until_ready()

            last = step == training.steps
            values: dict[str, float] = {}
            if step % every == 0 or last:
                values = {name: float(value) for name, value in jax.device_get(metrics).items()}
                progress["loss"] = values["loss"]
                now, samples = time.monotonic(), samples_seen(experiment, step)
                values |= {
                    "samples": samples,
                    "images_per_second": (samples - logged_samples) / (now - logged_at),
                    "input_wait": waited.fraction(),
                    **memory_use(),
                }
                logged_at, logged_samples = now, samples
                note = f"loss {values['loss']:.4f}  {values['images_per_second']:.3g} images/s"
                if values["skipped"] >= min(training.max_skipped_steps, max(training.steps - 1, 1)):
                    _stop_for_nonfinite_gradients(experiment, model, state, batch, run_dir)
            update(step, note)

            score = None
            if experiment.evaluation.every and step % experiment.evaluation.every == 0 and not last:
                before = time.monotonic()
                params = hosts.fetch(result_params(state))
                scores = evaluate_params(params)
                score = scores.mean("psnr")
                values |= scores.means()
                if progress["best"] is None or score > progress["best"][1]:
                    progress["best"] = (step, score)
                    _write("the best weights", partial(save_best, params))
                picture = run_dir / "samples" / f"step-{step:08d}.png"
                if log and _write(f"'{picture}'", partial(save_comparison, picture, scores.worst)):
                    log.picture(step, "restored worst", picture)
                paused = time.monotonic() - before
                started, logged_at = started + paused, logged_at + paused
                waited.fraction()
            if values and log:
                log.write(step, values)

            exit_code = stop_requested(step)
            if score is not None or step % training.checkpoint_every == 0 or last or exit_code:
                progress |= {
                    "samples": samples_seen(experiment, step),
                    "seconds": time.monotonic() - started,
                    "input_wait": waited_before + waited.total,
                    "skipped": int(state.skipped_total),
                }
                checkpoints.save(step, state, progress, score)
            if exit_code and not last:
                checkpoints.close()
                raise StoppedError(
                    f"asked to stop: saved after step {step} of {training.steps}; the same command goes on", exit_code
                )
    return Trained(
        params=hosts.fetch(result_params(state)),
        seconds=progress["seconds"],
        input_wait=progress["input_wait"] / max(progress["seconds"], 1e-9),
        skipped=progress["skipped"],
        loss=progress["loss"],
        best=progress["best"] and tuple(progress["best"]),
        initial_weights=progress.get("initial_weights", {}),
    )


def _write(what: str, write: Callable[[], object]) -> bool:
    """Whether the storage took it; if not, that is said, and training goes on."""
    try:
        write()
    except OSError as error:
        say(f"{what} could not be written ({error.strerror}); training goes on")
        return False
    return True


def result_params(state: TrainState) -> Any:
    """The parameters that a run is judged by: the moving average where there is one, which frozen parts have not."""
    return {**state.params, **(state.ema_params or {})}


def _start(
    experiment: Experiment,
    model: nn.Module,
    dataset: PreparedDataset,
    meshes: Mapping[Stage, Mesh],
    checkpoints: Checkpoints,
    run_dir: Path,
) -> tuple[TrainState, dict[str, Any]]:
    """The state and the record of progress to go on from, on the mesh of the first stage."""
    abstract = abstract_state(model, experiment)
    shardings = state_sharding(next(iter(meshes.values())), abstract)
    restored = checkpoints.restore(abstract, shardings)
    if restored is None:
        sources = experiment.training.initial_weights
        for part, source in sources.items():
            say(f"{part} of the parameters: begun with '{source}'")
        state = begin_with(initial_state(model, experiment), read_initial_weights(sources, abstract.params))
        progress = {"data": dataset.fingerprint, "seconds": 0.0, "input_wait": 0.0, "best": None}
        return hosts.place(state, shardings), {**progress, "initial_weights": source_hashes(sources)}
    state, progress = restored
    step = int(state.step)
    say(f"resuming from the checkpoint of step {step}, {progress['samples']:,} samples seen")
    if progress["data"] != dataset.fingerprint:
        raise UserError(
            f"the training images have changed since the checkpoint in '{run_dir}' was written; "
            "start anew with another --logging.run-dir, or put the images back"
        )
    if progress["samples"] != samples_seen(experiment, step):
        raise UserError(
            f"the checkpoint of step {step} in '{run_dir}' has seen {progress['samples']:,} samples, not "
            f"{samples_seen(experiment, step):,} as this configuration; start anew with another --logging.run-dir"
        )
    return state, progress


def _batches(
    experiment: Experiment, dataset: PreparedDataset, program_of: Callable[[Stage], StepProgram], step: int
) -> Generator[tuple[StepProgram, dict[str, jax.Array]], None, None]:
    """The batches on the devices behind the first `step`, each with the program of its stage."""
    for stage, end in stage_ends(experiment):
        if step >= end:
            continue
        program = program_of(stage)
        rows = hosts.local_rows(program.images, stage.batch_size)
        batches = training_batches(
            dataset.train,
            patch_size=stage.patch_size,
            batch_size=stage.batch_size,
            seed=experiment.training.seed,
            threads=experiment.data.loader_threads,
            skip_corrupt=experiment.data.skip_corrupt,
            pad=experiment.data.small_images == "pad",
            first_sample=samples_seen(experiment, step),
            rows=rows,
        )
        with closing(batches):
            for batch in itertools.islice(batches, end - step):
                yield program, hosts.global_batch(batch, program.images, stage.batch_size, rows)
        step = end


@contextmanager
def _stop_signals() -> Iterator[Callable[[int], int]]:
    """Yields a function of the step that says with which code to exit behind it; 0 to go on.

    SIGTERM is what schedulers send before they take a machine away. The second Ctrl-C ends the program at once. Among
    several processes JAX carries the notice to all, and they stop at the same step.
    """
    if jax.process_count() > 1:
        yield lambda step: RESTART_EXIT_CODE if multihost_utils.reached_preemption_sync_point(step) else 0
        return
    received: list[int] = []

    def note(number: int, _: Any) -> None:
        if number == signal.SIGINT and signal.SIGINT in received:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    codes = {int(signal.SIGTERM): RESTART_EXIT_CODE, int(signal.SIGINT): INTERRUPTED_EXIT_CODE}
    try:
        yield lambda step: codes[received[0]] if received else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop_for_nonfinite_gradients(
    experiment: Experiment, model: nn.Module, state: TrainState, batch: Any, run_dir: Path
) -> NoReturn:
    """Finds out what made the last gradient infinite or not a number, keeps what is needed to see it again, raises."""
    # The update was skipped: these are the parameters that it was computed from.
    step = int(state.step)
    words, kind = hosts.fetch(jax.random.key_data(state.key)), jax.random.key_impl(state.key)
    key = jax.random.wrap_key_data(words, impl=kind)
    case = diagnosis.Case(step - 1, key, hosts.fetch(state.params), hosts.fetch(batch))
    found = diagnosis.diagnose(model, experiment, case)
    folder = run_dir / diagnosis.NONFINITE_FOLDER
    if hosts.is_first():
        diagnosis.save(folder, experiment, case, found, run_dir.name)
    raise UserError(
        f"the gradient was not finite in the last {int(state.skipped)} step(s), up to step {step}: {found.sentence()}; "
        f"see '{folder}', and start again in another --logging.run-dir with a lower optimizer.learning_rate"
    )
