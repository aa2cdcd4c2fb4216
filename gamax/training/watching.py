"""What a run records and shows while it trains: metrics, pictures, waiting, memory, profiles, and its last table."""

from __future__ import annotations

import datetime
import importlib
import json
import math
import resource
import secrets
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gamax.config import LoggingConfig
from gamax.console import say
from gamax.data.images import read_image, to_rgb
from gamax.errors import UserError
from gamax.files import replace_atomically

SUMMARY_COLUMNS = ("figure", "value")
GIB = 2**30


class MetricsLog:
    """`metrics.jsonl`, TensorBoard and Weights & Biases: one record a logged step, none twice after a resumption.

    Args:
        run_dir: the run folder. It also keeps the name of the run at Weights & Biases, in `wandb_id`.
        first_step: the step that the run goes on from; records of later ones are dropped from `metrics.jsonl`.
        experiment_logging: what is written beside that file.
        config: the whole configuration, shown by Weights & Biases.

    Raises:
        UserError: if a package is missing, or Weights & Biases cannot be reached.

    """

    def __init__(
        self, run_dir: Path, first_step: int, experiment_logging: LoggingConfig, config: dict[str, Any]
    ) -> None:
        self._path = run_dir / "metrics.jsonl"
        kept = []
        for line in self._path.read_text().splitlines() if self._path.exists() else []:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue  # The line that was being written when the run was killed.
            if record["step"] <= first_step:
                kept.append(line + "\n")
        replace_atomically(self._path, "".join(kept).encode())
        self._tensorboard = self._wandb_run = None
        if experiment_logging.tensorboard:
            folder = str(run_dir / "tensorboard")
            self._tensorboard = _import_tensorboard().SummaryWriter(folder, purge_step=first_step + 1)
        if experiment_logging.wandb is not None:
            self._wandb_run = _start_wandb(run_dir, experiment_logging.wandb, config)
            self._wandb_first_step = self._wandb_run.step

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one record; a value that is not finite becomes null in the file.

        A full disk takes the record, not the run.
        """
        record = {name: value if math.isfinite(value) else None for name, value in values.items()}
        try:
            with self._path.open("a") as lines:
                lines.write(json.dumps({"step": step, **record}) + "\n")
        except OSError as error:
            say(f"the metrics of step {step} could not be written ({error.strerror}); training goes on")
        if self._tensorboard is not None:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, step)
        self._to_wandb(step, values)

    def picture(self, step: int, name: str, picture: Path | np.ndarray) -> None:
        """Adds a picture, an image file or uint8 `[H, W, 3]`, to TensorBoard and Weights & Biases."""
        image = to_rgb(read_image(picture)) if isinstance(picture, Path) else picture
        if self._tensorboard is not None:
            self._tensorboard.add_image(name, image, step, dataformats="HWC")
        if self._wandb_run is not None:
            self._to_wandb(step, {name: _import_wandb().Image(image)})

    def _to_wandb(self, step: int, values: Mapping[str, Any]) -> None:
        # It takes no earlier step than it has. It has those that an interrupted run repeats, with the same numbers.
        if self._wandb_run is not None and step >= self._wandb_first_step:
            self._wandb_run.log(dict(values), step=step)

    def close(self) -> None:
        """Flushes and closes TensorBoard's file and the run at Weights & Biases."""
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb_run is not None:
            # Closed on the way out of an error, the run is shown as failed.
            self._wandb_run.finish(exit_code=0 if sys.exception() is None else 1)


def check_logging(logging: LoggingConfig) -> None:
    """Raises `UserError` if a package that `logging` asks for is missing; call it before long work."""
    if logging.tensorboard:
        _import_tensorboard()
    if logging.wandb is not None:
        _import_wandb()


def _import_tensorboard() -> Any:
    try:
        return importlib.import_module("tensorboardX")
    except ImportError as error:
        raise UserError(
            "logging.tensorboard needs tensorboardX: pip install tensorboardX, or set it to False"
        ) from error


def _import_wandb() -> Any:
    try:
        wandb = importlib.import_module("wandb")
        # A folder `wandb`, such as runs leave behind, can be imported as well.
        if not hasattr(wandb, "init"):
            raise ImportError("a folder without the package")
    except ImportError as error:
        raise UserError("logging.wandb needs Weights & Biases: pip install 'gamax[wandb]', or leave it out") from error
    return wandb


def _start_wandb(run_dir: Path, project: str, config: dict[str, Any]) -> Any:
    """A run at Weights & Biases: a new one, or the one whose name the run folder keeps."""
    wandb = _import_wandb()
    path = run_dir / "wandb_id"
    if not path.exists():
        replace_atomically(path, secrets.token_hex(4).encode())
    try:
        return wandb.init(
            project=project, id=path.read_text(), resume="allow", name=run_dir.name, config=config, dir=str(run_dir)
        )
    except wandb.Error as error:
        raise UserError(
            f"Weights & Biases cannot log this run ({' '.join(str(error).split())}); call `wandb login`, set "
            "WANDB_MODE=offline, or leave out logging.wandb"
        ) from error


