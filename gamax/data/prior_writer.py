"""Sampling the diffusion prior of every input of a dataset once, before training: `gamax data prior`."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gamax import hosts
from gamax.config import DataConfig
from gamax.console import progress_bar
from gamax.data.builders import find_builder
from gamax.data.examples import DUAL_PIXEL, ExampleFiles, check_agreement, examine, read_example, read_images
from gamax.data.images import read_image, to_float, write_image
from gamax.data.prior import SETTINGS_NAME, prior_path, stored_settings
from gamax.data.prior_sampler import PriorSampler
from gamax.environment import versions
from gamax.errors import UserError, nearest
from gamax.files import check_writable, lock, replace_atomically, write_json
from gamax.interop.weights import find_weights, sha256

PICTURE_NAME = "prior.png"

_FORMAT = 1
_ROWS = 4
_CROP = 256

Splits = Mapping[str, Sequence[ExampleFiles]]


@dataclass(frozen=True)
class SplitSummary:
    """The priors of one split, after they were written."""

    name: str
    images: int
    made: int
    """How many of them were sampled now; the others were there."""
    num_bytes: int
    """What all of them take on disk."""
    deviation: float
    """Standard deviation of the stored latents, the mean over images."""
    clamped: float
    """Part of the values that are at a limit, where information is lost; the mean over images."""


@dataclass(frozen=True)
class WrittenPriors:
    """What `write_priors` has done."""

    folder: Path
    splits: tuple[SplitSummary, ...]


def write_priors(
    data: DataConfig, weights: Path, output: Path | None = None, splits: Sequence[str] = (), **options: Any
) -> WrittenPriors:
    """Samples the prior of every input of a dataset and stores it for training, as `gamax.data.prior` describes.

    Everything that can be wrong is found before the first one is sampled. Every file appears complete or not at all: of
    work that was interrupted the same call keeps what is there and makes the rest, and on CPU the end is the same to
    the byte with as many devices. Several processes (`gamax.hosts.join`) that share the disk share the images.

    Args:
        data: `dataset` and `source` say where the inputs are; of the other fields only `prior` matters.
        weights: a run folder or a weight file of a latent diffusion model.
        output: the folder; the default is `data.prior`, else beside the source with `_prior` behind its name.
        splits: those to make; the default is all.
        **options: fields of `PriorSampler`.

    Returns:
        The folder and what is in it of those splits.

    Raises:
        UserError: if the dataset has no inputs, an image cannot be read, the weights are of another kind of network, an
            option makes no sense, or the folder cannot be written or holds something else.
    """
    source, examples = _find_inputs(data, splits)
    folder = (output or Path(data.prior or source.with_name(f"{source.name}_prior"))).expanduser().absolute()
    check_writable(folder)
    sampler = PriorSampler.from_weights(weights, **options)
    settings = {
        "format": _FORMAT,
        "dataset": data.dataset,
        "source": str(source),
        "weights_sha256": sha256(find_weights(weights)),
        **sampler.settings(),
    }
    _check_folder(folder, settings)
    flat = [(split, files) for split, part in examples.items() for files in part]
    names = json.dumps([[split, files.name] for split, files in flat])
    digest = hashlib.sha256(names.encode()).hexdigest()
    hosts.check_alike({**settings, "output": str(folder), "the digest of the names of the examples": digest})

    share = flat[jax.process_index() :: jax.process_count()]
    records, missing = _examine(share, folder)
    hosts.wait_for_all("images checked")
    with lock(folder, wait=False) if hosts.is_first() else nullcontext():
        if hosts.is_first():
            # Again, as someone else may have been here before the lock.
            _check_folder(folder, settings)
            if not (folder / SETTINGS_NAME).exists():
                # The path is for restoring; the digest says which model it is.
                record = {**settings, "weights": str(find_weights(weights).absolute()), "versions": versions()}
                write_json(folder / SETTINGS_NAME, record)
        hosts.wait_for_all("settings written")
        records += _sample(missing, len(share), folder, sampler)
        records = hosts.gather_records(records)
        if hosts.is_first():
            _check_all_here(flat, folder)
            replace_atomically(folder / PICTURE_NAME, _draw(flat, folder))
        hosts.wait_for_all("prior finished")
    return WrittenPriors(folder, tuple(_summarise(split, records, sampler.limit) for split in examples))


def _find_inputs(data: DataConfig, chosen: Sequence[str]) -> tuple[Path, Splits]:
    """The source of a dataset and the examples of the chosen splits; reads no image."""
    builder = find_builder(data.dataset)
    default = builder.default_source()
    if data.source is None and default is None:
        raise UserError(f"dataset {data.dataset} needs --source: {builder.MANUAL_DOWNLOAD_INSTRUCTIONS}")
    source = Path(data.source or default or "").expanduser().resolve()
    splits = builder.examples(source)
    for split in chosen:
        if split not in splits:
            raise UserError(f"dataset {data.dataset} has no split {nearest(split, list(splits))} in '{source}'")
    splits = {split: examples for split, examples in splits.items() if not chosen or split in chosen}
    for split, examples in splits.items():
        if not {"input", *DUAL_PIXEL} & examples[0].images.keys():
            raise UserError(
                f"dataset {data.dataset} has clean images only in its split {split}: their inputs are degraded anew in "
                "every step of training, so no prior can be made of them beforehand; choose a paired dataset"
            )
    return source, splits


def _check_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raises `UserError` if the folder holds another prior, or anything else, whose files might be replaced."""
    if not (folder / SETTINGS_NAME).exists():
        if folder.exists() and not (folder.is_dir() and all(item.name.startswith(".") for item in folder.iterdir())):
            raise UserError(f"'{folder}' is neither empty nor a prior of gamax; choose another --output")
        return
    stored = stored_settings(folder)
    different = [name for name, value in settings.items() if stored.get(name) != value]
    if different:
        name = different[0]
        raise UserError(
            f"'{folder}' holds a prior of {name} {stored.get(name)}, not {settings[name]}; choose another --output, or "
            "delete the folder"
        )


