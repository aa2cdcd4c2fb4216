"""Trains the weights that come with gamax, scores them, and puts them with their model cards into `gamax/pretrained/`.

    python docs/stage_test_data.py DATA SCRATCH
    python docs/train_pretrained.py DATA SCRATCH [NAME ...]

It runs `train.py configs/pretrained_NAME.py` in SCRATCH/runs/NAME, which goes on where it was interrupted. So on a
machine that is lent for half an hour at a time the same command is given again, and what is finished is not trained
again. What a GPU is to do beyond a CPU is written into the configuration first: steps, batch, network. Then it writes
NAME.safetensors (float16), the results into docs/results/, and NAME.md from both.

A record names the commit of the checkout, which what is written makes dirty. So for records of a clean commit, commit
all that the first call wrote and give the command again: it trains nothing anew.

DATA holds cbsd68/ and kodak24/ beside what `docs/stage_test_data.py` reads.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from make_results import RESULTS, ROOT, TASKS

from gamax.config import Experiment, load, to_dict
from gamax.console import say
from gamax.errors import UserError, exit_on_user_error
from gamax.files import replace_atomically, write_json
from gamax.interop.weights import load_weights, save_weights, sha256
from gamax.models import count_parameters
from gamax.pretrained import PRETRAINED

STAGED = ("bsds500", "polyu", "rain800")
"""What lies in SCRATCH; all else is in DATA."""


@dataclass(frozen=True)
class TrainingData:
    """What weights are trained on, and what follows for them."""

    source: str
    photographs: str
    """In words, with the licence."""
    limits: str
    """What the weights are not for."""
    tested_on: str | None = None
    """What `train.py` scores at the end; None for the part `test` of the source."""


TRAINING_DATA = {
    "denoise-gaussian": TrainingData(
        "bsds500",
        "The 400 photographs of the parts `train` and `test` of BSDS500 (CBSD68 is made of the part `val`). BSDS500 is "
        "commonly described as for non-commercial research and education (unconfirmed).",
        "It knows white noise alone. Most JPEG files store colour at half the resolution, which makes the grain of "
        "their noise coarser: that it leaves almost as it is (`denoise-photo` does not).",
        "cbsd68",
    ),
    "denoise-photo": TrainingData(
        "bsds500",
        "First as `denoise-gaussian`, then on the same photographs with the same noise, three quarters of them stored "
        "as JPEG of quality 60 to 100 with colour at half the resolution. BSDS500 is commonly described as for "
        "non-commercial research and education (unconfirmed).",
        "It knows white noise, as it is or after one JPEG: not noise that a camera has smoothed or sharpened before.",
        "cbsd68",
    ),
    "denoise-real": TrainingData(
        "polyu",
        "First as `denoise-gaussian`, then on 86 of the 100 crops of PolyU, of all scenes but the five that are tested "
        "on; both sides are JPEG. Licence of "
        "The Hong Kong Polytechnic University: like BSD, for non-commercial use only. A plush toy of one training "
        "scene also stands in two of the scenes that are tested on.",
        "It knows the mild noise of five cameras (about 36 dB) and no strong noise: that of high sensitivities, or of "
        "raw files, it leaves.",
    ),
    "derain": TrainingData(
        "rain800",
        "449 pairs of the training part of Rain800, as many as were at hand and share no clean picture with its test "
        "part; clean pictures repeat in both. Rain800 states no licence.",
        "Its rain is drawn on photographs. Real rain has drops, veils and mist that it has not seen.",
    ),
}


def main() -> None:
    """Trains, stores, scores and describes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", default=list(TRAINING_DATA))
    chosen = parser.parse_args()
    for name in chosen.names:
        if name not in TRAINING_DATA:
            raise UserError(f"no weights '{name}'; choose of {', '.join(TRAINING_DATA)}")
    data, scratch = chosen.data.resolve(), chosen.scratch.resolve()
    for name in ("cbsd68", "kodak24", *STAGED):
        if not folder_of(name, data, scratch).is_dir():
            raise UserError(f"no folder '{folder_of(name, data, scratch)}'; run docs/stage_test_data.py first")
    for name in chosen.names:
        train(name, data, scratch)
        store(name, scratch)
    # All before a record is written, which would make the checkout of the next score dirty.
    scores = {name: score(name, data, scratch) for name in chosen.names}
    for name in chosen.names:
        for file, record in scores[name].items():
            write_json(RESULTS / "restoration" / file, record)
        replace_atomically(PRETRAINED[name].card, card_text(name).encode())
        say(f"{name}: wrote {PRETRAINED[name].path.name}, {PRETRAINED[name].card.name} and the results")


def folder_of(name: str, data: Path, scratch: Path) -> Path:
    """Where a set lies."""
    return scratch / name if name in STAGED else data / name


def tests_of(name: str) -> Iterator[tuple[str, str]]:
    """The protocols and sets that weights are scored on."""
    for task in TASKS:
        if name in task.weights:
            yield from ((protocol, tested) for protocol in task.protocols for tested in task.sets)


def run(command: list[str]) -> None:
    """Runs a program of the checkout."""
    finished = subprocess.run([sys.executable, *command], cwd=ROOT, check=False)
    if finished.returncode:
        raise UserError(f"'{' '.join(command)}' ended with exit code {finished.returncode}; give the command again")


