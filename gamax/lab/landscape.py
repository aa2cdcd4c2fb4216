"""Small networks of every family, trained alike on the same data: PSNR against latency and memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gamax.benchmark.case import parse_size
from gamax.benchmark.plots import PROGRAM_MEMORY
from gamax.errors import UserError
from gamax.lab.cost import cases_of, cost_cells, cost_figures, measure_cost
from gamax.lab.landscape_plots import draw_landscape
from gamax.lab.small_training import (
    TEST_SIDE,
    Budget,
    Photographs,
    check_sizes,
    check_task,
    load_photographs,
    train_small,
)
from gamax.lab.study import Report, run_trials, spread, with_spread
from gamax.models import create_model

_THREE_SCALES = {"width": 16, "encoder_blocks": (1, 1), "middle_blocks": 3, "decoder_blocks": (1, 1)}

SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "gama_ir": ("gama_ir_tiny", {"width": 16, "depth": 7, "levels": 2, "blocks_per_level": 1}),
    "nafnet": ("nafnet_sidd_w32", _THREE_SCALES),
    "baseline": ("baseline_sidd_w32", _THREE_SCALES),
    "plainnet": ("plainnet_sidd_w32", _THREE_SCALES),
    "restormer": ("restormer_denoising", {"width": 8, "blocks": (1, 1, 1, 1), "refinement_blocks": 0}),
    "unet": ("unet", {"width": 8}),
    # The least width that there is; crops of 64 are padded to 128.
    "lir": ("lir", {"width": 16, "encoder_blocks": (0, 1), "middle_blocks": 1, "decoder_blocks": (1, 0)}),
    "dmphn": ("dmphn_1_2_4", {"widths": (4, 8, 16)}),
    "saphn": ("saphn", {"levels": (1, 2), "widths": (4, 8, 16), "blocks": 1, "kernel_size": 3}),
    # With windows of 4 sides are padded to multiples of 64, which the crops have.
    "swintormer": (
        "swintormer",
        {"width": 16, "blocks": (1, 1, 1, 1), "refinement_blocks": 1, "window_size": 4},
    ),
    "gama_ir_sampling": (
        "gama_ir_s_sampling",
        {"width": 8, "depth": 7, "levels": 2, "blocks_per_level": 1, "stages": 1, "ratio": 1 / 32},
    ),
}
"""A named network and its fields for every family that restores colour images: 0.8 to 1.3 G multiply-adds for an image
of 256x256 pixels."""

LEFT_OUT = ("lir",)
"""What takes minutes to compile on a CPU, and is trained only if it is named."""


def study(
    *,
    networks: Sequence[str],
    tasks: Sequence[str],
    dataset: str,
    source: str | None,
    steps: int,
    batch_size: int,
    patch_size: int,
    learning_rate: float,
    seeds: Sequence[int],
    latency_size: str,
    folder: Path,
    reproduce: str,
) -> Report:
    """Trains every network once for each task and seed, then measures latency and memory of each.

    Everything is checked before the first training. Trainings and measurements that are in the folder are kept.

    Args:
        networks: names from `SMALL`; none for all but `LEFT_OUT`.
        tasks: names from `gamax.lab.small_training.TASKS`.
        dataset: a name that `gamax data list` knows.
        source: the folder of the dataset; None for one that comes with gamax.
        steps: of each training.
        batch_size: crops in a step.
        patch_size: pixels of the sides of crops.
        learning_rate: at its highest.
        seeds: of parameters, crops and degradations.
        latency_size: of the image for latency and memory, HEIGHTxWIDTH in pixels.
        folder: for `trials.jsonl` and `rows.jsonl`.
        reproduce: the command that makes the same again.

    Raises:
        UserError: for a name that there is not, a value that cannot be, or a network that cannot run at these sizes.

    """
    settings = {
        **{"networks": list(networks), "tasks": list(tasks), "dataset": dataset, "source": source, "steps": steps},
        **{"batch_size": batch_size, "patch_size": patch_size, "learning_rate": learning_rate},
        **{"seeds": list(seeds), "latency_size": latency_size},
    }
    height, width = parse_size(latency_size)
    budget = Budget(steps, batch_size, patch_size, learning_rate)
    for task in tasks:
        check_task(task)
    for name in networks:
        if name not in SMALL:
            raise UserError(f"unknown small network '{name}'; there are {', '.join(SMALL)}")
    chosen = {name: SMALL[name] for name in dict.fromkeys(networks or (name for name in SMALL if name not in LEFT_OUT))}
    cases = cases_of(chosen, height, width)
    models = {name: create_model(network, **overrides) for name, (network, overrides) in chosen.items()}
    for name, model in models.items():
        sizes = [(patch_size, patch_size), (TEST_SIDE, TEST_SIDE), (height, width)]
        check_sizes(name, model, sizes, "leave it out of --networks")
    photographs = load_photographs(dataset, source, patch_size)

    # Seeds next to each other share a compiled program.
    trials = [
        {
            **{"name": name, "network": network, "overrides": overrides, "task": task, "seed": seed},
            **{"budget": dataclasses.asdict(budget), "photographs_sha256": photographs.sha256},
        }
        for name, (network, overrides) in chosen.items()
        for task in dict.fromkeys(tasks)
        for seed in dict.fromkeys(seeds)
    ]

    def run(trial: Mapping[str, Any], update: Callable[[float, str], object]) -> dict[str, Any]:
        return train_small(models[trial["name"]], photographs, trial["task"], budget, trial["seed"], update)

    rows = run_trials(trials, run, folder)
    costs = measure_cost(cases, folder)
    found = {task: summarise([row for row in rows if row["task"] == task], costs) for task in dict.fromkeys(tasks)}
    count = len(dict.fromkeys(seeds))
    training = f"{steps} steps of {batch_size} crops of {patch_size}x{patch_size}, {count} seed{'s' * (count > 1)}"
    figures = {}
    for task, summaries in found.items():
        title = f"{task}, {dataset}, {training}\none image of {latency_size}; dashed: Pareto front"
        figure = draw_landscape(summaries, costs, title)
        if figure is not None:
            figures[f"{task}.png"] = figure
    return Report(
        name="landscape",
        settings=settings,
        reproduce=reproduce,
        tables={
            f"{task}: {training}": [_cells(name, summary, costs[name]) for name, summary in summaries.items()]
            for task, summaries in found.items()
        },
        notes=_notes(found, costs, photographs, latency_size),
        figures=figures,
        record={
            "photographs": {"description": photographs.description, "sha256": photographs.sha256},
            "networks": {
                name: {"network": network, "overrides": overrides, "cost": cost_figures(costs[name])}
                for name, (network, overrides) in chosen.items()
            },
            "tasks": found,
            "trials": rows,
        },
    )


def pareto_front(cost: Sequence[float], quality: Sequence[float]) -> list[bool]:
    """Which points no other one beats: none costs as little or less at a higher quality, or less at the same.

    Args:
        cost: of each point; less is better.
        quality: of each point; more is better.

    Returns:
        For each point whether it is on the front; equal points are both.

    """
    best_below: dict[float, float] = {}
    for own, value in zip(cost, quality, strict=True):
        best_below[own] = max(value, best_below.get(own, value))
    front: set[tuple[float, float]] = set()
    highest = float("-inf")
    for own in sorted(best_below):
        if best_below[own] > highest:
            highest = best_below[own]
            front.add((own, highest))
    return [point in front for point in zip(cost, quality, strict=True)]


def summarise(rows: Sequence[Mapping[str, Any]], costs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What the trials of one task say about each network.

    Args:
        rows: of trials, with `name`, `seed`, `psnr` and `psnr_input` in dB; `psnr` None if it is not finite.
        costs: the row of the benchmark of each network.

    Returns:
        By network: `psnr`, the `spread` over its finite seeds, and `gain` of its mean over the input in dB, both None
        without one; `not_finite`, the other seeds; `latency_front` and `memory_front`, whether it is on these fronts.

    """
    summaries: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(row["name"] for row in rows):
        own = [row for row in rows if row["name"] == name]
        psnr = [row["psnr"] for row in own if row["psnr"] is not None]
        summaries[name] = {
            "psnr": spread(psnr) if psnr else None,
            "gain": spread(psnr)["mean"] - own[0]["psnr_input"] if psnr else None,
            "psnr_input": own[0]["psnr_input"],
            "not_finite": [row["seed"] for row in own if row["psnr"] is None],
            "latency_front": False,
            "memory_front": False,
        }
    placed = [name for name, found in summaries.items() if found["psnr"] and "failure" not in costs[name]]
    quality = [summaries[name]["psnr"]["mean"] for name in placed]
    for key, front in (("latency_ms_median", "latency_front"), ("program_bytes", "memory_front")):
        on_front = pareto_front([costs[name][key] for name in placed], quality)
        for name, value in zip(placed, on_front, strict=True):
            summaries[name][front] = value
    return summaries


