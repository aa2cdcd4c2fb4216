"""Trains a small Swintormer with and without a prior, for `docs/results/diffusion.md`.

    python docs/measure_prior.py pairs OUTPUT --train DIR --test DIR
    python docs/measure_prior.py train OUTPUT
    python docs/measure_prior.py table OUTPUT

The first makes pairs of sharp photographs and synthetic defocus, and priors for them that need no diffusion model: an
oracle, which is the low-pass residual of the blurred target, and noise. `gamax data prior` adds one that is sampled, as
`OUTPUT/priors/sampled`. The second trains every row with every seed through `train.py`, each a process of its own; runs
that are finished are left alone. The third prints the table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np

from gamax.errors import UserError
from gamax.files import lock

ROOT = Path(__file__).parents[1]
SIDE = 128
LOW_PASS = 1.5
"""Standard deviation in pixels of the Gaussian in the oracle."""
SMALL = ("width=16", "blocks=1,1,1,2", "refinement_blocks=1", "heads=1,2,4,8", "window_size=4")
ROWS = {"no prior": None, "noise": "noise", "sampled": "sampled", "oracle": "oracle"}
SEEDS = (0, 1, 2)
TRAINING = (
    *("--training.steps", "1500", "--training.batch-size", "8", "--data.patch-size", "64"),
    *("--training.loss", "l1", "--optimizer.learning-rate", "1e-3", "--optimizer.gradient-clip", "0.5"),
    *("--optimizer.beta2", "0.99", "--training.checkpoint-every", "500", "--evaluation.every", "0"),
)


def make_pairs(output: Path, train: Path, test: Path) -> None:
    """Writes `data/{train,test}/{input,target}` and `priors/{oracle,noise}`, from the middle of every photograph."""
    import cv2
    import jax

    from gamax.data.degradations import DefocusBlur
    from gamax.data.images import list_images, read_image, to_float, to_integers, write_image
    from gamax.data.prior import SETTINGS_NAME, prior_path
    from gamax.files import write_json

    blur = jax.jit(DefocusBlur(radius=(1.5, 4.0)))
    random = np.random.default_rng(0)

    def write(path: Path, image: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, image)

    number = itertools.count()
    for part, folder in (("train", train), ("test", test)):
        for path in list_images(folder):
            index = next(number)
            target = read_image(path)
            top, left = ((side - SIDE) // 2 for side in target.shape[:2])
            target = target[top : top + SIDE, left : left + SIDE]
            blurred = to_integers(np.asarray(blur(jax.random.key(index), to_float(target)[None]))[0])
            residual = cv2.GaussianBlur(to_float(target) - to_float(blurred), (0, 0), LOW_PASS)
            priors = {
                "oracle": to_integers(0.5 + residual, np.uint16),
                "noise": random.integers(0, 2**16, target.shape, np.uint16),
            }
            for kind, image in (("input", blurred), ("target", target)):
                write(output / "data" / part / kind / f"{index:04d}.png", image)
            for kind, image in priors.items():
                write(prior_path(output / "priors" / kind, part, f"{index:04d}"), image)
    for kind in ("oracle", "noise"):
        write_json(output / "priors" / kind / SETTINGS_NAME, {"made by": "docs/measure_prior.py"})


def _run_folder(output: Path, row: str, seed: int) -> Path:
    return output / "runs" / f"{row.replace(' ', '_')}_{seed}"


def train_all(output: Path) -> None:
    """Trains and evaluates what is not finished, one after the other; several such processes share the work."""
    output = output.resolve()
    for seed, (row, prior) in itertools.product(SEEDS, ROWS.items()):
        run = _run_folder(output, row, seed)
        if prior is not None and not (output / "priors" / prior).is_dir():
            print(f"no prior '{prior}'")
            continue
        model = (
            ("swintormer",) if prior is None else ("swintormer_prior", "--data.prior", str(output / "priors" / prior))
        )
        settings = ("--model.name", *model, "--model.overrides", *SMALL, "--training.seed", str(seed))
        folders = ("--data.source", str(output / "data"), "--data.prepared-dir", str(output / "prepared"))
        command = ("train.py", "configs/paired.py", *folders, *settings, *TRAINING, "--logging.run-dir", str(run))
        try:
            with lock(output / "locks" / run.name, wait=False):
                if not (run / "result.json").exists():
                    subprocess.run([sys.executable, *command], check=True, cwd=ROOT)
        except UserError as busy:
            print(busy)


def print_table(output: Path) -> None:
    """PSNR of every row: mean and standard deviation over the seeds, and the difference from no prior."""
    scores, inputs = {}, set()
    for row in ROWS:
        files = [_run_folder(output, row, seed) / "result.json" for seed in SEEDS]
        if all(file.exists() for file in files):
            results = [json.loads(file.read_text()) for file in files]
            scores[row] = [result["psnr"] for result in results]
            inputs |= {f"{result['psnr_input']:.2f} dB" for result in results}
    print(f"| prior | PSNR, from {' or '.join(inputs)} | difference from no prior, seed by seed |")
    print("| --- | ---: | ---: |")
    if "no prior" not in scores:
        sys.exit("the row without prior is not finished")
    for row, psnrs in scores.items():
        gains = [with_prior - without for with_prior, without in zip(psnrs, scores["no prior"], strict=True)]
        differences = "" if row == "no prior" else ", ".join(f"{gain:+.3f}" for gain in gains)
        print(f"| {row} | {statistics.mean(psnrs):.3f} ± {statistics.stdev(psnrs):.3f} dB | {differences} |")


def main() -> None:
    """Runs one of the three parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("pairs", "train", "table"))
    parser.add_argument("output", type=Path)
    parser.add_argument("--train", type=Path, help="folder with sharp photographs")
    parser.add_argument("--test", type=Path, help="folder with others")
    arguments = parser.parse_args()
    if arguments.part == "pairs":
        make_pairs(arguments.output, arguments.train, arguments.test)
    elif arguments.part == "train":
        train_all(arguments.output)
    else:
        print_table(arguments.output)


if __name__ == "__main__":
    main()
