"""How cost grows with pixels, width and batch, and with simulated devices that share the rows of an image.

Devices are simulated on the processor (`--xla_force_host_platform_device_count`): they share the same cores, so their
latency shows what splitting costs, never what more hardware would gain.

`python -m gamax.benchmark.scaling '{"case": {...}, "devices": 2}'` prints the row of one split image, and
`'{"check": [{...}]}'` which cases would not fit into memory: both in a process of their own.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gamax.benchmark.case import Case, device_name, images_and_targets, network, random_parameters
from gamax.benchmark.comparison import find_rows, measure_groups, read_rows, source_sha256
from gamax.benchmark.cost import model_cost
from gamax.benchmark.jax_backend import program_bytes
from gamax.benchmark.latency import timed_calls
from gamax.benchmark.plots import scaling_panels
from gamax.benchmark.roofline import MATMUL_PRECISION
from gamax.console import say
from gamax.environment import environment, flags, versions
from gamax.errors import UserError
from gamax.evaluation.restorer import apply_network
from gamax.files import replace_atomically, write_json
from gamax.models import abstract_params, count_parameters

Sweep = Literal["pixels", "width", "batch", "devices"]

CAVEAT = "simulated devices share the same cores: more of them show what splitting costs, not a gain in speed"

LABELS: dict[Sweep, str] = {
    "pixels": "pixels of the image, millions",
    "width": "channels at full resolution",
    "batch": "images in a call",
    "devices": "simulated devices (memory: of one)\n(they share the same cores: no gain in speed)",
}
"""What the horizontal axis of a sweep says."""

SIDE = 256
"""Side of the images of the sweeps over width and batch, in pixels."""
DEVICES_SIDE = 512
"""Side of the image that devices share, in pixels."""
FULL = 0.8
"""Of the free memory a program may take so much."""


@dataclass(frozen=True)
class Point:
    """One point of one line."""

    sweep: Sweep
    along: float
    """Where it is on the axis of its sweep."""
    case: Case
    devices: int | None = None
    """Simulated devices that share the rows of the image; None for the network as it usually runs."""


def points(
    model: str,
    sides: Sequence[int],
    widths: Sequence[int],
    batches: Sequence[int],
    devices: Sequence[int],
    **fields: Any,
) -> list[Point]:
    """The points of one network, each sweep from small to large.

    Args:
        model: a named network.
        sides: of square images, in pixels.
        widths: channels at full resolution, for images of `SIDE`.
        batches: numbers of images of `SIDE`.
        devices: numbers of simulated devices, for an image of `DEVICES_SIDE`.
        **fields: the same for every `Case`.

    """
    square = [Point("pixels", side**2 / 1e6, Case(model, side, side, **fields)) for side in sorted(sides)]
    wide = [Point("width", width, Case(model, SIDE, SIDE, overrides={"width": width}, **fields)) for width in widths]
    many = [Point("batch", batch, Case(model, SIDE, SIDE, batch, **fields)) for batch in sorted(batches)]
    split = [
        Point("devices", count, Case(model, DEVICES_SIDE, DEVICES_SIDE, **fields), count) for count in sorted(devices)
    ]
    return [*square, *sorted(wide, key=lambda point: point.along), *many, *split]


def study(
    planned: Sequence[Point], folder: Path
) -> tuple[list[dict[str, Any]], list[str], list[dict[str, Any]], list[Path]]:
    """Measures the points, each alone and in a process of its own, and fits power laws.

    Rows are kept in `rows.jsonl` and `devices.jsonl` in `folder`: a study that was interrupted goes on where it
    stopped. Points that would take more memory than there is are left out.

    Args:
        planned: the points of all networks.
        folder: made if it is not there.

    Returns:
        The rows with their `sweep` and `along`; a sentence for each point that was left out or failed; what `fits`
        makes of the rows; and the files: `scaling.json` with these three, and a plot.

    Raises:
        UserError: if no point could be measured.

    """
    rows, missing = [], []
    whole = [point for point in planned if point.devices is None]
    # Some are points of two sweeps.
    cases = {_name(point.case): point.case for point in whole}
    say("checking what fits into memory")
    asked = {"check": [dataclasses.asdict(case) for case in cases.values()]}
    reasons = dict(zip(cases, _run(asked, "the check of memory", {}), strict=True))
    missing += [reason for reason in reasons.values() if reason]
    cases = {name: case for name, case in cases.items() if not reasons[name]}
    measured = measure_groups([[case] for case in cases.values()], rounds=1, folder=folder)
    by_name = dict(zip(cases, measured, strict=True))
    missing += [row["failure"] for row in measured if "failure" in row]
    for point in whole:
        row = by_name.get(_name(point.case), {"failure": ""})
        if "failure" not in row:
            rows.append({**row, "sweep": point.sweep, "along": point.along})
    for point in planned:
        if point.devices is None:
            continue
        try:
            row = _split_row(point.case, point.devices, folder / "devices.jsonl")
        except UserError as error:
            missing.append(str(error))
        else:
            rows.append({**row, "sweep": point.sweep, "along": point.along})
    if not rows:
        raise UserError(f"no point could be measured: {'; '.join(missing)}")
    found = fits(rows)
    paths = [folder / "scaling.json", folder / "scaling.png"]
    write_json(paths[0], {"caveat": CAVEAT, "fits": found, "missing": missing, "rows": rows})
    sweeps = {LABELS[sweep]: [row for row in rows if row["sweep"] == sweep] for sweep in LABELS}
    scaling_panels({label: line for label, line in sweeps.items() if line}, paths[1])
    return rows, missing, found, paths


def _name(case: Case) -> str:
    return json.dumps(dataclasses.asdict(case))


def _free_bytes() -> int:
    """Memory that the machine has left, what it would give up of its file cache included."""
    described = Path("/proc/meminfo")
    if described.exists():
        fields = dict(line.split(":") for line in described.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def slope(along: Sequence[float], values: Sequence[float]) -> dict[str, float | None]:
    """The exponent of a power law, by least squares on the logarithms of both.

    Returns:
        `slope`, and `low` and `high`, its 95 % interval by Student's t, which are None for fewer than three points. A
        cost that is no power of what it depends on widens it, as noise does.

    """
    from scipy import stats

    fit = stats.linregress(np.log(along), np.log(values))
    if len(along) < 3:
        return {"slope": float(fit.slope), "low": None, "high": None}
    reach = float(stats.t.ppf(0.975, len(along) - 2) * fit.stderr)
    return {"slope": float(fit.slope), "low": float(fit.slope) - reach, "high": float(fit.slope) + reach}


def fits(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The slopes of latency and memory, for every network and sweep of at least two points.

    Args:
        rows: with `model`, `sweep` and `along`.

    Returns:
        `model`, `sweep`, `points`, and `latency` and `memory`, each as `slope` has it.

    """
    lines: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        lines.setdefault((row["model"], row["sweep"]), []).append(row)
    return [
        {
            "model": model,
            "sweep": sweep,
            "points": len(line),
            **{
                name: slope([row["along"] for row in line], [row[key] for row in line])
                for name, key in (("latency", "latency_ms_median"), ("memory", "program_bytes"))
            },
        }
        for (model, sweep), line in lines.items()
        if len({row["along"] for row in line}) >= 2
    ]


