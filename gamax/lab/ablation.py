"""Variants of GAMA, places for it and other mixers, trained alike: our design of Table 5 of arXiv 2404.00807."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn

from gamax.benchmark.case import parse_size
from gamax.benchmark.plots import PROGRAM_MEMORY
from gamax.errors import UserError
from gamax.lab.ablation_plots import draw_dots, draw_quality_against_cost
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
from gamax.lab.study import Report, run_trials, spread, with_spread
from gamax.models import VARIANTS as NETWORKS
from gamax.models import create_model, variant
from gamax.models.gama_ir import GAMAIR

REFERENCE = "gama"
"""What every other variant is compared with: all three means, kernels of 7x7, added after the gate."""

GROUPS: dict[str, dict[str, dict[str, str]]] = {
    "full": {REFERENCE: {"mixer": "gama"}},
    "means": {
        "without_channel": {"mixer": "gama(axes=('height','width'))"},
        "without_height": {"mixer": "gama(axes=('channel','width'))"},
        "without_width": {"mixer": "gama(axes=('channel','height'))"},
        "only_channel": {"mixer": "gama(axes=('channel',))"},
        "only_height": {"mixer": "gama(axes=('height',))"},
        "only_width": {"mixer": "gama(axes=('width',))"},
    },
    "combination": {"multiplicative": {"mixer": "gama(combine='multiply')"}},
    "kernel": {f"kernel_{size}": {"mixer": f"gama(kernel_size={size})"} for size in (1, 3, 5)},
    "position": {place: {"mixer": "gama", "mixer_position": place} for place in ("first", "last")},
    "other mixers": {
        "none": {"mixer": "none"},
        "squeeze_excite": {"mixer": "squeeze_excite(reduction=4)"},
        "sca": {"mixer": "sca"},
        # A map of all pixels by all pixels of a 256x256 image would have 4.3 thousand million weights, this one has 67
        # million on the first level, just what max_pixels allows.
        "non_local": {"mixer": "non_local(subsample=8,max_pixels=8192)"},
    },
}
"""The fields of GAMA-IR that make each variant, by the question that it answers."""

VARIANTS: dict[str, dict[str, str]] = {
    name: {"mixer_position": "gate", **fields} for group in GROUPS.values() for name, fields in group.items()
}
"""All fields that differ between variants, by the name of the variant."""

CONFIDENCE = 0.95
"""Of the interval around a paired difference."""


def study(
    *,
    network: str,
    overrides: Mapping[str, Any],
    variants: Sequence[str],
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
    """Trains every variant once for each seed, then measures latency and memory of each.

    Everything is checked before the first training. Trainings and measurements that are in the folder are kept.

    Args:
        network: the name of a GAMA-IR.
        overrides: its fields that differ from the named one, in all variants; not those that make the variants.
        variants: names from `VARIANTS`; none for all. `gama` is always among them, as the others are compared with it.
        task: a name from `gamax.lab.small_training.TASKS`.
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
        UserError: for a name that there is not, a value that cannot be, or a variant that cannot run at these sizes.

    """
    settings = {
        **{"network": network, "overrides": dict(overrides), "variants": list(variants), "task": task},
        **{"dataset": dataset, "source": source, "steps": steps, "batch_size": batch_size, "patch_size": patch_size},
        **{"learning_rate": learning_rate, "seeds": list(seeds), "latency_size": latency_size},
    }
    height, width = parse_size(latency_size)
    check_task(task)
    budget = Budget(steps, batch_size, patch_size, learning_rate)
    chosen = _chosen(network, overrides, variants)
    models = {name: _model(name, network, fields) for name, fields in chosen.items()}
    largest = max((patch_size, patch_size), (TEST_SIDE, TEST_SIDE), (height, width), key=math.prod)
    for name, model in models.items():
        check_sizes(f"variant {name}", model, [largest], "leave it out of --variants")
    cases = cases_of({name: (network, fields) for name, fields in chosen.items()}, height, width)
    photographs = load_photographs(dataset, source, patch_size)

    trials = [
        {
            **{"name": name, "seed": seed, "network": network, "overrides": fields, "task": task},
            **{"budget": dataclasses.asdict(budget), "photographs_sha256": photographs.sha256},
        }
        for name, fields in chosen.items()
        for seed in dict.fromkeys(seeds)
    ]

    def run(trial: Mapping[str, Any], update: Callable[[float, str], object]) -> dict[str, Any]:
        return train_small(models[trial["name"]], photographs, task, budget, trial["seed"], update)

    rows = run_trials(trials, run, folder)
    summaries = summarise(rows)
    costs = measure_cost(cases, folder)

    places = f"{network} {' '.join(f'{key}={value}' for key, value in overrides.items())}".strip()
    training = f"{task}, {steps} steps of {batch_size} crops of {patch_size}x{patch_size}, {_count(seeds, 'seed')}"
    title = f"{places}\n{training}; {dataset}"
    groups = {group: [name for name in names if name in chosen] for group, names in GROUPS.items()}
    figures = {"dots.png": draw_dots(groups, rows, summaries, title)}
    pareto = draw_quality_against_cost(groups, summaries, costs, f"{title}; one image of {latency_size}")
    if pareto is not None:
        figures["quality_against_cost.png"] = pareto
    return Report(
        name="ablation",
        settings=settings,
        reproduce=reproduce,
        tables={
            f"{places}: {training}": [_cells(name, summaries[name], costs[name]) for name in chosen],
            "What the variants are": [
                {"variant": name, "compared": group, **VARIANTS[name]} for group in groups for name in groups[group]
            ],
        },
        notes=_notes(rows, summaries, costs, photographs, latency_size),
        figures=figures,
        record={
            "photographs": {"description": photographs.description, "sha256": photographs.sha256},
            "variants": {
                name: {"overrides": fields, **summaries[name], "cost": cost_figures(costs[name])}
                for name, fields in chosen.items()
            },
            "trials": rows,
        },
    )


def _chosen(network: str, overrides: Mapping[str, Any], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """All overrides of each variant by its name, in the order of `VARIANTS`."""
    if variant(network).network is not GAMAIR:
        valid = ", ".join(name for name, found in NETWORKS.items() if found.network is GAMAIR)
        raise UserError(f"the ablation is of GAMA-IR ({valid}), not of {network}; `gamax lab swap` takes others")
    for name in names:
        if name not in VARIANTS:
            raise UserError(f"unknown variant '{name}'; there are {', '.join(VARIANTS)}")
    for key in ("mixer", "mixer_position"):
        if key in overrides:
            raise UserError(f"--overrides cannot set {key}, which the variants differ in; choose with --variants")
    wanted = {REFERENCE, *names} if names else VARIANTS.keys()
    return {name: {**overrides, **fields} for name, fields in VARIANTS.items() if name in wanted}


def _model(name: str, network: str, overrides: Mapping[str, Any]) -> nn.Module:
    try:
        return create_model(network, **overrides)
    except UserError as error:
        raise UserError(f"variant {name}: {error}") from error


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What the trials say about each variant.

    Args:
        rows: of trials, with `name`, `seed` and `psnr` in dB, None for one that is not finite; `gama` among them.

    Returns:
        By variant: `psnr`, the `spread` over its finite seeds (None without one); `not_finite`, the other seeds;
        `difference`, None for `gama`, or without a seed that both have: the `spread` of its PSNR less that of `gama`,
        seed by seed, in dB, with `half_width` of the interval of Student's t around the mean at `CONFIDENCE`, and
        `beyond`, whether 0 is outside; both None for one seed, which has no spread.

    """
    found: dict[str, dict[int, float | None]] = {}
    for row in rows:
        found.setdefault(row["name"], {})[row["seed"]] = row["psnr"]
    finite = {name: {seed: psnr for seed, psnr in values.items() if psnr is not None} for name, values in found.items()}
    reference = finite[REFERENCE]
    return {
        name: {
            "psnr": spread(list(values.values())) if values else None,
            "not_finite": [seed for seed in found[name] if seed not in values],
            "difference": None
            if name == REFERENCE
            else _difference([values[seed] - reference[seed] for seed in values if seed in reference]),
        }
        for name, values in finite.items()
    }


