"""Rows of the benchmark side by side: what may be compared at all, tables and CSV files."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gamax.errors import UserError
from gamax.files import replace_atomically

Row = Mapping[str, Any]

BOUNDS = {"fp32-strict": 1e-4, "tf32": 0.03, "bf16": 0.25}
"""How far the outputs of two backends may be apart, by precision; `gamax.benchmark.latency.largest_difference` says
relative to what."""

COLUMNS = (
    *("backend", "calls", "median ms", "p10", "p90", "to PyTorch", "compile s", "peak MB", "difference"),
    *("of roofline", "G multiply-adds"),
)
"""As many as 120 letters hold."""

FEWEST_FOR_PERCENTILES = 8
"""Timed calls; the 10th percentile of fewer is all but the fastest of them."""

THREAD_VARIABLES = ("NPROC", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Each sets the threads of one framework and not of the other."""


def comparisons(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows in groups that differ in nothing but backend and precision, in the order in which they first come.

    Of rows of the same case the last one counts.
    """
    groups: dict[str, dict[tuple[str, str], Row]] = {}
    for row in rows:
        key = json.dumps([row[name] for name in ("model", "overrides", "height", "width", "batch", "task")])
        groups.setdefault(key, {})[row["backend"], row["precision"]] = row
    return [list(group.values()) for group in groups.values()]


def check_comparable(rows: Sequence[Row]) -> None:
    """Refuses to compare rows of one network and size unless only the backend decides their figures.

    Every backend must have been measured in the same precisions, by the same code and versions, on the same device and
    system, under the same variables of the environment (`gamax.environment.FLAGS`) and with as many threads where
    these are set (`THREAD_VARIABLES`). Its outputs must be within `BOUNDS` of the others': of those that it was
    measured together with by all of them, of others by the few numbers that rows keep. Rows that failed count as
    measured in their precision, and are left out otherwise.

    Raises:
        UserError: that names the first fault.

    """
    tried = rows
    rows = [row for row in rows if "failure" not in row]
    # A backend that failed at everything has no figures to refuse.
    precisions: dict[str, set[str]] = {row["backend"]: set() for row in rows}
    for row in tried:
        precisions.get(row["backend"], set()).add(row["precision"])
    for backend, measured in precisions.items():
        first = next(iter(precisions))
        if measured != precisions[first]:
            raise UserError(
                f"the rows of {rows[0]['model']} are not comparable: {first} was measured in "
                f"{', '.join(sorted(precisions[first]))} and {backend} in {', '.join(sorted(measured))}; measure both "
                "in the same precision"
            )
    for row in rows:
        for words, of, advice in _CIRCUMSTANCES:
            ours, theirs = of(rows[0]), of(row)
            # Files of older versions do not say everything.
            if None not in (ours, theirs) and ours != theirs:
                raise UserError(
                    f"the rows of {row['model']} are not comparable: {rows[0]['backend']} was measured {words} "
                    f"{ours!r} and {row['backend']} {words} {theirs!r}; {advice}"
                )
    for row, other in itertools.combinations(rows, 2):
        for name, version in row["versions"].items():
            if other["versions"].get(name, version) != version:
                raise UserError(
                    f"the rows of {row['model']} are not comparable: {row['backend']} was measured with {name} "
                    f"{version} and {other['backend']} with {name} {other['versions'][name]}; measure both with one "
                    "version"
                )
    variables = [name for name in THREAD_VARIABLES if rows and name in rows[0]["environment"]["flags"]]
    note = threads_note(rows)
    if variables and note:
        raise UserError(
            f"the rows of {rows[0]['model']} are not comparable: {note}, as {' and '.join(variables)} "
            f"{'is' if len(variables) == 1 else 'are'} set; give both as many threads, or none of these variables"
        )
    for row in rows:
        bound = BOUNDS[row["precision"]]
        difference = _difference(row, [other for other in rows if other["precision"] == row["precision"]])
        if not difference <= bound:
            raise UserError(
                f"the rows of {row['model']} are not comparable: the outputs of {row['backend']} are {difference:.1e} "
                f"from those of another backend, and {row['precision']} allows {bound:g}; they do not compute the same"
            )


_CIRCUMSTANCES: tuple[tuple[str, Callable[[Row], Any], str], ...] = (
    ("on", lambda row: row["device"], "measure both on one device"),
    ("under", lambda row: row["environment"].get("platform"), "measure both on one system"),
    ("with the driver", lambda row: row.get("driver"), "measure both with one driver"),
    ("with the variables", lambda row: row["environment"]["flags"], "measure both alike"),
    ("by the code", lambda row: row.get("source_sha256"), "measure both with one version of gamax"),
)
"""What must not differ: words that come before it, where rows keep it, and what to do."""


def threads_note(rows: Sequence[Row]) -> str | None:
    """Says how many threads each backend took where they differ and a processor computed; None otherwise.

    Frameworks may differ honestly: one takes a thread for each core, another for each that a core runs at once.
    """
    threads = {
        row["backend"]: row["threads"]
        for row in rows
        if "failure" not in row and "threads" in row and re.search(r", \d+ cores?$", row["device"])
    }
    if len(set(threads.values())) < 2:
        return None
    return "the threads differ: " + ", ".join(f"{count} in {backend}" for backend, count in threads.items())


def _difference(row: Row, others: Sequence[Row]) -> float:
    """The largest known difference between the outputs of a row and those of others."""
    together = np.nan if row["difference"] is None else row["difference"]
    apart = [_difference_apart(row, other) for other in others if other["started"] != row["started"]]
    return float(np.max([together, *apart]))


def _difference_apart(row: Row, other: Row) -> float:
    """By the numbers that rows keep of their outputs, of `gamax.benchmark.latency.probe`."""
    values, other_values = np.array(row["probe"]), np.array(other["probe"])
    sizes, other_sizes = (np.array(side.get("probe_relative", [])) for side in (row, other))
    if (values.shape, sizes.shape) != (other_values.shape, other_sizes.shape):
        return np.inf
    return float(np.max([*np.abs(values - other_values), *np.abs(sizes / other_sizes - 1)]))


def table(rows: Sequence[Row], *, comparable: bool = True) -> list[dict[str, str]]:
    """Lines under `COLUMNS` for one network, size and precision: its name, and indented the backends.

    Args:
        rows: of that network, one for each backend.
        comparable: whether ratios may be formed, as `check_comparable` says.

    """
    twins = [row["latency_ms_median"] for row in rows if row["backend"] != "jax" and "failure" not in row]
    lines = [{"backend": rows[0]["model"]}]
    for row in rows:
        line = {"backend": f"  {row['backend']}"}
        if "failure" in row:
            lines.append({**line, "median ms": "failed"})
            continue
        ratio = f"{row['latency_ms_median'] / min(twins):.2f}" if twins else ""
        lines.append(
            {
                **line,
                **time_cells(row),
                "to PyTorch": ratio if comparable else "refused",
                "compile s": _seconds(row["compile_cold_seconds"]),
                "peak MB": f"{row['peak_memory_bytes'] / 1e6:.0f}",
                "difference": "" if row["difference"] is None else f"{row['difference']:.0e}",
                "of roofline": f"{row['roofline_fraction']:.0%}" if "roofline_fraction" in row else "",
            }
        )
        lines[0]["G multiply-adds"] = f"{row['multiply_adds'] / 1e9:.2f}"
    return lines


def time_cells(row: Row) -> dict[str, str]:
    """The number of timed calls and their percentiles; of few calls only the median says something."""
    calls = len(row["latency_ms"])
    known = calls >= FEWEST_FOR_PERCENTILES
    return {
        "calls": str(calls),
        "median ms": _milliseconds(row["latency_ms_median"]),
        "p10": _milliseconds(row["latency_ms_p10"]) if known else "",
        "p90": _milliseconds(row["latency_ms_p90"]) if known else "",
    }


def _milliseconds(value: float) -> str:
    return f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def write_csv(rows: Sequence[Row], folder: Path) -> list[Path]:
    """One file for each task and precision, everything that a row says but lists; returns the paths.

    The name carries task, precision, layouts of the images in memory, versions and device.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if "failure" not in row:
            groups.setdefault((row["task"], row["precision"]), []).append(row)
    paths = []
    for group in groups.values():
        flat = [dict(_flattened(row)) for row in group]
        columns = list(dict.fromkeys(key for row in flat for key in row))
        content = io.StringIO()
        writer = csv.DictWriter(content, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)
        path = folder / f"{file_stem(group)}.csv"
        replace_atomically(path, content.getvalue().encode())
        paths.append(path)
    return paths


def _flattened(row: Row, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in row.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{key}.")
        elif not isinstance(value, list):
            yield prefix + key, value


def file_stem(rows: Sequence[Row]) -> str:
    """The name of a file about rows of one task and precision, such as `infer-bf16-channels-last-jax0.10.2-a-gpu`."""
    layouts = dict.fromkeys(row["memory_format"] for row in rows)
    versions = dict.fromkeys(
        f"{name}{row['versions'][name]}" for name in ("jax", "torch") for row in rows if name in row["versions"]
    )
    devices = dict.fromkeys(row["device"] for row in rows)
    parts = (rows[0]["task"], rows[0]["precision"], "+".join(layouts), *versions, *devices)
    return re.sub(r"[^a-z0-9.+]+", "-", "-".join(parts).lower()).strip("-")
