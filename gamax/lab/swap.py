"""Another mixer in the slot of a network, beside the original: `gamax lab swap`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gamax.benchmark.case import parse_size, random_parameters
from gamax.benchmark.comparison import source_of_block
from gamax.benchmark.plots import COLOURS, MARKERS
from gamax.blocks.mixers import find_mixer, import_path
from gamax.console import say
from gamax.errors import UserError
from gamax.files import check_writable
from gamax.lab.block_check import GRADIENT_TOLERANCE, BlockFacts, check_block, directional_error
from gamax.lab.cost import cases_of, cost_cells, cost_figures, measure_cost
from gamax.lab.small_training import (
    TEST_SIDE,
    Budget,
    Photographs,
    check_sizes,
    check_task,
    load_photographs,
    train_small,
)
from gamax.lab.study import Report, device, run_trials, spread, with_spread
from gamax.models import create_model, list_models

GRADIENT_SIDE = 16
"""Pixels of the sides of the image on which gradients are checked, unless the network halves it more often."""

Row = Mapping[str, Any]


def study(
    *,
    network: str,
    mixer: str,
    overrides: Mapping[str, Any],
    task: str,
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
    """Compares a network with the same network that has another mixer in its slot.

    The block is checked first; then come latency and memory, the gradients of both networks against differences, and
    a short training of both on the same crops.

    Args:
        network: the name of one with a slot.
        mixer: what `find_mixer` reads. The slot of a network with `none` is empty.
        overrides: fields that differ from the named network, in both.
        task: a name of `gamax.lab.small_training.TASKS`.
        dataset: clean photographs.
        source: the folder of the dataset, or None.
        steps: of each training; 0 leaves training out.
        batch_size: crops in a step.
        patch_size: pixels of the sides of crops.
        learning_rate: at its highest.
        seeds: of the trainings.
        latency_size: HEIGHTxWIDTH of the image for latency and memory.
        folder: for trials and rows; what is there already is not done again, unless the file of a block has changed.
        reproduce: the command that asks for this.

    Raises:
        UserError: for a network without a slot, a block with a fault, or other values that cannot be.

    """
    original, models, options = _networks(network, mixer, overrides)
    height, width = parse_size(latency_size)
    cases = cases_of({label: (network, fields) for label, fields in options.items()}, height, width)
    check_task(task)
    budget = Budget(steps, batch_size, patch_size, learning_rate) if steps else None
    photographs = load_photographs(dataset, source, patch_size) if budget else None
    check_writable(folder)
    facts = None if find_mixer(mixer)[1] is None else check_block(mixer)
    if import_path(original)[0]:
        check_block(original)
    sizes = [(height, width), *([(patch_size, patch_size), (TEST_SIDE, TEST_SIDE)] if steps else [])]
    for label, model in models.items():
        check_sizes(f"the network with {label}", model, sizes, "choose another mixer")
    if facts:
        say(f"{mixer}: no fault found; {facts.parameters:,} parameters for 8 channels")

    say("comparing gradients with differences")
    gradients = {label: _gradient_error(model) for label, model in models.items()}
    sources = {label: source_of_block(fields["mixer"]) for label, fields in options.items()}
    costs = measure_cost(cases, folder)
    trials = _train(network, options, task, budget, photographs, seeds, folder) if budget and photographs else []

    trained = {label: [row for row in trials if row["name"] == label] for label in models}
    training = f", {task}, {steps} steps of {batch_size} crops of {patch_size}" if budget else ""
    title = f"{_described(network, overrides)} with {original} or {mixer}{training}"
    title += f"\ncost of one image of {latency_size}; {device()}"
    return Report(
        name="swap",
        settings={
            **{"network": network, "mixer": mixer, "overrides": dict(overrides), "task": task, "dataset": dataset},
            **{"source": source, "steps": steps, "batch_size": batch_size, "patch_size": patch_size},
            **{"learning_rate": learning_rate, "seeds": list(seeds), "latency_size": latency_size},
        },
        reproduce=reproduce,
        tables={
            f"{_described(network, overrides)}: cost of an image of {latency_size}, and training": [
                {
                    "mixer": label,
                    **cost_cells(costs[label]),
                    "gradient error": "not finite" if gradients[label] is None else f"{gradients[label]:.1e}",
                    **_quality_cells(trained[label]),
                }
                for label in models
            ],
        },
        notes=_notes(facts, costs, gradients, trained, photographs, latency_size),
        figures={"swap.png": _figure(title, costs, trained)},
        record={
            "block": None if facts is None else dataclasses.asdict(facts),
            "source_sha256_of_block": sources,
            "cost": {label: cost_figures(row) for label, row in costs.items()},
            "gradients": {"relative_error": gradients, "tolerance": GRADIENT_TOLERANCE},
            "photographs": None if photographs is None else photographs.description,
            "trials": trials,
        },
    )


def networks_with_slot() -> list[str]:
    """The names of networks whose mixer can be chosen."""
    return [name for name in list_models() if _slot(create_model(name))]


def _slot(model: nn.Module) -> nn.Module | None:
    """The network, or that which it wraps, whose field `mixer` fills a slot."""
    inner = getattr(model, "network", model)
    return inner if hasattr(inner, "mixer") and getattr(inner, "block", "naf") == "naf" else None


def _networks(
    network: str, mixer: str, overrides: Mapping[str, Any]
) -> tuple[str, dict[str, nn.Module], dict[str, dict[str, Any]]]:
    """The mixer of the original; both networks, and how they differ from the named one, by their mixers."""
    slot = _slot(create_model(network, **overrides))
    if slot is None:
        raise UserError(
            f"{_described(network, overrides)} has no slot for a mixer; choose one of {', '.join(networks_with_slot())}"
        )
    before = "none" if slot.mixer is None else str(slot.mixer)
    if mixer == before:
        raise UserError(f"{mixer} is in the slot of {_described(network, overrides)} already; name another mixer")
    options = {name: {**overrides, "mixer": name} for name in (before, mixer)}
    return before, {name: create_model(network, **fields) for name, fields in options.items()}, options


def _described(network: str, overrides: Mapping[str, Any]) -> str:
    fields = ", ".join(f"{name}={value}" for name, value in overrides.items())
    return f"{network} ({fields})" if fields else network


def _gradient_error(model: nn.Module) -> float | None:
    """`directional_error` of a network, None if it is not finite, with parameters that hide no path."""
    side = max(GRADIENT_SIDE, model.size_multiple)
    image = jnp.asarray(np.random.default_rng(0).random((1, side, side, model.input_channels), np.float32))

    @jax.jit
    def restored(params: Any) -> Any:
        return model.apply({"params": params}, image)

    @jax.jit
    def gradients(params: Any, weights: Any) -> Any:
        return jax.vjp(restored, params)[1](weights)[0]

    with jax.default_matmul_precision("highest"):
        error = directional_error(restored, gradients, random_parameters(model))
    return error if np.isfinite(error) else None


def _train(
    network: str,
    options: Mapping[str, Mapping[str, Any]],
    task: str,
    budget: Budget,
    photographs: Photographs,
    seeds: Sequence[int],
    folder: Path,
) -> list[dict[str, Any]]:
    trials = [
        {
            **{"name": label, "network": network, "overrides": dict(fields)},
            **{"task": task, "photographs": photographs.sha256, "seed": seed, **dataclasses.asdict(budget)},
        }
        for label, fields in options.items()
        for seed in seeds
    ]

    def run(trial: Row, update: Callable[[float, str], object]) -> dict[str, Any]:
        model = create_model(trial["network"], **trial["overrides"])
        return train_small(model, photographs, trial["task"], budget, trial["seed"], update)

    return run_trials(trials, run, folder)


def _quality_cells(rows: Sequence[Row]) -> dict[str, str]:
    if not rows:
        return {}
    values = [row["psnr"] for row in rows if row["psnr"] is not None]
    cell = with_spread(spread(values)) if values else "not finite"
    return {"PSNR, dB": cell if len(values) in (0, len(rows)) else f"{cell} ({len(rows) - len(values)} not finite)"}


def _notes(
    facts: BlockFacts | None,
    costs: Mapping[str, Row],
    gradients: Mapping[str, float | None],
    trained: Mapping[str, Sequence[Row]],
    photographs: Photographs | None,
    latency_size: str,
) -> list[str]:
    notes = []
    if facts:
        reach = "reaches the border of features of 16x24" if facts.reaches_border else "is local"
        start = "the identity" if facts.identity_at_start else "not the identity"
        notes.append(f"The block {facts.name} {reach}, and is {start} when it is fresh.")
        if facts.without_gradient:
            notes.append(f"Warning: {facts.name} does not use its parameters {', '.join(facts.without_gradient)}.")
        if facts.gradient_error is None or facts.gradient_error > GRADIENT_TOLERANCE:
            notes.append(_disagreement(f"The block {facts.name}", facts.gradient_error))
    notes += [
        _disagreement(f"The network with {label}", error)
        for label, error in gradients.items()
        if error is None or error > GRADIENT_TOLERANCE
    ]
    notes.append(
        "Gradients are compared with central differences in float32, in random directions of all parameters at once, "
        f"on an image of noise; errors up to {GRADIENT_TOLERANCE} count as agreement."
    )
    notes += [f"{label} could not be measured: {row['failure']}" for label, row in costs.items() if "failure" in row]
    notes.append(
        f"Latency is the median of calls with one image of {latency_size}; memory is what the program plans for."
    )
    rows = [row for label in trained for row in trained[label]]
    if rows and photographs:
        seeds = len({row["seed"] for row in rows})
        notes.append(
            f"PSNR is over the held-out squares of {photographs.description}; the degraded ones have "
            f"{rows[0]['psnr_input']:.2f} dB; {seeds} seed{'s' if seeds > 1 else ''}. A training this short tells "
            "whether a block learns, not how good it is in the end."
        )
        notes += [
            f"Warning: with {row['name']}, seed {row['seed']}, {row['skipped']} updates were skipped as gradients were "
            "not finite."
            for row in rows
            if row["skipped"]
        ]
    return notes


def _disagreement(what: str, error: float | None) -> str:
    if error is None:
        return f"Warning: {what} has gradients or values that are not finite."
    return (
        f"Warning: {what} has gradients that are not its derivative (relative error {error:.2g}); unless "
        "that is meant, correct its custom gradient or stop_gradient."
    )


def _figure(title: str, costs: Mapping[str, Row], trained: Mapping[str, Sequence[Row]]) -> Figure:
    """Latency and memory of both networks, behind the curves of their trainings if there are any."""
    curves = any(trained.values())
    figure = Figure((11 if curves else 7.5, 4.2), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=9)
    widths = [2.2, 1, 1] if curves else [1, 1]
    panels = figure.subplots(1, len(widths), width_ratios=widths)
    if curves:
        _draw_curves(panels[0], trained)
    labels = [label for label, row in costs.items() if "failure" not in row]
    medians, lows, highs = (
        np.array([costs[label][f"latency_ms_{name}"] for label in labels], float) for name in ("median", "p10", "p90")
    )
    spans = np.maximum([medians - lows, highs - medians], 0)
    memory = np.array([costs[label]["program_bytes"] / 1e6 for label in labels], float)
    for axes, values, errors, name in (
        (panels[-2], medians, spans, "latency, ms (median; bars: p10 to p90)"),
        (panels[-1], memory, None, "memory of the program, MB"),
    ):
        colours = [COLOURS[list(costs).index(label)] for label in labels]
        bars = axes.bar(range(len(labels)), values, yerr=errors, color=colours, capsize=4, width=0.6)
        axes.bar_label(bars, [f"{value:,.3g}" for value in values], padding=3, fontsize=8)
        axes.set_xticks(range(len(labels)), ["\n(".join(label.split("(")) for label in labels], fontsize=8)
        axes.set_ylabel(name)
        axes.margins(x=0.15, y=0.15)
        axes.grid(alpha=0.3, axis="y")
    return figure


def _draw_curves(axes: Axes, trained: Mapping[str, Sequence[Row]]) -> None:
    for (label, rows), colour, marker, dash in zip(trained.items(), COLOURS, MARKERS, ("-", "--"), strict=False):
        steps = np.array([step for step, _ in rows[0]["curve"]])
        values = np.array([[np.nan if value is None else value for _, value in row["curve"]] for row in rows])
        axes.plot(steps, values.mean(0), color=colour, ls=dash, marker=marker, fillstyle="none", label=label)
        axes.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.2, lw=0)
    axes.axhline(rows[0]["psnr_input"], color="gray", ls=":", label="degraded")
    axes.set_xlabel("step")
    axes.set_ylabel("PSNR of held-out squares, dB" + ("\n(mean; area: all seeds)" if len(rows) > 1 else ""))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
