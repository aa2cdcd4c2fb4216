"""Trains small networks of four families alike, for docs/results/equal_budget.md.

    taskset -c 0 python docs/compare_equal_budget.py BSDS500 CBSD68 SCRATCH --seconds 120 --samples 8000

BSDS500 is what the builder `bsds500` reads, CBSD68 a folder with its 68 images. The networks are those of `gamax lab
landscape` with about 1 G multiply-adds for an image of 256x256 pixels. Each is trained twice: with the same number of
crops as the others, and for the same number of seconds, compilation not counted. The steps that fit into the seconds
are known from the first training, so that the learning rate falls to its end in either.

What is finished is kept in SCRATCH, outside the repository: the same command goes on where it was stopped, and
`--networks` does a part. When all networks are there, docs/results/equal_budget.json is written;
`python docs/make_results.py` makes the page of it. Latency is that of the cores that the caller gives the process.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

from gamax.benchmark.plots import PROGRAM_MEMORY
from gamax.config import DataConfig, Experiment, OptimizerConfig, TrainingConfig
from gamax.console import say
from gamax.data.datasets import source_examples
from gamax.data.degradations import GaussianNoise
from gamax.environment import environment, versions
from gamax.errors import UserError, exit_on_user_error
from gamax.evaluation.evaluate import evaluate
from gamax.evaluation.protocol_data import protocol_examples
from gamax.evaluation.protocols import find_protocol
from gamax.evaluation.restorer import Restorer
from gamax.files import check_writable, write_json
from gamax.lab.cost import cases_of, cost_figures, measure_cost
from gamax.lab.landscape import SMALL
from gamax.lab.small_training import CROPS_KEY, random_crops
from gamax.lab.study import device, run_trials
from gamax.models import create_model
from gamax.training.state import TrainState, initial_state
from gamax.training.step import make_train_step

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = ("gama_ir", "nafnet", "restormer", "unet")
PROTOCOL = "gauss-color-25"
SQUARE = 160
"""Sides of the squares that photographs are cut into: six of each photograph of BSDS500."""
CROP, BATCH = 64, 8
SIGMA = (0.0, 50.0)
LEARNING_RATE = 1e-3
SIDE = 256
"""Of the image for latency, memory and multiply-adds."""

Update = Callable[[float, str], object]


def load_squares(source: Path) -> UInt8[np.ndarray, "n s s 3"]:
    """Squares of the 400 photographs that do not overlap."""
    squares = []
    for example in source_examples(DataConfig(dataset="bsds500", source=str(source)), "train"):
        image = np.asarray(example["target"])
        height, width = (side // SQUARE for side in image.shape[:2])
        whole = image[: height * SQUARE, : width * SQUARE].reshape(height, SQUARE, width, SQUARE, 3)
        squares.extend(whole.swapaxes(1, 2).reshape(-1, SQUARE, SQUARE, 3))
    return np.stack(squares)


def make_step(
    model: nn.Module, steps: int, seed: int
) -> tuple[Experiment, Callable[[TrainState, Array], tuple[TrainState, Any]]]:
    """The training step of `train.py` on random crops of squares, and its experiment."""
    experiment = Experiment(
        data=DataConfig(patch_size=CROP, degradations=(GaussianNoise(SIGMA),)),
        optimizer=OptimizerConfig(
            learning_rate=LEARNING_RATE, final_learning_rate=LEARNING_RATE / 100, gradient_clip=1.0
        ),
        training=TrainingConfig(steps=steps, batch_size=BATCH, loss="psnr", seed=seed),
    )
    train_step = make_train_step(model, experiment)

    @partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, squares: Array) -> tuple[TrainState, Any]:
        # Apart from the keys that the training step makes of the same one.
        key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), CROPS_KEY)
        return train_step(state, {"target": random_crops(key, squares, BATCH, CROP)})

    return experiment, step


def train(
    model: nn.Module, squares: UInt8[Array, "n s s 3"], steps: int, seed: int, test: Path, update: Update
) -> dict[str, Any]:
    """Trains a network and scores it; seconds are those of the steps alone, in which nothing is compiled."""
    experiment, step = make_step(model, steps, seed)
    jax.block_until_ready(step(initial_state(model, experiment), squares))
    state, metrics = initial_state(model, experiment), {}
    start = time.perf_counter()
    for number in range(1, steps + 1):
        state, metrics = step(state, squares)
        # Asking waits for the step, so that no more than some of them are ahead of what is shown.
        if number % 10 == 0:
            update(0.9 * number / steps, f"loss {float(metrics['loss']):.2f}")
    jax.block_until_ready(state)
    seconds = time.perf_counter() - start
    protocol = find_protocol(PROTOCOL)
    evaluation = evaluate(Restorer(model, state.params), protocol_examples(protocol, test), protocol)
    return {
        "steps": steps,
        "samples": steps * BATCH,
        "seconds": seconds,
        "skipped": int(state.skipped_total),
        "images": len(evaluation.rows),
        "psnr_input": evaluation.mean("psnr_input"),
        **evaluation.means(),
    }


def compare(arguments: argparse.Namespace) -> None:
    """Trains and measures what is not in SCRATCH yet, and writes the results when all networks are there."""
    if arguments.seconds <= 0 or arguments.samples < BATCH:
        raise UserError(f"--seconds must be above 0 and --samples at least {BATCH}")
    scratch = arguments.scratch.resolve()
    if scratch.is_relative_to(ROOT):
        raise UserError(f"'{arguments.scratch}' is in the repository; choose a folder outside it")
    for folder in (scratch, arguments.output.parent):
        check_writable(folder)
    # Raises for a folder without the images before the training, not after it.
    tested = len(protocol_examples(find_protocol(PROTOCOL), arguments.test))
    squares = load_squares(arguments.photographs)
    fixed = {
        "seed": arguments.seed,
        "batch_size": BATCH,
        "crop": CROP,
        "sigma": SIGMA,
        "learning_rate": LEARNING_RATE,
        "squares": len(squares),
        "squares_sha256": hashlib.sha256(squares.tobytes()).hexdigest(),
        "test_images": tested,
    }
    on_device = jnp.asarray(squares)
    rows: dict[str, dict[str, Any]] = {}
    for name in arguments.networks:
        network, overrides = SMALL[name]
        model = create_model(network, **overrides)

        def run(trial: Mapping[str, Any], update: Update, model: nn.Module = model) -> dict[str, Any]:
            return train(model, on_device, trial["steps"], arguments.seed, arguments.test, update)

        def trained(budget: str, steps: int, name: str = name, run: Callable[..., Any] = run) -> dict[str, Any]:
            network, overrides = SMALL[name]
            trial = {
                **{"name": name, "network": network, "overrides": overrides},
                **{"budget": budget, "steps": steps, **fixed},
            }
            return run_trials([trial], run, scratch)[0]

        first = trained("samples", arguments.samples // BATCH)
        fitting = max(1, round(arguments.seconds * first["steps"] / first["seconds"]))
        second = trained("seconds", fitting)
        rows[name] = {"network": network, "overrides": overrides, "samples": first, "seconds": second}
        for budget, row in (("samples", first), ("seconds", second)):
            say(f"{name}, equal {budget}: {row['psnr']:.2f} dB, {row['samples']:,} crops, {row['seconds']:.0f} s")
    if missing := [name for name in NETWORKS if name not in rows]:
        say(f"not written yet: without {', '.join(missing)}; the same command with all networks writes the results")
        return
    cases = cases_of({name: SMALL[name] for name in NETWORKS}, SIDE, SIDE)
    for name, cost in measure_cost(cases, scratch).items():
        rows[name]["cost"] = cost_figures(cost)
    kept = ("steps", "samples", "seconds", "skipped", "psnr", "ssim", "psnr_input")
    for row in rows.values():
        row |= {budget: {key: row[budget][key] for key in kept} for budget in ("samples", "seconds")}
    record = {
        "protocol": PROTOCOL,
        "data": {"train": "bsds500", "test": "cbsd68"},
        "budget": {"samples": arguments.samples, "seconds": arguments.seconds},
        "settings": {**fixed, "loss": "psnr", "latency_size": f"{SIDE}x{SIDE}", "memory": PROGRAM_MEMORY},
        "cores": len(os.sched_getaffinity(0)),
        "networks": {name: rows[name] for name in NETWORKS},
        "versions": versions(),
        "device": device(),
        # Folders of this machine and the name of its kernel mean nothing elsewhere.
        "environment": {
            **environment(),
            "platform": f"{platform.system()} {platform.machine()}",
            "command": "python docs/compare_equal_budget.py BSDS500 CBSD68 SCRATCH "
            f"--seconds {arguments.seconds:g} --samples {arguments.samples} --seed {arguments.seed}",
        },
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.output, record)
    say(f"wrote {arguments.output}")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path, metavar="BSDS500")
    parser.add_argument("test", type=Path, metavar="CBSD68")
    parser.add_argument("scratch", type=Path, metavar="SCRATCH")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--samples", type=int, default=8000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--output", type=Path, default=ROOT / "docs/results/equal_budget.json")
    compare(parser.parse_args())


if __name__ == "__main__":
    with exit_on_user_error():
        main()
