"""Latency and memory of networks, each row in a process of its own, the timed calls of several rows in turn.

`python -m gamax.benchmark.latency '{"model": "gama_ir_s", ...}'` is such a process; `measure` starts them, asks one
after the other for a few calls, and starts over: whatever disturbs the machine then disturbs all rows alike.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from gamax.benchmark.case import Case, Prepared, check_case, images_and_targets, network
from gamax.benchmark.memory import reset_peak
from gamax.errors import UserError

WORKER = (sys.executable, "-m", "gamax.benchmark.latency")
"""The program that measures a row; its argument is a case as JSON."""

SECONDS_PER_ROW = 6.0
"""Of timed calls: a slow row makes fewer than `repeats`."""
FEWEST_CALLS = 3
"""Of timed calls, however slow they are, unless a case asks for fewer."""

SMALLEST_GRADIENT = 1e-3
"""Gradients of arrays are compared relative to their norm, but at least to this part of the largest norm: some are zero
but for rounding."""
PROBED_PIXELS = 256
"""Numbers of the output that a row keeps."""
PROBED_GRADIENTS, PROBED_NUMBERS = 32, 8
"""Gradients of which a row keeps the norm and some numbers, and how many of each."""
UPDATE_BOUND = 0.2
"""How far, relatively, the falls of the loss by the first update may be apart: an update that is left out is 1."""


def measure(
    cases: Sequence[Case],
    rounds: int = 3,
    *,
    roofline: Mapping[str, Any] | None = None,
    keep_failures: bool = False,
    progress: Callable[[float, str], object] = lambda done, note: None,
) -> list[dict[str, Any]]:
    """Measures cases in turn and returns their rows, which are ready for JSON.

    Each case is prepared in a process of its own, one after the other. The outputs of those that differ in nothing but
    the backend are compared with those of the first of them. Then, `rounds` times, each in its turn makes one call that
    is not timed, as another row has had the caches since, and its part of the timed ones, while all others sleep.

    Args:
        cases: what to measure.
        rounds: how often the cases take turns.
        roofline: of `gamax.benchmark.roofline.measure_roofline`, for the precision of the cases; rows then say which
            part of it they reach.
        keep_failures: a case that cannot be measured gives a row with `failure`, a sentence, and no figures.
        progress: called with the number of cases done so far, a fraction, and what is being done.

    Raises:
        UserError: for a case that cannot be measured, unless `keep_failures`; the others are then closed.

    """
    for case in cases:
        check_case(case)
    together = {"started": datetime.now(UTC).isoformat(), "rounds": rounds}
    rows: list[dict[str, Any]] = [{**dataclasses.asdict(case), **together} for case in cases]
    # What a process that is being killed writes there in the last moment is not worth the rows.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, ExitStack() as running:
        workers: list[Callable[[str], dict[str, Any]]] = []

        def attempt(index: int, step: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
            if "failure" in rows[index]:
                return {}
            try:
                return step(*arguments)
            except UserError as error:
                if not keep_failures:
                    raise
                rows[index]["failure"] = str(error)
                return {}

        calls, references = [], {}
        for index, case in enumerate(cases):
            progress(index / 2, f"{case.model}, {case.backend}: compiling")
            # Only now, as its start would disturb the compilation of the one before.
            workers.append(running.enter_context(_worker(case, Path(folder, str(index)))))
            ready = attempt(index, workers[index], "prepare")
            calls.append(timed_calls(case, ready.pop("warm_call_ms", 0)))
            rows[index] |= ready
            if ready:
                alike = json.dumps(dataclasses.asdict(dataclasses.replace(case, backend="")))
                reference = references.setdefault(alike, (case.backend, Path(folder, f"{index}.npz")))
                outputs = Path(folder, f"{index}.npz")
                rows[index] |= attempt(index, _parity, outputs, ready["output_scale"], *reference)
        latencies: list[list[float]] = [[] for _ in cases]
        for turn in range(rounds):
            for index, case in enumerate(cases):
                done = len(cases) / 2 + (turn + index / len(cases)) * len(cases) / (2 * rounds)
                progress(done, f"{case.model}, {case.backend}: round {turn + 1} of {rounds}")
                count = calls[index] * (turn + 1) // rounds - calls[index] * turn // rounds
                if count:
                    latencies[index] += attempt(index, workers[index], f"measure {count}").get("latency_ms", [])
        for index in range(len(cases)):
            rows[index] |= attempt(index, workers[index], "finish")
    return [
        row if "failure" in row else {**row, **_figures(row, measured, roofline)}
        for row, measured in zip(rows, latencies, strict=True)
    ]


@contextmanager
def _worker(case: Case, files: Path) -> Iterator[Callable[[str], dict[str, Any]]]:
    """A process for a case, and a function that hands it a request and waits for the answer.

    It and whatever it started end with the context. `files` without a suffix is where it may write; compilers put their
    caches beside it, as a process that is killed does not remove them.
    """
    messages = files.with_suffix(".stderr")
    command = [*WORKER, json.dumps(dataclasses.asdict(case)), str(files.with_suffix(".npz"))]
    options: dict[str, Any] = {
        **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True},
        "env": {**os.environ, "TMPDIR": str(files.parent)},
        # So that its children can be ended with it.
        "start_new_session": True,
    }
    with messages.open("w") as errors, subprocess.Popen(command, stderr=errors, **options) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        requests, answers = process.stdin, process.stdout

        def ask(request: str) -> dict[str, Any]:
            with suppress(BrokenPipeError):
                requests.write(request + "\n")
                requests.flush()
            answer = answers.readline()
            if not answer:
                raise UserError(f"the benchmark of {_described(case)} failed: {_reason(process.wait(), messages)}")
            return json.loads(answer)

        try:
            yield ask
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with suppress(BrokenPipeError):
                requests.close()


def _described(case: Case) -> str:
    size = f"{case.height}x{case.width}" if case.batch == 1 else f"{case.batch}x{case.height}x{case.width}"
    return f"{case.model} at {size} ({case.task}, {case.precision}, {case.backend})"


def _reason(code: int, messages: Path) -> str:
    """Why a process ended, from what it printed: its last exception, or its last line."""
    lines = messages.read_text(errors="replace").strip().splitlines()
    exceptions = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Unsupported|Failed)\w*: ", line)]
    if code < 0:
        return f"it was ended by {signal.Signals(-code).name}, which a system that runs out of memory does"
    return (exceptions or lines or [f"it ended with code {code}"])[-1].removeprefix("gamax.errors.UserError: ")


def timed_calls(case: Case, warm_call_ms: float) -> int:
    """How many calls of a case are timed whose call before took so long."""
    affordable = int(1e3 * SECONDS_PER_ROW / max(warm_call_ms, 1e-6))
    return min(case.repeats, max(FEWEST_CALLS, affordable))


def _parity(outputs: Path, output_scale: float, reference: str, reference_outputs: Path) -> dict[str, Any]:
    if outputs == reference_outputs:
        return {"difference": 0.0, "reference": reference}
    with np.load(outputs) as ours, np.load(reference_outputs) as theirs:
        difference = largest_difference(ours, theirs, output_scale)
    # Gradients of a large network in several backends would fill a small disk.
    outputs.unlink()
    # JSON has no number that is not finite.
    return {"difference": difference if np.isfinite(difference) else None, "reference": reference}


def largest_difference(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], output_scale: float) -> float:
    """How far the outputs of two backends are apart, the worst of three: not finite where one of them is not.

    The output: the largest difference, relative to `output_scale`, the largest change that the network makes to its
    input. The loss: relative; where its fall by the update differs by more than `UPDATE_BOUND`, the result is infinite.
    Gradients: the norm of the difference of each array, relative to its norm.

    Raises:
        UserError: if the arrays have other names or shapes.

    """
    shapes = [{name: side[name].shape for name in side} for side in (ours, theirs)]
    for name in {**shapes[0], **shapes[1]}:
        if shapes[0].get(name) != shapes[1].get(name):
            raise UserError(
                f"two backends cannot be compared: '{name}' is {shapes[0].get(name)} in one and "
                f"{shapes[1].get(name)} in the other"
            )
    differences = [np.abs(ours["output"] - theirs["output"]).max() / output_scale]
    if "loss" in theirs:
        differences.append(np.abs(ours["loss"] / theirs["loss"] - 1))
        # Not the losses themselves: next to targets this far away, an update changes them by less than rounding may.
        falls = [float(side["loss"] - side["loss_after_update"]) for side in (ours, theirs)]
        same = abs(falls[0] - falls[1]) <= UPDATE_BOUND * abs(falls[1])
        differences.append(0.0 if same else np.inf)
    norms = _gradient_norms(theirs)
    differences += [np.linalg.norm(ours[name] - theirs[name]) / norm for name, norm in norms.items()]
    return float(np.max(differences))


def _gradient_norms(outputs: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Norms of all gradients, none smaller than `SMALLEST_GRADIENT` of the largest."""
    norms = {name: float(np.linalg.norm(outputs[name])) for name in outputs if name.startswith("gradient/")}
    smallest = SMALLEST_GRADIENT * np.max([*norms.values()]) if norms else 0
    # That of NumPy, which hands on what is not a number.
    return {name: float(np.maximum(norm, smallest)) for name, norm in norms.items()}


