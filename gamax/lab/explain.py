"""What content-aware blocks and adaptive sampling do on one photograph: `gamax lab explain`."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Bool, Float, Int

from gamax.console import say
from gamax.data.images import read_image, to_float, to_rgb
from gamax.errors import UserError
from gamax.evaluation.metrics import psnr
from gamax.files import check_writable, replace_atomically, write_json
from gamax.interop.weights import find_weights, load_weights, sha256

RGB = Float[np.ndarray, "h w 3"]

MAPS = ("mask", "key_map", "query_map", "offsets", "modulation", "fusion")
"""What `EfficientAttention`, `PixelDependentFilter` and `ContentAwareModule` sow."""

FIGURES_NAME = "explain.json"
PICTURE_NAMES = ("attention.png", "filters.png", "samples.png", "levels.png", "error.png")


@dataclass(frozen=True)
class Seen:
    """What a network has made of one image, and on the way there."""

    outputs: list[RGB]
    """Restored images, coarse to fine, not clipped; the last is the result."""
    modules: dict[str, dict[str, np.ndarray]]
    """By the path of each module, in the order in which they ran, its `MAPS`: `[N, h, w, ...]`, N the patches."""
    logits: list[Float[np.ndarray, "h w"]]
    """The sampling policy's, one for each stage."""
    chosen: list[Int[np.ndarray, " n"]]
    """The pixels of each stage, counted row by row."""


def observe(model: nn.Module, params: Any, image: RGB) -> Seen:
    """Runs a network once on an image in [0, 1] whose sides are multiples of its `size_multiple`.

    Of a module that runs several times, the last run is kept.
    """
    method = "outputs" if hasattr(model, "outputs") else None

    @jax.jit
    def run(params: Any, images: jax.Array) -> tuple[Any, Any]:
        result, state = model.apply({"params": params}, images, method=method, mutable=["intermediates"])
        # Unlike a dictionary, this comes back in the order in which it was filled.
        return result[0] if method else [result], OrderedDict(flatten_dict(state.get("intermediates", {}), sep="/"))

    outputs, sown = jax.device_get(run(params, image[None]))
    modules: dict[str, dict[str, np.ndarray]] = {}
    for path, values in sown.items():
        module, _, name = path.rpartition("/")
        if name in MAPS:
            # The two branches belong to the module that mixes them.
            module = module.removesuffix("/attention").removesuffix("/filter")
            modules.setdefault(module, {})[name] = np.asarray(values[-1], np.float32)
    return Seen(
        [np.asarray(output[0], np.float32) for output in outputs],
        modules,
        [np.asarray(logits[0], np.float32) for logits in sown.get("logits", ())],
        [np.asarray(chosen[0]) for chosen in sown.get("chosen", ())],
    )