class InputWait:
    """Measures for how long the loop waits for its batches: `with wait: batch = next(batches)`.

    A device may still be at work meanwhile, so this is the most that faster input could save.
    """

    def __init__(self) -> None:
        self.total = 0.0
        """Seconds waited so far."""
        self._mark = (time.monotonic(), 0.0)

    def __enter__(self) -> None:
        self._entered = time.monotonic()

    def __exit__(self, *exception: object) -> None:
        self.total += time.monotonic() - self._entered

    def fraction(self) -> float:
        """The part of the time since the last call, from 0 to 1; call it after a pause to leave that out."""
        now, (since, waited) = time.monotonic(), self._mark
        self._mark = (now, self.total)
        return (self.total - waited) / max(now - since, 1e-9)


class Profiler:
    """Records the steps from the first to the last of `window` with JAX's profiler, into `profile/` of the run folder.

    `before` and `after` go around all that a step does, its wait for the batch included. Outside the window, or without
    one, they do nothing.
    """

    def __init__(self, run_dir: Path, window: tuple[int, int] | None) -> None:
        self._folder = run_dir / "profile"
        self._window = window
        self._annotation: Any = None

    def before(self, step: int) -> None:
        """Begins to record, at the first step of the window or where a resumed run enters it."""
        if self._window is None or not self._window[0] <= step <= self._window[1]:
            return
        if self._annotation is None:
            jax.profiler.start_trace(self._folder)
        self._annotation = jax.profiler.StepTraceAnnotation("train", step_num=step)
        self._annotation.__enter__()

    def after(self, step: int, metrics: Any) -> None:
        """Ends the record at the last step of the window, once its `metrics` have been computed."""
        if self._window is None or not self._window[0] <= step <= self._window[1]:
            return
        self._annotation.__exit__(None, None, None)
        if step == self._window[1]:
            jax.block_until_ready(metrics)
            jax.profiler.stop_trace()
            say(
                f"profile up to step {step}: xprof --logdir '{self._folder}' (pip install xprof) shows it, "
                "and Perfetto the file *.trace.json.gz there"
            )


def memory_use() -> dict[str, float]:
    """Memory in use now and at most so far, in GiB, of the fullest device of this process.

    CPUs do not count it; there it is the peak of the whole process, `process_memory_peak_gib`.
    """
    counted = [stats for stats in (device.memory_stats() for device in jax.local_devices()) if stats]
    if not counted:
        return {"process_memory_peak_gib": peak_process_bytes() / GIB}
    names = {"memory_in_use_gib": "bytes_in_use", "memory_peak_gib": "peak_bytes_in_use"}
    return {name: max(stats[key] for stats in counted) / GIB for name, key in names.items()}


def peak_process_bytes() -> int:
    """The most memory that this process has had, compilation included."""
    kilobyte = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobyte


def summary(
    *,
    steps: int,
    samples: int,
    epochs: float,
    seconds: float,
    input_wait: float,
    skipped: int,
    memory: Mapping[str, float],
    loss: float | None,
    metric: str,
    best: tuple[int, float] | None,
    last: tuple[int, float] | None,
) -> list[dict[str, str]]:
    """The rows of the table that a run ends with, under `SUMMARY_COLUMNS`.

    Args:
        steps: made so far, over all starts.
        samples: crops that went through the network in them.
        epochs: how often that is the whole dataset.
        seconds: they took.
        input_wait: the part of it spent waiting for batches, from 0 to 1.
        skipped: updates left out because a gradient was not finite.
        memory: of `memory_use`.
        loss: of the last step, if this start made one.
        metric: that evaluations are compared by.
        best: the step and the score of the best evaluation, if there was one.
        last: the same of the last one.

    """
    on_device = "memory_peak_gib" in memory
    peak = memory["memory_peak_gib" if on_device else "process_memory_peak_gib"]
    figures = {
        "steps": f"{steps:,}",
        "samples seen": f"{samples:,}",
        "epochs": f"{epochs:,.1f}",
        "time": str(datetime.timedelta(seconds=round(seconds))),
        "images/s": f"{samples / seconds:,.1f}",
        "input wait": f"{input_wait:.1%}",
        "skipped updates": f"{skipped:,}",
        f"peak memory of {'a device' if on_device else 'the process'}": f"{peak:.2f} GiB",
    }
    if loss is not None:
        figures["last loss"] = f"{loss:.4f}"
    for which, evaluation in {"best": best, "last": last}.items():
        if evaluation is not None:
            figures[f"{which} {metric}"] = f"{evaluation[1]:#.5g} at step {evaluation[0]:,}"
    return [dict(zip(SUMMARY_COLUMNS, row, strict=True)) for row in figures.items()]
