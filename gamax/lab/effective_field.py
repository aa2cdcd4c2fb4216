"""Effective receptive fields (arXiv 1701.04128): how much each input pixel matters to an output pixel."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gamax.benchmark.case import random_parameters
from gamax.blocks.mixers import import_path
from gamax.config import DataConfig
from gamax.data.datasets import source_examples
from gamax.data.images import to_float
from gamax.diffusion.autoencoder import Autoencoder
from gamax.diffusion.latent_diffusion import LatentDiffusion
from gamax.errors import UserError, first_line, nearest
from gamax.evaluation.restorer import padded_size
from gamax.interop.weights import find_weights, load_weights, sha256
from gamax.lab.block_check import check_block
from gamax.lab.effective_field_plots import field_sheet, within_curves
from gamax.lab.receptive_field import receptive_field
from gamax.lab.study import Report, run_trials, spread, with_spread
from gamax.models import abstract_params, create_model, list_models

SMALLEST_SIZE = 16
"""Pixels; in a smaller image a field is little more than its border."""
ROW_HEIGHT, ROW = 16, 2048
"""Pixels of the row that the theoretical field is looked for in."""

Energy = Float[np.ndarray, "h w"]


@dataclass(frozen=True)
class Subject:
    """A network whose field is measured."""

    model: nn.Module
    params: Any
    """Of training; None for random ones, other ones for each image."""
    identity: Mapping[str, Any]
    """Name and overrides, or the digest of the weights, ready for JSON."""


def effective_field(model: nn.Module, params: Any, image: Float[np.ndarray, "h w c"]) -> Energy:
    """Squared derivatives of the output's centre pixel by each pixel of the input.

    The sum over all pairs of channels of input and output, so no choice of a direction decides the map. The centre of
    `[H, W]` is at `(H // 2, W // 2)`.

    Args:
        model: gives images of the height and width of its input.
        params: its parameters.
        image: values in [0, 1].

    """
    # Products are exact, as far as the device can.
    with jax.default_matmul_precision("highest"):
        derivatives = np.asarray(_derivatives(model, params, jnp.asarray(image)), np.float64)
    # Squares of what many layers have made small would be zero in float32.
    return np.square(derivatives).sum((0, -1))


@partial(jax.jit, static_argnums=0)
def _derivatives(model: nn.Module, params: Any, image: Float[Array, "h w c"]) -> Float[Array, "d h w c"]:
    def centre(image: Array) -> Any:
        restored: Any = model.apply({"params": params}, image[None])
        return restored[0, image.shape[0] // 2, image.shape[1] // 2]

    return jax.jacrev(centre)(image)


def split_centre(energy: Energy) -> tuple[Energy, float]:
    """The share of the energy of every other pixel among them, and the centre's share of all.

    Networks that add their input to the result have a derivative of 1 there, which would hide all else; that of the
    other pixels is the same with and without this path.

    Raises:
        UserError: if there is no energy beside the centre, or it is not finite.

    """
    place = (energy.shape[0] // 2, energy.shape[1] // 2)
    others = energy.copy()
    others[place] = 0
    total = float(others.sum())
    if not np.isfinite(energy).all():
        raise UserError("its derivatives are not finite; take other weights, or a smaller network")
    if total == 0:
        raise UserError("its output depends on no pixel but the one at the same place: there is no field to measure")
    return others / total, float(energy[place]) / float(energy.sum())


def energy_within(energy: Energy) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """All distances of pixels from the centre, ascending, and the share of the energy that is no further than each."""
    height, width = energy.shape
    rows, columns = np.indices(energy.shape)
    squared = (rows - height // 2) ** 2 + (columns - width // 2) ** 2
    distances = np.unique(squared)
    within = np.cumsum(np.bincount(squared.ravel(), energy.ravel())[distances])
    return np.sqrt(distances), within / within[-1]


def radius(energy: Energy, share: float) -> float:
    """The smallest distance from the centre, in pixels, within which there is at least that share of the energy."""
    distances, within = energy_within(energy)
    # Sums are rounded: what is the half may come out a little below.
    return float(distances[np.searchsorted(within, share - 1e-9)])


def seeded_parameters(model: nn.Module, seed: Sequence[int]) -> Any:
    """`random_parameters`, whose paths all show in the output, with the values of each array in an order by the seed.

    A fresh network would have no field: its residual scales are zero.
    """
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.permutation(leaf.ravel()).reshape(leaf.shape), random_parameters(model))


def study(
    *,
    networks: Sequence[str],
    overrides: Mapping[str, Any],
    size: int,
    images: int,
    content: Literal["noise", "photographs"],
    seed: int,
    folder: Path,
    reproduce: str,
) -> Report:
    """Measures the effective field of each network, and looks for the theoretical one.

    Args:
        networks: named ones, which get random parameters; run folders or weight files, which keep theirs.
        overrides: fields that differ from those of all named networks.
        size: pixels of the sides of images; more where a network would pad them, for all networks.
        images: the mean is over so many, each with random parameters of its own where those are random.
        content: uniform noise, or crops of the photographs of scikit-image.
        seed: of parameters and images.
        folder: for trials.
        reproduce: the command that makes the same again.

    Raises:
        UserError: for a network, a field of it, a size or a number of images that cannot be.

    """
    if size < SMALLEST_SIZE or images < 1 or seed < 0:
        raise UserError(
            f"--size must be at least {SMALLEST_SIZE}, --images at least 1 and --seed at least 0, not {size}, {images} "
            f"and {seed}"
        )
    if import_path(overrides.get("mixer"))[0]:
        check_block(overrides["mixer"])
    subjects = {name: find_subject(name, overrides) for name in networks}
    side = common_size([subject.model for subject in subjects.values()], size)
    photographs = _photographs(side) if content == "photographs" else []
    for name, subject in subjects.items():
        _check(name, subject.model, side, content)
    shared: dict[str, Any] = {"size": side, "images": images, "content": content, "seed": seed, "row": ROW}
    if photographs:
        shared["photographs_sha256"] = hashlib.sha256(b"".join(map(np.ndarray.tobytes, photographs))).hexdigest()

    def run(trial: Mapping[str, Any], update: Callable[[float, str], object]) -> dict[str, Any]:
        subject = subjects[trial["name"]]
        energies = []
        for number in range(images):
            update(number / (images + 1), f"image {number + 1} of {images}")
            image = _image(subject.model, photographs, side, (seed, number))
            params = seeded_parameters(subject.model, (seed, number)) if subject.params is None else subject.params
            energies.append(effective_field(subject.model, params, image))
        update(images / (images + 1), "theoretical field")
        try:
            return {**_figures(energies), "theoretical": receptive_field(subject.model, ROW, ROW_HEIGHT)}
        except UserError as error:
            raise UserError(f"{trial['name']}: {error}") from error

    trials = [{"name": name, **subject.identity, **shared} for name, subject in subjects.items()]
    rows = run_trials(trials, run, folder, unit="networks")
    return _report(rows, {**shared, "asked_size": size, "overrides": dict(overrides)}, reproduce)


def find_subject(text: str, overrides: Mapping[str, Any]) -> Subject:
    """The named network with overrides, or the trained one of a run folder or weight file.

    Raises:
        UserError: if there is neither.

    """
    if text in list_models():
        return Subject(create_model(text, **overrides), None, {"network": text, "overrides": dict(overrides)})
    if not Path(text).exists():
        raise UserError(f"no network, run folder or weight file {nearest(text, list_models())}")
    # What bfloat16 rounds would be part of the field.
    model, params = load_weights(text, dtype="float32")
    # The mixer, as the fingerprint of the weights does not know the code of a block of the user's.
    mixer = getattr(getattr(model, "network", model), "mixer", None)
    return Subject(model, params, {"weights_sha256": sha256(find_weights(text)), "mixer": mixer})


def common_size(models: Sequence[nn.Module], size: int) -> int:
    """The smallest side of at least `size` pixels that none of the networks pads: borders would be mirrored into it."""
    while (larger := max(max(padded_size(model, (size, size))) for model in models)) > size:
        size = larger
    return size


def _check(name: str, model: nn.Module, side: int, content: str) -> None:
    if isinstance(model, Autoencoder | LatentDiffusion):
        raise UserError(f"{name} looks up codes in a table, through which there are no derivatives; take another one")
    if content == "photographs" and (getattr(model, "prior", False) or model.input_channels not in (1, 3, 6)):
        raise UserError(f"{name} takes more than a photograph as its input; use --content noise")
    # The theoretical field is looked for last, in images of one row.
    for height, width in ((side, side), (ROW_HEIGHT, ROW)):
        images = jax.ShapeDtypeStruct((1, height, width, model.input_channels), jnp.float32)
        try:
            restored: Any = jax.eval_shape(model.apply, {"params": abstract_params(model)}, images)
        except Exception as error:  # A block of the user's can fail in any way.
            raise UserError(f"{name} cannot run on {height}x{width} pixels ({first_line(error)})") from error
        if restored.shape[1:3] != (height, width):
            raise UserError(f"{name} does not give images of the size of its input, so no pixel is at the same place")


def _photographs(side: int) -> list[np.ndarray]:
    """Those of scikit-image, as integers `[H, W, 3]`."""
    found = [example["target"] for split in ("train", "test") for example in source_examples(DataConfig(), split)]
    smallest = min(min(photograph.shape[:2]) for photograph in found)
    if smallest < side:
        raise UserError(f"--content photographs has images of {smallest} pixels: {side} are too many for --size")
    return [np.asarray(photograph) for photograph in found]


def _image(
    model: nn.Module, photographs: Sequence[np.ndarray], side: int, seed: tuple[int, int]
) -> Float[np.ndarray, "h w c"]:
    """Noise, or a crop at a random place of the photographs in turn: grey for one channel, twice for two views."""
    rng, channels = np.random.default_rng(seed), model.input_channels
    if not photographs:
        return rng.random((side, side, channels), np.float32)
    photograph = photographs[seed[1] % len(photographs)]
    top, left = (int(rng.integers(0, length - side + 1)) for length in photograph.shape[:2])
    crop = to_float(photograph[top : top + side, left : left + side])
    return crop.mean(-1, keepdims=True) if channels == 1 else np.tile(crop, channels // 3)


def _figures(energies: Sequence[Energy]) -> dict[str, Any]:
    """Of the maps of all images, and the mean map, in which every image counts the same."""
    maps, centres = zip(*map(split_centre, energies), strict=True)
    quarter = maps[0].shape[0] / 4
    return {
        "radius_50": [radius(one, 0.5) for one in maps],
        "radius_95": [radius(one, 0.95) for one in maps],
        "beyond_quarter": [_beyond(one, quarter) for one in maps],
        "centre": list(centres),
        "energy": [[float(f"{value:.6g}") for value in row] for row in np.mean(maps, 0)],
    }


def _beyond(energy: Energy, distance: float) -> float:
    distances, within = energy_within(energy)
    return float(1 - within[distances <= distance][-1])


def _report(rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], reproduce: str) -> Report:
    side, count = settings["size"], settings["images"]
    even = split_centre(np.ones((side, side)))[0]
    table = [
        {
            "network": row["name"],
            "parameters": _parameters(row),
            "theoretical field": f"{row['theoretical']} px" if row["theoretical"] else "whole image",
            "50 % within, px": with_spread(spread(row["radius_50"]), 1),
            "95 % within, px": with_spread(spread(row["radius_95"]), 1),
            f"beyond {side / 4:g} px, %": with_spread(spread([100 * share for share in row["beyond_quarter"]]), 2),
            "centre, % of all": with_spread(spread([100 * share for share in row["centre"]]), 1),
        }
        for row in rows
    ]
    images = f"{count} image{'s' if count > 1 else ''} of {settings['content']}"
    notes = [
        f"Energy: squared derivatives of the output's centre pixel by the input; {images}, {side}x{side} pixels, seed "
        f"{settings['seed']}. Random parameters are other ones for each image. Shares and radii leave the centre pixel "
        "out, so that networks that add their input to the result can be compared with others; its share is in the "
        "last column. ± is the standard deviation over images.",
        f"Energy spread evenly over the image would have {radius(even, 0.5):.1f} and {radius(even, 0.95):.1f} px.",
        f"Theoretical field: pixels of a row that an output pixel can depend on at most, in a row of {ROW} pixels; "
        '"whole image" is all of them.',
    ]
    if side > settings["asked_size"]:
        notes.append(f"{side} pixels instead of {settings['asked_size']}: some network would pad a smaller image.")
    title = f"{images}, {side}x{side} pixels, seed {settings['seed']}"
    energies = {row["name"]: np.asarray(row["energy"], np.float64) for row in rows}
    figures = {
        "fields.png": field_sheet(rows, title),
        "energy_within.png": within_curves(
            {name: energy_within(energy) for name, energy in energies.items()}, energy_within(even), title
        ),
    }
    kept = [{key: value for key, value in row.items() if key != "energy"} for row in rows]
    for row in kept:
        for key in ("radius_50", "radius_95", "beyond_quarter", "centre"):
            row[f"{key}_spread"] = spread(row[key])
    tables = {"Effective receptive fields": table}
    return Report("receptive_field", settings, reproduce, tables, notes, figures, {"networks": kept})


def _parameters(row: Mapping[str, Any]) -> str:
    if "weights_sha256" in row:
        return "trained"
    return ", ".join(["random", *(f"{key}={value}" for key, value in row["overrides"].items())])