def _split_row(case: Case, devices: int, path: Path) -> dict[str, Any]:
    """The row of an image that simulated devices share, from the file if it is there."""
    rows = read_rows([path]) if path.exists() else []
    source, device = source_sha256(), device_name()
    earlier = find_rows([row for row in rows if row["devices"] == devices], [case], source, device)
    if earlier:
        say(f"{case.model} on {devices} device(s): measured already, in '{path}'")
        return earlier[0]
    say(f"{case.model} on {devices} simulated device(s)")
    measured = measure_split(case, devices)
    row = {
        **measured,
        "source_sha256": source,
        "started": datetime.now(UTC).isoformat(),
        # Those that were given: the number of devices is a field of its own.
        "environment": {**measured["environment"], "flags": flags()},
    }
    replace_atomically(path, "".join(json.dumps(each) + "\n" for each in [*rows, row]).encode())
    return row


def measure_split(case: Case, devices: int) -> dict[str, Any]:
    """The row of an image whose rows are shared by simulated devices, measured in a process of its own."""
    given = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}".strip()
    return _run(
        {"case": dataclasses.asdict(case), "devices": devices},
        f"{case.model} at {case.height}x{case.width} on {devices} simulated device(s)",
        {"XLA_FLAGS": given, "JAX_PLATFORMS": "cpu"},
    )


