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

from gamax.errors import UserError
from gamax.files import lock

ROOT = Path(__file__).parents[1]
SMALL = ("widths=8,16,32", "levels=1,2")
ROWS = {
    "DMPHN": ("dmphn_1_2_4",),
    "SAPHN, plain blocks": ("saphn", "branches=none", "level_attention=false"),
    "SAPHN, attention": ("saphn", "branches=attention"),
    "SAPHN, local filtering": ("saphn", "branches=filter", "level_attention=false", "kernel_size=3"),
    "SAPHN, both fused": ("saphn", "kernel_size=3"),
    "with random sampling": ("saphn_sampling", "kernel_size=3", "start=0.3", "policy=uniform"),
    "with learned sampling": ("saphn_sampling", "kernel_size=3", "start=0.3"),
}
SEEDS = (0, 1, 2)
STEPS, BATCH, CROP, TEST_CROP = 1600, 2, 64, 256
TRAINING = (
    *("--training.steps", str(STEPS), "--training.batch-size", str(BATCH), "--data.patch-size", str(CROP)),
    *("--training.loss", "l1", "--optimizer.learning-rate", "2e-3", "--optimizer.gradient-clip", "0.5"),
    *("--optimizer.beta2", "0.99", "--training.checkpoint-every", str(STEPS), "--evaluation.every", "0"),
)
SETS = {"synthetic blur": "result.json", "GoPro crops": "gopro.json"}


def make_pairs(output: Path, sharp: list[Path], test: Path, gopro: Path) -> None:
    """Writes `data/train`, `data/test` with synthetic blur, and `gopro/` with crops of GoPro's test pairs."""
    import jax

    from gamax.data.degradations import MotionBlur
    from gamax.data.images import list_images, read_image, to_float, to_integers, write_image

    blur = jax.jit(MotionBlur(length=(3.0, 7.0), roughness=(0.0, 0.5), spatially_varying=True, roll=(0.0, 6.0)))

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
    output = output.resolve()
    for (row, (model, *overrides)), seed in itertools.product(ROWS.items(), SEEDS):
        run = _run_folder(output, row, seed)
        try:
            with lock(output / "locks" / run.name, wait=False):
                if (run / "gopro.json").exists():
                    continue
                settings = (
                    "--model.name",
                    model,
                    "--model.overrides",
                    *SMALL,
                    *overrides,
                    "--training.seed",
                    str(seed),
                )
                folders = ("--data.source", str(output / "data"), "--data.prepared-dir", str(output / "prepared"))
                _run("train.py", "configs/paired.py", *folders, *settings, *TRAINING, "--logging.run-dir", str(run))
                scored = ("--data", str(output / "gopro"), "--output", str(run / "gopro.json"))
                _run("eval.py", str(run), "--protocol", "paired-rgb", *scored)
        except UserError as busy:
            print(busy)


def _run(*command: str) -> None:
    subprocess.run([sys.executable, *command], check=True, cwd=ROOT)


def print_table(output: Path) -> None:
    """Gains in PSNR over the input: mean and standard deviation over the seeds, on both test sets."""
    from gamax.config import parse_overrides
    from gamax.models import abstract_params, count_parameters, create_model

    results = {
        row: {
            title: [json.loads((_run_folder(output, row, seed) / name).read_text()) for seed in SEEDS]
            for title, name in SETS.items()
        }
        for row in ROWS
    }
    inputs = [f"{results['DMPHN'][title][0]['psnr_input']:.2f} dB" for title in SETS]
    print(f"| network | parameters | {' | '.join(f'{title}, gain' for title in SETS)} |")
    print("| --- | ---: | ---: | ---: |")
    print(f"| input | | {' | '.join(inputs)} |")
    for row, (model, *overrides) in ROWS.items():
        params = abstract_params(create_model(model, **parse_overrides([*SMALL, *overrides])))
        gains = [[result["psnr"] - result["psnr_input"] for result in results[row][title]] for title in SETS]
        cells = [f"{statistics.mean(each):+.3f} ± {statistics.stdev(each):.3f}" for each in gains]
        print(f"| {row} | {count_parameters(params):,} | {' | '.join(cells)} |")
    print("\nlearned against random sampling, seed by seed:")
    for title in SETS:
        pairs = zip(results["with learned sampling"][title], results["with random sampling"][title], strict=True)
        print(f"{title}:", ", ".join(f"{learned['psnr'] - random['psnr']:+.3f} dB" for learned, random in pairs))
    for row in ("with random sampling", "with learned sampling"):
        lines = [(_run_folder(output, row, seed) / "metrics.jsonl").read_text().splitlines() for seed in SEEDS]
        records = [record for record in map(json.loads, itertools.chain(*lines)) if "reward" in record]
        late = [record for record in records if record["step"] > STEPS // 2]
        means = {name: statistics.mean(record[name] for record in late) for name in ("reward", "precision", "entropy")}
        print(f"{row}, mean of {len(late)} batches in the second half:", means)


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