def train(name: str, data: Path, scratch: Path) -> None:
    """Trains in SCRATCH/runs/NAME, goes on there, or finds it finished."""
    folder = scratch / "runs" / name
    if (folder / "result.json").is_file():
        if settings_of(load(folder / "config.json")) != settings_of(load(ROOT / config_of(name))):
            raise UserError(f"'{folder}' was trained otherwise than {config_of(name)} says; remove it or mend that")
        return
    chosen = TRAINING_DATA[name]
    command = ["train.py", config_of(name), "--data.source", str(folder_of(chosen.source, data, scratch))]
    if chosen.tested_on:
        command += ["--evaluation.data", str(folder_of(chosen.tested_on, data, scratch))]
    run([*command, "--logging.run-dir", str(folder)])


def settings_of(experiment: Experiment) -> dict[str, Any]:
    """What decides the weights: the experiment without folders, evaluation and logging."""
    settings = to_dict(replace(experiment, data=replace(experiment.data, source=None, prepared_dir=None)))
    return {group: settings[group] for group in ("model", "data", "optimizer", "training")}


def config_of(name: str) -> str:
    """The configuration of weights."""
    return f"configs/pretrained_{name.replace('-', '_')}.py"


def store(name: str, scratch: Path) -> None:
    """The weights as float16 into the package, the record of the training into the results."""
    folder = scratch / "runs" / name
    experiment = load(folder / "config.json")
    _, params = load_weights(folder)
    model = experiment.model
    save_weights(PRETRAINED[name].path, params, model.name, model.overrides, stored_as="float16")
    record = read_record(folder / "result.json", f"python train.py {config_of(name)}")
    kept = ("protocol", "images", "psnr_input", "psnr", "ssim", "steps", "samples", "seconds", "weights_sha256")
    record = {key: record[key] for key in (*kept, "versions", "environment")}
    (RESULTS / "training").mkdir(parents=True, exist_ok=True)
    write_json(RESULTS / "training" / f"{name}.json", {"weights": name, **record, "settings": settings_of(experiment)})


def score(name: str, data: Path, scratch: Path) -> dict[str, dict[str, Any]]:
    """Scores the stored weights: the result files by name. Pictures, which `eval.py` also writes, stay in SCRATCH."""
    records = {}
    for protocol, tested in tests_of(name):
        folder = folder_of(tested, data, scratch)
        output = scratch / "results" / f"{name}.{protocol}.{tested}.json"
        command = ["eval.py", name, "--protocol", protocol]
        run([*command, "--data", str(folder / "test" if tested in STAGED else folder), "--output", str(output)])
        record = read_record(output, f"python {' '.join(command)} --data {tested}")
        records[output.name] = record | {"method": name, "data": tested}
    return records


def read_record(path: Path, command: str) -> dict[str, Any]:
    """A result file without what is of this machine alone: its folders and the name of its kernel."""
    record = json.loads(path.read_text())
    record["environment"] |= {"command": command, "platform": f"{platform.system()} {platform.machine()}"}
    return record


def card_text(name: str) -> str:
    """The model card, from the records of training and tests."""
    chosen, weights = TRAINING_DATA[name], PRETRAINED[name]
    training = json.loads((RESULTS / "training" / f"{name}.json").read_text())
    _, params = load_weights(name)
    rows = []
    for protocol, tested in tests_of(name):
        result = json.loads((RESULTS / "restoration" / f"{name}.{protocol}.{tested}.json").read_text())
        figures = f"{result['psnr_input']:.2f} | {result['psnr']:.2f} | {result['ssim']:.4f}"
        rows.append(f"| `{protocol}` | {tested} | {result['images']} | {figures} |")
    variant = ", ".join(f"`{key}={value}`" for key, value in training["settings"]["model"]["overrides"].items())
    machine, versions = training["environment"], training["versions"]
    lines = [
        f"# {name}",
        "",
        f"Against {weights.summary}. Task of `gamax restore`: `{weights.task}`.",
        "",
        f"**Terms of use: {weights.licence}.** gamax is under Apache-2.0; these weights follow their training data.",
        "",
        "| what | |",
        "| --- | --- |",
        f"| network | GAMA-IR (arXiv 2404.00807; layout of the blocks reconstructed): "
        f"`{training['settings']['model']['name']}` with {variant} |",
        f"| parameters | {count_parameters(params):,}, stored as float16, {weights.path.stat().st_size / 1e6:.1f} MB |",
        f"| training data | {chosen.photographs} |",
        f"| budget | {training['steps']:,} steps, {training['samples']:,} crops, {training['seconds'] / 60:.0f} "
        f"minutes; {', '.join(machine['devices'])} with {machine['cpu_count']} cores |",
        f"| made by | `{training['environment']['command']}`; Python {versions['python']}, "
        f"jax {versions['jax']}, flax {versions['flax']}; gamax at commit {machine['gamax_commit'] or 'unknown'}, with "
        f"the settings in `docs/results/training/{name}.json` |",
        f"| SHA-256 | of this file {sha256(weights.path)}, before rounding {training['weights_sha256']} |",
        "",
        "## Results",
        "",
        "| protocol | test set | images | PSNR of the input, dB | PSNR, dB | SSIM |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
        *rows,
        "",
        "Whole images, no self-ensemble, scored by `eval.py`. Baselines and published figures stand beside them in "
        "`docs/results/restoration.md`.",
        "",
        "## Limits",
        "",
        f"{chosen.limits} Like every network of its kind it may take fine texture for noise, or draw what was not "
        "there: it is not for evidence, medicine or measurement. It expects sRGB values as cameras store them, not "
        "linear ones.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
