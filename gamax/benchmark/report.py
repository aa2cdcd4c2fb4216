"""Rows of the benchmark side by side: what may be compared at all, tables and CSV files."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
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
    *("backend", "median ms", "p10", "p90", "to PyTorch", "compile s", "warm s", "peak MB", "difference"),
    *("of roofline", "G multiply-adds"),
)


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

    Every backend must have been measured in the same precisions, on the same device and under the same variables of
    the environment (`gamax.environment.FLAGS`), and its outputs must be within `BOUNDS` of the others': of those that
    it was measured together with by all of them, of others by the few numbers that rows keep. Rows that failed are left
    out.

    Raises:
        UserError: that names the first fault.

    """
    rows = [row for row in rows if "failure" not in row]
    precisions: dict[str, set[str]] = {}
    for row in rows:
        precisions.setdefault(row["backend"], set()).add(row["precision"])
    for backend, measured in precisions.items():
        first = next(iter(precisions))
        if measured != precisions[first]:
            raise UserError(
                f"the rows of {rows[0]['model']} are not comparable: {first} was measured in "
                f"{', '.join(sorted(precisions[first]))} and {backend} in {', '.join(sorted(measured))}; measure both "
                "in the same precision"
            )
    for row in rows:
        if row["device"] != rows[0]["device"]:
            raise UserError(
                f"the rows of {row['model']} are not comparable: {rows[0]['backend']} was measured on "
                f"'{rows[0]['device']}' and {row['backend']} on '{row['device']}'; measure both on one device"
            )
    for row in rows:
        flags, first = row["environment"]["flags"], rows[0]["environment"]["flags"]
        if flags != first:
            raise UserError(
                f"the rows of {row['model']} are not comparable: {rows[0]['backend']} was measured with the variables "
                f"{first} and {row['backend']} with {flags}; measure both alike"
            )
    for row in rows:
        bound = BOUNDS[row["precision"]]
        difference = _difference(row, [other for other in rows if other["precision"] == row["precision"]])
        if not difference <= bound:
            raise UserError(
                f"the rows of {row['model']} are not comparable: the outputs of {row['backend']} are {difference:.1e} "
                f"from those of another backend, and {row['precision']} allows {bound:g}; they do not compute the same"
            )


def _difference(row: Row, others: Sequence[Row]) -> float:
    """The largest known difference between the outputs of a row and those of others."""
    together = np.nan if row["difference"] is None else row["difference"]
    ours = np.array(row["probe"])
    apart = [
        np.abs(ours - np.array(other["probe"])).max() if len(other["probe"]) == len(ours) else np.inf
        for other in others
        if other["started"] != row["started"]
    ]
    return float(np.max([together, *apart]))


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
                "median ms": _milliseconds(row["latency_ms_median"]),
                "p10": _milliseconds(row["latency_ms_p10"]),
                "p90": _milliseconds(row["latency_ms_p90"]),
                "to PyTorch": ratio if comparable else "refused",
                "compile s": _seconds(row["compile_cold_seconds"]),
                "warm s": _seconds(row["compile_warm_seconds"]),
                "peak MB": f"{row['peak_memory_bytes'] / 1e6:.0f}",
                "difference": "" if row["difference"] is None else f"{row['difference']:.0e}",
                "of roofline": f"{row['roofline_fraction']:.0%}" if "roofline_fraction" in row else "",
            }
        )
        lines[0]["G multiply-adds"] = f"{row['multiply_adds'] / 1e9:.2f}"
    return lines


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