def probe(outputs: Mapping[str, np.ndarray], output_scale: float) -> dict[str, list[float]]:
    """A few numbers of the outputs, for rows that are measured apart; where they come from is the same in all of them.

    `probe` is in the units of `largest_difference`: `PROBED_PIXELS` of the output, at random places, and
    `PROBED_NUMBERS` of each of `PROBED_GRADIENTS`. `probe_relative` is to be compared relatively: the loss and the
    norms of those gradients.
    """
    # At regular distances they would all come from a few columns.
    rng = np.random.default_rng(0)
    norms = _gradient_norms(outputs)
    chosen = sorted(norms)[:: -(-len(norms) // PROBED_GRADIENTS) or 1]
    values = rng.choice(outputs["output"].ravel(), PROBED_PIXELS) / output_scale
    gradients = [rng.choice(outputs[name].ravel(), PROBED_NUMBERS) / norms[name] for name in chosen]
    losses = [float(outputs["loss"])] if "loss" in outputs else []
    return {
        "probe": np.concatenate([values, *gradients]).tolist(),
        "probe_relative": [*losses, *(norms[name] for name in chosen)],
    }


def _figures(row: Mapping[str, Any], latencies: Sequence[float], roofline: Mapping[str, Any] | None) -> dict[str, Any]:
    from gamax.benchmark.cost import Cost
    from gamax.benchmark.roofline import floor_ms
    from gamax.environment import flags

    p10, median, p90 = (float(value) for value in np.percentile(latencies, [10, 50, 90]))
    products = Cost(multiply_adds=row["multiply_adds"], product_bytes=row["product_bytes"])
    return {
        "latency_ms_median": median,
        "latency_ms_p10": p10,
        "latency_ms_p90": p90,
        "latency_ms": list(latencies),
        "timed_calls": len(latencies),
        "images_per_second": 1e3 * row["batch"] / median,
        **(floor_ms(products, roofline, median) if roofline else {}),
        "environment": {**row["environment"], "command": sys.argv, "flags": flags()},
    }


def serve() -> None:
    """A worker: prepares the case of the first argument, writes its outputs to the second, and obeys standard input.

    `prepare`, `measure N` (calls) and `finish` are answered by a line of JSON each. The end of the input ends it.
    """
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    case, outputs = Case(**json.loads(sys.argv[1])), Path(sys.argv[2])
    handle = _handler(case, outputs)
    for line in sys.stdin:
        print(json.dumps(handle(*line.split())), file=answers)


def _handler(case: Case, outputs: Path) -> Callable[..., dict[str, Any]]:
    import jax

    from gamax.training.watching import peak_process_bytes

    if case.backend != "jax":
        # It makes parameters and counts products; the accelerator's memory is for PyTorch.
        jax.config.update("jax_platforms", "cpu")
    backend = importlib.import_module(f"gamax.benchmark.{'jax' if case.backend == 'jax' else 'torch'}_backend")
    prepared: Any = None
    number = 0

    def timed_call() -> float:
        nonlocal number
        started = time.perf_counter()
        prepared.call(number)
        number += 1
        return 1e3 * (time.perf_counter() - started)

    def handle(request: str, count: str = "0") -> dict[str, Any]:
        nonlocal prepared
        if request == "prepare":
            prepared = backend.prepare(case)
            np.savez(outputs, **prepared.outputs)
            images = images_and_targets(case)[0]
            output = prepared.outputs["output"]
            # Two views become one image, which is no change of either.
            scale = float(np.abs(output - images if output.shape == images.shape else output).max())
            if not np.isfinite(scale):
                raise UserError("its output is not finite")
            found = {"output_scale": scale, **probe(prepared.outputs, scale), "warm_call_ms": timed_call()}
            # Outputs, such as all gradients, are no part of the memory that the calls take.
            prepared = dataclasses.replace(prepared, outputs={})
            del images, output
            # The system's own peak starts anew too.
            found["peak_process_bytes"] = peak_process_bytes()
            reset_peak()
            return {**prepared.facts, **found}
        if request == "measure":
            timed_call()
            return {"latency_ms": [timed_call() for _ in range(int(count))]}
        return _finished(case, prepared)

    return handle


def _finished(case: Case, prepared: Prepared) -> dict[str, Any]:
    """What is known once the calls are timed; counting comes last, as it takes memory."""
    from gamax.benchmark.cost import model_cost
    from gamax.environment import environment
    from gamax.models import abstract_params, count_parameters

    peak = prepared.peak_memory()
    # JAX sees only the processor in workers of PyTorch.
    device = {} if case.backend == "jax" else {"devices": [prepared.facts["device"]]}
    model = network(case)
    params = abstract_params(model)
    cost = model_cost(model, params, case.height, case.width, case.batch)
    # The gradient takes about twice a forward pass; what `remat` computes again is not counted.
    products = cost * (1 if case.task == "infer" else 3)
    return {
        **peak,
        "parameters": count_parameters(params),
        "multiply_adds": products.multiply_adds,
        "product_bytes": products.product_bytes,
        "activations": cost.activations,
        "depth": cost.depth,
        "environment": environment() | device,
    }


if __name__ == "__main__":
    serve()
