"""Prints the tables of `docs/scaling.md` from the figures of `gamax train-plan`: `python docs/estimate_scaling.py`.

The first is what the compiler says of the training steps, the second an estimate of how they scale that is computed
from it: nothing here is measured.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FIGURES = Path(__file__).parent / "results" / "train_plan.jsonl"
# Of one TPU v5e chip in a second, as Google publishes them: operations in bfloat16, bytes from memory, to other chips.
PEAK_FLOPS, MEMORY_BYTES, LINK_BYTES = 197e12, 819e9, 1600e9 / 8
CHIPS = (1, 4, 16, 64, 256)


def compiled_row(plan: dict[str, Any]) -> str:
    """What the compiler says of one step, for one device."""
    step = f"{_name(plan)} | {_mesh(plan)} | {plan['batch_size']} of {plan['patch_size']}"
    if plan["refused"]:
        return f"| {step} | does not fit | | | | | | | {plan['compile_seconds']:.0f} |"
    sizes = [plan[f"{part}_bytes"] for part in ("state_and_batch", "temporary", "program")]
    exchanges = [f"{item['count']} {kind}, {item['bytes'] / 2**20:.1f}" for kind, item in plan["collectives"].items()]
    figures = (
        str(plan["gradient_accumulation"]),
        *(f"{size / 2**20:,.0f}" for size in sizes),
        f"{sum(sizes) / plan['device_bytes']:.0%}",
        f"{plan['flops'] / 1e9:,.0f} / {plan['flops_of_products'] / 1e9:,.0f}",
        f"{plan['bytes_accessed'] / 1e9:.1f}",
        "; ".join(exchanges),
        f"{plan['compile_seconds']:.0f}",
    )
    return f"| {step} | {' | '.join(figures)} |"


def step_seconds(plan: dict[str, Any], chips: int) -> float:
    """An estimate of the time of one step on so many chips with as many crops on each as in `plan`."""
    # The compiler counts the loop over the parts of a batch once; most of a step is inside.
    accessed = plan["bytes_accessed"] * plan["gradient_accumulation"]
    return max(arithmetic_seconds(plan), accessed / MEMORY_BYTES) + sent_bytes(plan, chips) / LINK_BYTES


def arithmetic_seconds(plan: dict[str, Any]) -> float:
    """The least that one step can take: its multiplications and additions, on the units for products alone."""
    return plan["flops_of_products"] / PEAK_FLOPS


def sent_bytes(plan: dict[str, Any], chips: int) -> float:
    """Bytes that each chip sends in one step."""
    size = {kind: item["bytes"] for kind, item in plan["collectives"].items()}
    # In a ring each chip sends all parts but one; to sum is to scatter and to gather. What is gathered of `fsdp`, the
    # parameters, is scattered once as their gradients, whichever way the compiler has written that.
    ring = 2 * (size.get("all-reduce", 0) + size.get("all-gather", 0)) * (chips - 1) / chips
    halos = size.get("collective-permute", 0) if plan["mesh"]["rows"] > 1 else 0
    return (ring + halos) * plan["gradient_accumulation"]


def estimate_row(plan: dict[str, Any]) -> str:
    """Milliseconds of a step and crops a second for every number of chips, and the part that exchange is of a step."""
    cells = []
    for chips in CHIPS:
        if chips < plan["mesh"]["rows"]:
            cells.append("")
            continue
        seconds = step_seconds(plan, chips)
        crops = plan["batch_size"] / plan["devices"] * chips / seconds
        cells.append(f"{1e3 * seconds:.1f} ({crops:,.0f})")
    exchange = sent_bytes(plan, CHIPS[-1]) / LINK_BYTES
    lost = exchange / step_seconds(plan, CHIPS[-1])
    at_most = exchange / (arithmetic_seconds(plan) + exchange)
    return f"| {_name(plan)} | {_mesh(plan)} | {' | '.join(cells)} | {lost:.1%} | {at_most:.0%} |"


def _name(plan: dict[str, Any]) -> str:
    model = plan["model"]
    return " ".join([model["name"], *(f"{key}={value}".lower() for key, value in model["overrides"].items())])


def _mesh(plan: dict[str, Any]) -> str:
    return ",".join(map(str, plan["mesh"].values()))


def main() -> None:
    """Prints both tables."""
    plans = [json.loads(line) for line in FIGURES.read_text().splitlines()]
    print(
        "| network | mesh | crops | parts | state, batch MiB | temporaries MiB | program MiB | of the memory "
        "| GFLOP: compiler / products | GB accessed | exchanged, MiB | compiled s |"
    )
    print("| --- | --- | --- " + "| ---: " * 7 + "| --- | ---: |")
    print("\n".join(map(compiled_row, plans)))
    print("\n| network | mesh | " + " | ".join(map(str, CHIPS)) + " | exchange | at most |")
    print("| --- | --- " + "| ---: " * (len(CHIPS) + 2) + "|")
    # With a scan, nobody knows how much of what the compiler counts is inside a loop.
    estimated = [plan for plan in plans if not plan["refused"] and "scan" not in plan["model"]["overrides"]]
    print("\n".join(map(estimate_row, estimated)))


if __name__ == "__main__":
    main()