def _cells(name: str, summary: Mapping[str, Any], cost: Mapping[str, Any]) -> dict[str, str]:
    psnr, lost = summary["psnr"], summary["not_finite"]
    quality = "not finite" if psnr is None else with_spread(psnr)
    fronts = [axis for axis in ("latency", "memory") if summary[f"{axis}_front"]]
    return {
        "network": name,
        "PSNR, dB": f"{quality} ({len(lost)} not finite)" if psnr is not None and lost else quality,
        "gain, dB": "" if summary["gain"] is None else f"{summary['gain']:+.2f}",
        **cost_cells(cost),
        "on the front of": ", ".join(fronts),
    }


def _notes(
    found: Mapping[str, Mapping[str, Mapping[str, Any]]],
    costs: Mapping[str, Mapping[str, Any]],
    photographs: Photographs,
    latency_size: str,
) -> list[str]:
    inputs = ", ".join(f"{task} {next(iter(of.values()))['psnr_input']:.2f} dB" for task, of in found.items())
    return [
        f"Photographs: {photographs.description}. PSNR is over all held-out squares together; gain is over that of the "
        f"degraded ones ({inputs}); ± is the standard deviation over seeds.",
        f"Latency and memory: one image of {latency_size}, float32; memory: {PROGRAM_MEMORY}. On a front, no other "
        "network is at least as good for less.",
        "All have the same steps, crops, optimizer and learning rate. One learning rate does not suit all networks "
        "equally, and short trainings of small networks do not say how large ones end.",
        *(
            f"{name}, {task}: the training did not end with a finite PSNR for seeds {summary['not_finite']}, which no "
            "mean has in it."
            for task, summaries in found.items()
            for name, summary in summaries.items()
            if summary["not_finite"]
        ),
        *(f"{name} could not be measured: {row['failure']}" for name, row in costs.items() if "failure" in row),
    ]
