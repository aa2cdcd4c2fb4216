"""Latency and memory of the networks of a study, as `gamax bench infer` measures them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gamax.benchmark.case import Case, check_case
from gamax.benchmark.comparison import measure_groups
from gamax.files import lock

GROUP = 8
"""So many networks are in memory at once, and take turns."""
REPEATS, ROUNDS = 12, 3


def cases_of(networks: Mapping[str, tuple[str, Mapping[str, Any]]], height: int, width: int) -> dict[str, Case]:
    """One image of that size for each network, given as the name of a network and its overrides; all are checked.

    Raises:
        UserError: for a network that there is not.

    """
    cases = {
        label: Case(name, height, width, overrides=overrides, repeats=REPEATS)
        for label, (name, overrides) in networks.items()
    }
    for case in cases.values():
        check_case(case)
    return cases


def measure_cost(cases: Mapping[str, Case], folder: Path) -> dict[str, dict[str, Any]]:
    """The row of the benchmark of each case by its label; rows that are in the folder already are taken from there.

    A network that cannot be measured gives a row with `failure`, a sentence. Raises `UserError` if another process is
    at work in the folder.
    """
    labels = list(cases)
    groups = [[cases[label] for label in labels[start : start + GROUP]] for start in range(0, len(labels), GROUP)]
    with lock(folder, wait=False):
        return dict(zip(labels, measure_groups(groups, ROUNDS, folder), strict=True))


def cost_cells(row: Mapping[str, Any]) -> dict[str, str]:
    """Parameters, multiply-adds, latency and memory of a row in a table."""
    if "failure" in row:
        return {"latency, ms": "failed"}
    return {
        "parameters": f"{row['parameters']:,}",
        "G multiply-adds": f"{row['multiply_adds'] / 1e9:.3f}",
        "latency, ms": f"{row['latency_ms_median']:.1f}",
        "p10 to p90": f"{row['latency_ms_p10']:.1f} to {row['latency_ms_p90']:.1f}",
        "memory, MB": f"{row['program_bytes'] / 1e6:.1f}",
    }


def cost_figures(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a report keeps of a row."""
    keys = ("parameters", "multiply_adds", "latency_ms_median", "latency_ms_p10", "latency_ms_p90", "program_bytes")
    return {key: row.get(key) for key in (*keys, "peak_memory_bytes", "peak_memory_method", "failure")}