def _examine(
    share: Sequence[tuple[str, ExampleFiles]], folder: Path
) -> tuple[list[dict[str, Any]], list[tuple[str, ExampleFiles]]]:
    """Reads every image: the records of the priors that are there, and the examples without, large ones first."""
    records, missing = [], []
    for split in dict.fromkeys(split for split, _ in share):
        part = [files for name, files in share if name == split]
        with closing(examine(part, partial(_inspect, folder, split), f"checking {split}")) as inspected:
            for files, found in inspected:
                if isinstance(found, UserError):
                    raise found
                size, record = found
                if record:
                    records.append(record)
                else:
                    missing.append((size, split, files))
    # Equal sizes share a program; the largest shows whether memory is enough.
    missing.sort(key=lambda item: item[0], reverse=True)
    return records, [(split, files) for _, split, files in missing]


def _inspect(folder: Path, split: str, files: ExampleFiles) -> tuple[tuple[int, int], dict[str, Any] | None]:
    """Height and width of an example, and the record of its prior if that is complete."""
    images = read_images(files)
    check_agreement(files, images)
    height, width, _ = next(iter(images.values())).shape
    path = prior_path(folder, split, files.name)
    try:
        prior = read_image(path)
    except UserError:
        # Not made yet, or damaged since: it will be made again.
        return (height, width), None
    complete = prior.shape == (height, width, 3) and prior.dtype == np.uint16
    return (height, width), _record(split, path, prior, made=False) if complete else None


def _sample(
    missing: Sequence[tuple[str, ExampleFiles]], count: int, folder: Path, sampler: PriorSampler
) -> list[dict[str, Any]]:
    """Makes the missing priors of the `count` examples of this process."""
    records = []
    present = count - len(missing)
    with progress_bar("sampling priors", count, "images", present) as update:
        for done, (split, files) in enumerate(missing, present):
            path = prior_path(folder, split, files.name)

            def show(fraction: float, done: int = done, name: str = files.name) -> None:
                # An image is done when it is written.
                update(done + min(fraction, 0.999), name)

            try:
                prior = sampler(read_example(files)["input"], show)
            except UserError as error:
                raise UserError(f"'{files.path}': {error}") from error
            path.parent.mkdir(parents=True, exist_ok=True)
            write_image(path, prior)
            update(done + 1, files.name)
            records.append(_record(split, path, prior, made=True))
    return records


def _record(split: str, path: Path, prior: np.ndarray, made: bool) -> dict[str, Any]:
    """What the summary needs of one prior, ready for JSON."""
    at_limit = (prior == 0) | (prior == 65535)
    return {
        "split": split,
        "made": made,
        "num_bytes": path.stat().st_size,
        "deviation": 2 * float(to_float(prior).std()),
        "clamped": float(at_limit.mean()),
    }


def _summarise(split: str, records: Sequence[Mapping[str, Any]], limit: float) -> SplitSummary:
    own = [record for record in records if record["split"] == split]
    return SplitSummary(
        name=split,
        images=len(own),
        made=sum(record["made"] for record in own),
        num_bytes=sum(record["num_bytes"] for record in own),
        deviation=limit * float(np.mean([record["deviation"] for record in own])),
        clamped=float(np.mean([record["clamped"] for record in own])),
    )


def _check_all_here(flat: Sequence[tuple[str, ExampleFiles]], folder: Path) -> None:
    absent = [path for split, files in flat if not (path := prior_path(folder, split, files.name)).is_file()]
    if absent:
        raise UserError(
            f"{len(absent)} priors that other processes have written are not in '{folder}', such as '{absent[0]}': "
            "choose an --output on a disk that all processes share"
        )


def _draw(flat: Sequence[tuple[str, ExampleFiles]], folder: Path) -> bytes:
    """A PNG of input, prior and target of a few examples: the middle of each, at full scale."""
    from matplotlib.figure import Figure

    chosen = [flat[index] for index in sorted({*np.linspace(0, len(flat) - 1, _ROWS).round().astype(int)})]
    rows = []
    for split, files in chosen:
        example = read_example(files)
        panels = {"input": example["input"][..., :3], "prior": read_image(prior_path(folder, split, files.name))}
        if "target" in example:
            panels["target"] = example["target"]
        rows.append((f"{split}/{files.name}", {caption: _middle(image) for caption, image in panels.items()}))
    tallest = max(panels["prior"].shape[0] / panels["prior"].shape[1] for _, panels in rows)
    figure = Figure((9, (3 * tallest + 0.65) * len(rows)), layout="constrained")
    for (name, panels), axes in zip(rows, figure.subplots(len(rows), 3, squeeze=False), strict=True):
        # A file name may look like a formula.
        axes[0].set_title(name, loc="left", fontsize="medium", parse_math=False)
        for axis, (caption, image) in zip(axes, panels.items(), strict=False):
            axis.imshow(image, interpolation="nearest")
            axis.set_xlabel(caption)
            axis.set(xticks=[], yticks=[])
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _middle(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    top, left = max(height - _CROP, 0) // 2, max(width - _CROP, 0) // 2
    return to_float(image[top : top + _CROP, left : left + _CROP])