def _run(request: Mapping[str, Any], described: str, variables: Mapping[str, str]) -> Any:
    command = [sys.executable, "-m", "gamax.benchmark.scaling", json.dumps(request)]
    finished = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)
    if finished.returncode:
        reason = (finished.stderr.strip().splitlines() or [f"it ended with code {finished.returncode}"])[-1]
        raise UserError(f"{described} failed: {reason.removeprefix('gamax.errors.UserError: ')}")
    return json.loads(finished.stdout.splitlines()[-1])


def too_large_here(cases: Sequence[Case]) -> list[str | None]:
    """A sentence for each case whose program would take more than `FULL` of the free memory; None for the others."""
    return [_too_large(case) for case in cases]


def _too_large(case: Case) -> str | None:
    model = network(case)
    params = abstract_params(model)
    counted = jax.devices()[0].memory_stats() or {}
    free = counted["bytes_limit"] - counted["bytes_in_use"] if "bytes_limit" in counted else _free_bytes()
    cost = model_cost(model, params, case.height, case.width, case.batch)
    # If even everything that its products write would fit, there is no need to compile.
    if 4 * cost.activations < FULL * free:
        return None
    images = jax.ShapeDtypeStruct((case.batch, case.height, case.width, model.input_channels), jnp.float32)
    planned = program_bytes(apply_network.lower(model, params, images).compile())
    if planned < FULL * free:
        return None
    return (
        f"{case.model} at {case.batch}x{case.height}x{case.width} left out: its program takes {planned / 1e9:.3g} GB, "
        f"and {free / 1e9:.3g} GB are free"
    )


def split_here(case: Case, devices: int) -> dict[str, Any]:
    """Measures in this process, which must have so many devices, what `measure_split` returns.

    The program is that of `gamax.evaluation.restorer.Restorer(rows=devices)`.
    """
    jax.config.update("jax_default_matmul_precision", MATMUL_PRECISION[case.precision])
    model = network(case)
    mesh = jax.make_mesh((devices,), ("rows",), (AxisType.Auto,))
    whole = NamedSharding(mesh, PartitionSpec())
    params = jax.device_put(random_parameters(model), whole)
    inputs = [jax.device_put(images_and_targets(case, number)[0], whole) for number in (0, 1)]
    compiled = apply_network.lower(model, params, inputs[0], mesh=mesh).compile()

    def call(index: int) -> float:
        started = time.perf_counter()
        jax.block_until_ready(compiled(params, inputs[index % 2]))
        return 1e3 * (time.perf_counter() - started)

    call(0)
    latencies = [call(index) for index in range(timed_calls(case, call(1)))]
    p10, median, p90 = np.percentile(latencies, [10, 50, 90])
    return {
        **dataclasses.asdict(case),
        "devices": devices,
        "latency_ms_median": median,
        "latency_ms_p10": p10,
        "latency_ms_p90": p90,
        "latency_ms": latencies,
        # Of one device.
        "program_bytes": program_bytes(compiled),
        "parameters": count_parameters(params),
        **dataclasses.asdict(model_cost(model, params, case.height, case.width, case.batch)),
        "device": device_name(),
        "versions": versions(),
        "environment": environment(),
    }


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    if "check" in asked:
        answer = too_large_here([Case(**case) for case in asked["check"]])
    else:
        answer = split_here(Case(**asked["case"]), asked["devices"])
    print(json.dumps(answer))
