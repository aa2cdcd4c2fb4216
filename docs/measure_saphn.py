"""Trains small SAPHNs and their parts alike, for `docs/results/saphn.md`.

    python docs/measure_saphn.py pairs OUTPUT --sharp DIR... --test DIR --gopro DIR
    python docs/measure_saphn.py train OUTPUT
    python docs/measure_saphn.py table OUTPUT

The first makes pairs of sharp photographs and synthetic motion blur, with those of GoPro beside them. The second trains
every row with every seed through `train.py`, each a process of its own; runs that are finished are left alone. The
third prints the table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

SMALL = ("widths=8,16,32",)
ROWS = {
    "DMPHN": ("dmphn_1_2_4",),
    "plain blocks": ("saphn", "branches=none", "level_attention=false"),
    "+ attention": ("saphn", "branches=attention"),
    "+ local filtering": ("saphn", "branches=filter", "level_attention=false", "kernel_size=3"),
    "+ both fused": ("saphn", "kernel_size=3"),
    "+ sampling, random": ("saphn_sampling", "kernel_size=3", "policy=uniform"),
    "+ sampling, learned": ("saphn_sampling", "kernel_size=3"),
}
SEEDS = (0, 1, 2)
STEPS, BATCH, CROP, TEST_CROP = 600, 4, 64, 256
TRAINING = (
    *("--training.steps", str(STEPS), "--training.batch-size", str(BATCH), "--data.patch-size", str(CROP)),
    *("--training.loss", "l1", "--optimizer.learning-rate", "1e-3", "--optimizer.gradient-clip", "0.5"),
    *("--optimizer.beta2", "0.999", "--training.checkpoint-every", str(STEPS), "--evaluation.every", "0"),
)


def make_pairs(output: Path, sharp: list[Path], test: Path, gopro: Path) -> None:
    """Writes `data/train`, `data/test` with synthetic blur, and `gopro/` with crops of GoPro's test pairs."""
    import jax

    from gamax.data.degradations import MotionBlur
    from gamax.data.images import list_images, read_image, to_float, to_integers, write_image

    blur = jax.jit(MotionBlur(length=(5.0, 17.0), spatially_varying=True, roll=(2.0, 8.0)))

    def write(folder: Path, name: str, pair: tuple[np.ndarray, np.ndarray]) -> None:
        for kind, image in zip(("input", "target"), pair, strict=True):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            write_image(folder / kind / f"{name}.png", image)

    def cropped(image: np.ndarray, left: int | None = None) -> np.ndarray:
        top, middle = ((side - TEST_CROP) // 2 for side in image.shape[:2])
        left = middle if left is None else left
        return image[top : top + TEST_CROP, left : left + TEST_CROP]

    number = itertools.count()
    for folders, part in ((sharp, "train"), ([test], "test")):
        for path in (path for folder in folders for path in list_images(folder)):
            index = next(number)
            image = read_image(path)
            blurred = to_integers(np.asarray(blur(jax.random.key(index), to_float(image)[None]))[0])
            pair = (blurred, image) if part == "train" else (cropped(blurred), cropped(image))
            write(output / "data" / part, f"{index:04d}", pair)
    for part, sequence, path in _gopro(gopro):
        pair = tuple(read_image(folder / path.name) for folder in (path.parent, sequence / "sharp"))
        if part == "train":
            write(output / "data/train", f"gopro_{path.stem}", pair)
            continue
        for left in (192, 512, 832):
            crops = tuple(cropped(image, left) for image in pair)
            write(output / "gopro", f"{sequence.name}_{path.stem}_{left}", crops)


def _gopro(folder: Path) -> Iterator[tuple[str, Path, Path]]:
    for part in ("train", "test"):
        for sequence in sorted((folder / part).iterdir()):
            for path in sorted((sequence / "blur").iterdir()):
                yield part, sequence, path


def _run_folder(output: Path, row: str, seed: int) -> Path:
    return output / "runs" / f"{'_'.join(row.replace('+', '').replace(',', '').split())}_{seed}"


def train_all(output: Path) -> None:
    """Trains and evaluates what is not finished, one after the other; several such processes share the work."""
    for (row, (model, *overrides)), seed in itertools.product(ROWS.items(), SEEDS):
        run = _run_folder(output, row, seed)
        run.parent.mkdir(exist_ok=True, parents=True)
        try:
            run.with_suffix(".taken").touch(exist_ok=False)
        except FileExistsError:
            continue
        settings = ("--model.name", model, "--model.overrides", *SMALL, *overrides, "--training.seed", str(seed))
        folders = ("--data.source", str(output / "data"), "--data.prepared-dir", str(output / "prepared"))
        command = ["train.py", "configs/paired.py", *folders, *settings, *TRAINING, "--logging.run-dir", str(run)]
        subprocess.run([sys.executable, *command], check=True)
        options = ("--protocol", "paired-rgb", "--data", str(output / "gopro"), "--output", str(run / "gopro.json"))
        subprocess.run([sys.executable, "eval.py", str(run), *options], check=True)


def print_table(output: Path) -> None:
    """PSNR of every row: mean and standard deviation over the seeds, on both test sets."""
    print("| network | parameters | synthetic blur | GoPro crops | seconds |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for row in ROWS:
        results = [
            [json.loads((_run_folder(output, row, seed) / name).read_text()) for name in ("result.json", "gopro.json")]
            for seed in SEEDS
        ]
        scores = zip(*([result["mean"]["psnr"] for result in pair] for pair in results), strict=True)
        cells = [f"{statistics.mean(of_set):.2f} ± {statistics.stdev(of_set):.2f}" for of_set in scores]
        seconds = statistics.mean(own["seconds"] for own, _ in results)
        print(f"| {row} | | {' | '.join(cells)} | {seconds:.0f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("verb", choices=("pairs", "train", "table"))
    parser.add_argument("output", type=Path)
    parser.add_argument("--sharp", type=Path, nargs="+")
    parser.add_argument("--test", type=Path)
    parser.add_argument("--gopro", type=Path)
    arguments = parser.parse_args()
    if arguments.verb == "pairs":
        make_pairs(arguments.output, arguments.sharp, arguments.test, arguments.gopro)
    else:
        (train_all if arguments.verb == "train" else print_table)(arguments.output)