def explain_photo(
    weights: Path,
    photo: Path,
    *,
    target: Path | None = None,
    output: Path | None = None,
    at: tuple[int, int] | None = None,
    size: int = 512,
    overwrite: bool = False,
) -> tuple[dict[str, Any], list[Path]]:
    """Runs a network on a photograph, draws what it did, and writes the pictures and `explain.json`.

    Args:
        weights: a run folder or a weight file.
        photo: of 8 or 16 bits; gray is repeated, alpha left out.
        target: the sharp or clean image of the same size.
        output: the folder; None is `NAME_explained` beside the photograph.
        at: row and column of the pixel that is looked at, from 0; None is the centre.
        size: sides above this many pixels are cropped around that pixel.
        overwrite: replace files of an earlier run.

    Returns:
        The content of `explain.json` and the files that were written.

    Raises:
        UserError: if a file cannot be read or written, the arguments do not fit together, or the network has no block
            to explain.
    """
    folder = output or photo.with_name(f"{photo.stem}_explained")
    existing = [path for name in (*PICTURE_NAMES, FIGURES_NAME) if (path := folder / name).exists()]
    if existing and not overwrite:
        raise UserError(f"'{existing[0]}' exists already; choose another --output or add --overwrite")
    check_writable(folder)
    image = to_float(to_rgb(read_image(photo)))
    sharp = to_float(to_rgb(read_image(target))) if target else None
    if sharp is not None and sharp.shape != image.shape:
        raise UserError(
            f"the target '{target}' has {sharp.shape[1]}x{sharp.shape[0]} pixels and '{photo}' has "
            f"{image.shape[1]}x{image.shape[0]}: give the sharp image of the same photograph"
        )
    model, params = load_weights(weights)
    if model.input_channels != 3:
        raise UserError(f"'{weights}' takes {model.input_channels} channel(s), but gamax lab explain has RGB images")
    point = at or (image.shape[0] // 2, image.shape[1] // 2)
    window = crop_window((image.shape[0], image.shape[1]), point, size, model.size_multiple, str(photo))
    (top, left), (height, width) = (tuple(part.start for part in window), image[window].shape[:2])
    if (height, width) != image.shape[:2]:
        shown = f"{width}x{height} of them from row {top} and column {left}, multiples of {model.size_multiple}"
        more = f"; --size {max(image.shape[:2])} shows more, in more memory" if max(image.shape[:2]) > size else ""
        say(f"'{photo}' has {image.shape[1]}x{image.shape[0]} pixels: shown are {shown}{more}")
    image, sharp = image[window], None if sharp is None else sharp[window]

    seen = observe(model, params, image)
    if not seen.modules and not seen.chosen and len(seen.outputs) == 1:
        raise UserError(
            f"'{weights}' is a {type(model).__name__} with nothing to explain; take SAPHN, a network with adaptive "
            "sampling, or one with the mixer efficient_attention, pixel_dependent_filter or content_aware"
        )
    if not all(np.isfinite(result).all() for result in seen.outputs):
        raise UserError("the network's output is not finite: its training has diverged, or its weights are damaged")
    record = {
        "weights": str(weights),
        "weights_sha256": sha256(find_weights(weights)),
        "photo": str(photo),
        "target": str(target) if target else None,
        "crop": {"top": top, "left": left, "height": height, "width": width},
        "at": list(point),
        **figures(seen, image, sharp),
    }

    from gamax.lab.explain_pictures import draw

    place = (point[0] - top, point[1] - left)
    pictures = draw(seen, image, sharp, place, one_place=at is not None)
    folder.mkdir(parents=True, exist_ok=True)
    for path in existing:
        if path.name not in pictures:
            path.unlink()
    for name, content in pictures.items():
        replace_atomically(folder / name, content)
    write_json(folder / FIGURES_NAME, record)
    return record, [folder / name for name in (*pictures, FIGURES_NAME)]


def crop_window(
    size: tuple[int, int], point: tuple[int, int], largest: int, multiple: int, name: str = "the image"
) -> tuple[slice, slice]:
    """Rows and columns around a pixel, as near to its middle as the image allows.

    Args:
        size: height and width of the image.
        point: row and column of the pixel.
        largest: pixels that a side has at most.
        multiple: sides are multiples of this.
        name: of the image, for errors.

    Raises:
        UserError: if the pixel is outside of the image, or a side would be empty.
    """
    if not all(0 <= place < side for place, side in zip(point, size, strict=True)):
        raise UserError(
            f"--at {point[0]},{point[1]} is outside '{name}', which has {size[0]} rows and {size[1]} columns, from 0"
        )
    if largest < multiple:
        raise UserError(f"--size must be at least {multiple}, of which this network needs multiples, not {largest}")
    if min(size) < multiple:
        raise UserError(f"'{name}' has {size[1]}x{size[0]} pixels; this network needs sides of at least {multiple}")
    window = []
    for place, side in zip(point, size, strict=True):
        length = min(side, largest) // multiple * multiple
        start = min(max(place - length // 2, 0), side - length)
        window.append(slice(start, start + length))
    return window[0], window[1]


def figures(seen: Seen, image: RGB, target: RGB | None) -> dict[str, Any]:
    """The figures of `explain.json`, a part for each of `modules`, `stages`, and with a target `psnr` and `error`.

    `psnr` is that of `clipped_psnr`, `error` that of `sample_errors` where pixels were sampled.
    """
    first = len(seen.outputs) - len(seen.chosen)
    found: dict[str, Any] = {
        "modules": {path: module_figures(maps) for path, maps in seen.modules.items()},
        "stages": [
            stage_figures(seen.outputs[first + stage - 1], seen.outputs[first + stage], target, chosen)
            for stage, chosen in enumerate(seen.chosen)
        ],
    }
    if target is None:
        return found
    found["psnr"] = {
        "input": clipped_psnr(image, target),
        "outputs": [clipped_psnr(output, target) for output in seen.outputs],
    }
    if seen.chosen:
        found["error"] = sample_errors(seen, image, target)
    return found


def sample_errors(seen: Seen, image: RGB, target: RGB) -> dict[str, dict[str, float]]:
    """Mean absolute error of `input` and `restored`, `at_samples` and `elsewhere`, where there are such pixels."""
    at_samples = sampled(seen.chosen, (image.shape[0], image.shape[1]))
    parts = {"at_samples": at_samples, "elsewhere": ~at_samples}
    errors = {"input": absolute_error(image, target), "restored": absolute_error(seen.outputs[-1], target)}
    return {
        name: {part: float(error[where].mean()) for part, where in parts.items() if where.any()}
        for name, error in errors.items()
    }


def sampled(chosen: Sequence[Int[np.ndarray, " n"]], size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """Which pixels of an image of that height and width any of the stages has chosen."""
    mask = np.zeros(size, bool)
    for pixels in chosen:
        mask.flat[pixels] = True
    return mask


def module_figures(maps: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Means over the pixels and patches of one module's `MAPS`.

    `attention_entropy` and `attention_coverage` are those of the key maps, each weighted by how much it is read; see
    `entropy` and `coverage`. Offsets are lengths in pixels of the module's resolution.
    """
    found = {}
    if "fusion" in maps:
        found["fusion"] = maps["fusion"].mean()
    if "key_map" in maps:
        found["mask"] = maps["mask"].mean()
        for measure in (entropy, coverage):
            read = measure(maps["key_map"]) * usage(maps["query_map"])
            found[f"attention_{measure.__name__}"] = read.sum(1).mean()
    if "offsets" in maps:
        lengths = np.linalg.norm(maps["offsets"], axis=-1)
        found |= {"mean_offset": lengths.mean(), "largest_offset": lengths.max()}
        found["modulation_spread"] = maps["modulation"].std()
    return {name: float(value) for name, value in found.items()}


def entropy(key_map: Float[np.ndarray, "n h w d"]) -> Float[np.ndarray, "n d"]:
    """Entropy of each key map over its positions, in nats; equal attention has the logarithm of their number."""
    return -(key_map * np.log(np.maximum(key_map, np.finfo(np.float32).tiny))).sum((1, 2))


def coverage(key_map: Float[np.ndarray, "n h w d"]) -> Float[np.ndarray, "n d"]:
    """The part of the positions that has the entropy of each key map if it is attended to equally, above 0 up to 1."""
    return np.exp(entropy(key_map)) / (key_map.shape[1] * key_map.shape[2])


def usage(query_map: Float[np.ndarray, "n h w d"]) -> Float[np.ndarray, "n d"]:
    """How much each descriptor is read, in the mean over the pixels; sums to 1."""
    return query_map.mean((1, 2))


def stage_figures(before: RGB, after: RGB, target: RGB | None, chosen: Int[np.ndarray, " n"]) -> dict[str, Any]:
    """How many pixels a stage has refined, and what became of the error at them.

    `worst_share` is the part of them that is among as many pixels of the largest error before; pixels drawn evenly
    would have it equal to `share`.
    """
    pixels = before.shape[0] * before.shape[1]
    found: dict[str, Any] = {"samples": len(chosen), "share": len(chosen) / pixels}
    if target is None:
        return found
    error = absolute_error(before, target).reshape(-1)
    worst = np.argpartition(-error, len(chosen) - 1)[: len(chosen)]

    def at_samples(values: np.ndarray) -> np.ndarray:
        return values.reshape(-1, 1, 3)[chosen]

    return found | {
        "worst_share": len(np.intersect1d(worst, chosen)) / len(chosen),
        "psnr_before": clipped_psnr(before, target),
        "psnr_after": clipped_psnr(after, target),
        "psnr_at_samples_before": clipped_psnr(at_samples(before), at_samples(target)),
        "psnr_at_samples_after": clipped_psnr(at_samples(after), at_samples(target)),
    }


def absolute_error(image: RGB, target: RGB) -> Float[np.ndarray, "h w"]:
    """Mean absolute difference of the channels of an image, clipped to [0, 1], from the target."""
    return np.abs(np.clip(image, 0, 1) - target).mean(-1)


def clipped_psnr(image: RGB, target: RGB) -> float | None:
    """PSNR in dB of an image, clipped to [0, 1] but not rounded; None for equal images."""
    value = psnr(np.clip(image, 0, 1), target, 1.0)
    # JSON has no infinity.
    return value if math.isfinite(value) else None
