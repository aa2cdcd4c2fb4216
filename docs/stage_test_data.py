"""Lays the photographs that the results use out as `gamax data prepare` and `eval.py --data` read them.

    python docs/stage_test_data.py DATA SCRATCH

DATA holds bsds500/{train,test}, polyu/{input,target} with train.txt and test.txt, and rain800/{train,test} with
{input,target,sidebyside} and index.csv. SCRATCH, outside the repository, gets

* bsds500/images/{train,test}: the 400 photographs that the builder `bsds500` calls `train`;
* polyu/{train,test}/{input,target}: 86 and 14 crops, split by scene;
* rain800/{train,test}/{input,target}: for training what shares no clean picture with Rain800's test set, Rain100L or
  Rain100H, and the whole test set of 100.

Files are copied as they are. Pairs that one file holds side by side, clean picture on the left, are cut after decoding
and written as PNG. A folder of SCRATCH that is there already is left alone.
"""

from __future__ import annotations

import argparse
import csv
import shutil
from collections.abc import Callable
from pathlib import Path

from gamax.console import say
from gamax.data.images import read_image, write_image
from gamax.errors import UserError, exit_on_user_error
from gamax.files import check_writable

ROOT = Path(__file__).resolve().parents[1]
RAIN800_TEST = 100


def stage(name: str, scratch: Path, fill: Callable[[Path], None]) -> None:
    """Fills `scratch/name` by way of a folder beside it, so that what is there is whole."""
    folder = scratch / name
    if folder.exists():
        say(f"{folder} is there already")
        return
    partial = scratch / f".{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        fill(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    partial.rename(folder)
    counts = sorted((path.relative_to(folder), len(list(path.glob("*.*")))) for path in folder.glob("*/*"))
    say(f"{folder}: " + ", ".join(f"{count} in {path}" for path, count in counts))


def stage_bsds500(source: Path, folder: Path) -> None:
    """BSDS500 without its part `val`, of which CBSD68 is made."""
    for part in ("train", "test"):
        images = sorted((source / part).glob("*.jpg"))
        if len(images) != 200:
            raise UserError(f"'{source / part}' holds {len(images)} JPEG images instead of 200; copy it again")
        for image in images:
            copy(image, folder / "images" / part / image.name)


def stage_polyu(source: Path, folder: Path) -> None:
    """PolyU's crops by the lists of names train.txt and test.txt."""
    for part in ("train", "test"):
        for name in read_text(source / f"{part}.txt").split():
            for side in ("input", "target"):
                copy(source / side / f"{name}.jpg", folder / part / side / f"{name}.jpg")


def stage_rain800(source: Path, folder: Path) -> None:
    """Rain800 by index.csv, every file as a pair."""
    rows = list(csv.DictReader(read_text(source / "index.csv").splitlines()))
    tested = sum(row["split"] == "test" for row in rows)
    if tested != RAIN800_TEST:
        raise UserError(f"'{source / 'index.csv'}' lists {tested} test files instead of {RAIN800_TEST}; copy it again")
    for row in rows:
        if row["split"] == "train" and (row["shares_clean_with_test"] or row["rain100"]):
            continue
        parts = {side: folder / row["split"] / side for side in ("input", "target")}
        if row["layout"] == "cut":
            for side, path in parts.items():
                copy(source / row["split"] / side / row["file"], path / row["file"])
            continue
        image = read_image(source / row["split"] / "sidebyside" / row["file"])
        middle = image.shape[1] // 2
        halves = {"target": image[:, :middle], "input": image[:, middle:]}
        for side, half in halves.items():
            parts[side].mkdir(parents=True, exist_ok=True)
            write_image(parts[side] / f"{Path(row['file']).stem}.png", half)


def copy(source: Path, target: Path) -> None:
    """Copies the bytes of a file; a missing one raises `UserError`."""
    if not source.is_file():
        raise UserError(f"no file '{source}'; copy the data set again")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def read_text(path: Path) -> str:
    """The text of a file; a missing one raises `UserError`."""
    if not path.is_file():
        raise UserError(f"no file '{path}'; copy the data set again")
    return path.read_text()


def main() -> None:
    """Stages the three sets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("scratch", type=Path)
    arguments = parser.parse_args()
    scratch = arguments.scratch.resolve()
    if scratch.is_relative_to(ROOT):
        raise UserError(f"'{arguments.scratch}' is in the repository, where no data set may lie; choose another folder")
    fills = {"bsds500": stage_bsds500, "polyu": stage_polyu, "rain800": stage_rain800}
    for name in fills:
        if not (arguments.data / name).is_dir():
            raise UserError(f"no folder '{arguments.data / name}'; name the folder around {', '.join(fills)}")
    check_writable(scratch)
    scratch.mkdir(parents=True, exist_ok=True)
    for name, fill in fills.items():
        stage(name, scratch, lambda folder, name=name, fill=fill: fill(arguments.data / name, folder))


if __name__ == "__main__":
    with exit_on_user_error():
        main()