def _difference(pairs: Sequence[float]) -> dict[str, Any] | None:
    if not pairs:
        return None
    figures = spread(pairs)
    if len(pairs) == 1:
        return {**figures, "half_width": None, "beyond": None}
    # It takes long to import.
    from scipy import stats

    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(pairs) - 1))
    half_width = quantile * figures["std"] / math.sqrt(len(pairs))
    return {**figures, "half_width": half_width, "beyond": abs(figures["mean"]) > half_width}


def _cells(name: str, summary: Mapping[str, Any], cost: Mapping[str, Any]) -> dict[str, str]:
    psnr, lost = summary["psnr"], len(summary["not_finite"])
    quality = "not finite" if psnr is None else with_spread(psnr)
    return {
        "variant": name,
        "PSNR, dB": f"{quality} ({lost} not finite)" if psnr is not None and lost else quality,
        "to gama, dB": "" if summary["difference"] is None else _signed(summary["difference"]),
        **cost_cells(cost),
    }


def _signed(difference: Mapping[str, Any]) -> str:
    sign = "+" if difference["mean"] >= 0 else ""
    return f"{sign}{with_spread(difference, 3)}{' *' if difference['beyond'] else ''}"


def _notes(
    rows: Sequence[Mapping[str, Any]],
    summaries: Mapping[str, Mapping[str, Any]],
    costs: Mapping[str, Mapping[str, Any]],
    photographs: Photographs,
    latency_size: str,
) -> list[str]:
    notes = [
        f"Photographs: {photographs.description}. PSNR is over all held-out squares together, those of the degraded "
        f"ones is {rows[0]['psnr_input']:.2f} dB; ± is the standard deviation over seeds.",
        *_verdict(summaries),
        f"Latency and memory: one image of {latency_size}, float32; memory: {PROGRAM_MEMORY}.",
    ]
    if "non_local" in summaries:
        notes.append(
            "non_local takes the maxima of squares of 8x8 features for keys and values; a map of all pixels by all "
            "pixels of a 256x256 image would have 4.3 thousand million weights."
        )
    notes += [
        f"{name}: the training did not end with a finite PSNR for {_count(summary['not_finite'], 'seed')} "
        f"({', '.join(map(str, summary['not_finite']))}), which no mean has in it."
        for name, summary in summaries.items()
        if summary["not_finite"]
    ]
    return notes + [
        f"{name} could not be measured: {row['failure']}" for name, row in costs.items() if "failure" in row
    ]


def _verdict(summaries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Which differences are more than what seeds do, or that nothing can be said."""
    differences = {name: found["difference"] for name, found in summaries.items() if found["difference"] is not None}
    judged = {name: found for name, found in differences.items() if found["beyond"] is not None}
    if not differences:
        return []
    if not judged:
        return ["One seed alone: nothing can be said about which differences are more than chance. Take three or more."]
    beyond = [f"{name} ({_signed(found).rstrip(' *')} dB)" for name, found in judged.items() if found["beyond"]]
    told = f"they are so for {', '.join(beyond)}" if beyond else "none is"
    rest = " Of the others not even the sign is known with so few seeds." if len(beyond) < len(judged) else ""
    return [
        "Differences to gama are paired: a seed gives all variants the same crops and degradations. A star marks those "
        f"that are further from 0 than the half width of the {CONFIDENCE:.0%} interval of Student's t: {told}.{rest} "
        f"By chance {(1 - CONFIDENCE) * len(judged):.2g} of {len(judged)} would get a star."
    ]


def _count(items: Sequence[object], unit: str) -> str:
    return f"{len(items)} {unit}{'s' if len(items) != 1 else ''}"
