"""Images a second in training: the step and the input pipeline of `train.py`, each row in a process of its own.

`python -m gamax.benchmark.throughput '{"model": "gama_ir_s", ...}'` prints one JSON line; `measure` starts it.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from gamax.config import DataConfig, Experiment, ModelConfig, TrainingConfig, check
from gamax.data.degradations import GaussianNoise
from gamax.data.examples import Example
from gamax.errors import UserError

WARM_UP_STEPS = 4
"""Two whose time is not that of the others, and two until the host is as far ahead of the devices as it may be."""


@dataclass(frozen=True)
class Case:
    """One row of the benchmark."""

    model: str
    patch_size: int = 256
    batch_size: int = 2
    """Over all devices."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the computation; parameters stay float32."""
    remat: bool = False
    """Compute blocks again for the gradient instead of storing them."""
    steps: int = 20
    """Measured steps, behind those that warm up."""
    prepared_dir: str | None = None
    """Where prepared datasets are stored."""


def measure(case: Case) -> dict[str, Any]:
    """Runs one case in a fresh process, so that no allocator and no cache is shared, and returns its row."""
    command = [sys.executable, "-m", "gamax.benchmark.throughput", json.dumps(dataclasses.asdict(case))]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        reason = (finished.stderr.strip().splitlines() or [f"it ended with code {finished.returncode}"])[-1]
        row = f"{case.model} ({case.batch_size}x{case.patch_size}, {case.dtype}, remat {case.remat})"
        raise UserError(f"the benchmark of {row} failed: {reason.removeprefix('gamax.errors.UserError: ')}")
    return json.loads(finished.stdout.splitlines()[-1])


def experiment_of(case: Case) -> Experiment:
    """The training run that a case measures: denoising of the photographs that scikit-image brings along.

    A network that takes more than a photograph is given clean ones, as its input is prepared before training.

    Raises:
        UserError: if no run can have these sizes.

    """
    experiment = Experiment(
        model=ModelConfig(case.model, {"remat": case.remat}, case.dtype),
        data=DataConfig(
            dataset="sample_photographs",
            prepared_dir=case.prepared_dir,
            encoding="raw",
            cut_size=512,
            patch_size=case.patch_size,
            degradations=(GaussianNoise(),),
        ),
        training=TrainingConfig(steps=WARM_UP_STEPS + case.steps, batch_size=case.batch_size),
    )
    check(experiment)
    return experiment


def run_case(case: Case) -> dict[str, Any]:
    """Measures in this process: compilation, the time of every step, the wait for batches, memory."""
    import jax
    import jax.numpy as jnp

    from gamax import models
    from gamax.data.datasets import prepare
    from gamax.data.pipeline import training_batches
    from gamax.environment import environment, versions
    from gamax.training import program
    from gamax.training.plan import step_multiply_adds
    from gamax.training.state import abstract_state, initial_state
    from gamax.training.watching import InputWait

    experiment = experiment_of(case)
    chosen = experiment.model
    model = models.create_model(chosen.name, **chosen.overrides, dtype=jnp.dtype(chosen.dtype))
    images = prepare(experiment.data).train
    if model.input_channels > 3:
        images = _with_inputs(images, model)
        experiment = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, degradations=()))
    abstract = abstract_state(model, experiment)
    memory = program.device_memory(jax.local_devices()[0])
    ((stage, mesh),) = program.stage_meshes(model, experiment, abstract, memory).items()
    crops = {key: (image.shape[-1], image.dtype) for key, image in images[0].items() if key in ("target", "input")}
    started = time.perf_counter()
    compiled = program.compile_step(model, experiment, stage, mesh, abstract, crops, device_bytes=memory)
    compile_seconds = time.perf_counter() - started

    state = jax.device_put(initial_state(model, experiment), compiled.state_shardings)
    batches = training_batches(
        images,
        patch_size=case.patch_size,
        batch_size=case.batch_size,
        seed=experiment.training.seed,
        threads=experiment.data.loader_threads,
    )
    wait = InputWait()
    with closing(batches), closing(_turns(compiled, state, batches, wait)) as turns:
        for _ in range(WARM_UP_STEPS):
            next(turns)
        # Begins to count here.
        wait.fraction()
        processor = time.process_time()
        seconds = np.array([next(turns) for _ in range(case.steps)])
        input_wait = wait.fraction()
        processor = time.process_time() - processor
    p10, median, p90 = np.percentile(seconds, [10, 50, 90])
    return {
        **dataclasses.asdict(case),
        "mesh": dict(mesh.shape),
        "gradient_accumulation": compiled.gradient_accumulation,
        "images_per_second_median": case.batch_size / median,
        "images_per_second_p10": case.batch_size / p90,
        "images_per_second_p90": case.batch_size / p10,
        "step_ms_median": 1e3 * median,
        "step_ms": [1e3 * value for value in seconds],
        "input_wait": input_wait,
        "cores_used": processor / seconds.sum(),
        "compile_seconds": compile_seconds,
        **_memory(compiled),
        "parameters": models.count_parameters(abstract.params),
        "multiply_adds": step_multiply_adds(model, abstract.params, case.patch_size, case.batch_size),
        "versions": versions(),
        "environment": environment(),
    }


def _with_inputs(images: Sequence[Example], model: Any) -> Sequence[Example]:
    """Photographs with an input for a network that takes more than one: the same again for other views and a prior."""
    from gamax.data.datasets import LazyExamples
    from gamax.data.examples import takes_prior

    repeats, dtype = model.input_channels // 3, np.uint16 if takes_prior(model) else np.uint8

    def read(position: int) -> Example:
        example = images[position]
        return {**example, "input": np.tile(example["target"], repeats).astype(dtype)}

    return LazyExamples(len(images), read)


def _turns(compiled: Any, state: Any, batches: Iterator[Any], wait: Any) -> Generator[float]:
    """Trains on and on as the training loop does, and yields the seconds of each turn, its wait for a batch included.

    The host runs ahead of the devices, but not far, so turns take as long as steps.
    """
    import jax

    from gamax.training.loop import STEPS_IN_FLIGHT

    in_flight = deque()
    try:
        while True:
            started = time.perf_counter()
            with wait:
                batch = jax.device_put(next(batches), compiled.images)
            state, metrics = compiled.step(state, batch)
            in_flight.append(metrics["loss"])
            if len(in_flight) > STEPS_IN_FLIGHT:
                in_flight.popleft().block_until_ready()
            yield time.perf_counter() - started
    finally:
        jax.block_until_ready(state)


def _memory(compiled: Any) -> dict[str, Any]:
    """Peak memory of a device where it counts that; else what the compiler plans. Host peak beside it."""
    from gamax.training.watching import GIB, memory_use, peak_process_bytes

    counted = memory_use().get("memory_peak_gib")
    return {
        "peak_memory_bytes": compiled.bytes_per_device if counted is None else int(counted * GIB),
        "peak_memory_method": "state + temporaries of the program" if counted is None else "device counter",
        "state_bytes": compiled.state_bytes,
        "temporary_bytes": compiled.temporary_bytes,
        "peak_process_bytes": peak_process_bytes(),
    }


if __name__ == "__main__":
    print(json.dumps(run_case(Case(**json.loads(sys.argv[1])))))
