"""Scoring a network under a protocol."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gamax import hosts
from gamax.data.examples import Example, order_views, takes_prior, takes_right_view_first
from gamax.data.images import to_float, to_integers, to_rgb
from gamax.errors import UserError
from gamax.evaluation.alignment import MASKED_METRICS, align
from gamax.evaluation.buckets import shape_buckets
from gamax.evaluation.metrics import METRICS, PLANES, SMALLEST_SIDE
from gamax.evaluation.pictures import Comparison
from gamax.evaluation.protocols import Protocol, Score, protocol_example
from gamax.evaluation.restorer import Restorer, compiled_programs
from gamax.evaluation.stream import restore_stream

PICTURED = 3
"""How many images are kept for the comparison sheet: those restored worst."""
LONGEST_TABLE = 40
"""Images up to which the table has a row for each; of more it shows the worst ten."""
SHOWN_OF_MORE = 10
HEADINGS = {
    **{"name": "image", "psnr_input": "input PSNR", "psnr": "PSNR", "ssim": "SSIM", "mae": "MAE"},
    **{"psnr_y": "PSNR of luma", "ssim_y": "SSIM of luma"},
}
STREAMED = 20
"""Restored images without targets that are held at once: the crops of one photograph of DND."""

Metric = Callable[[np.ndarray, np.ndarray], float]
"""Of the restored image and the target, float32 RGB `[H, W, 3]` in [0, 1]; gray ones are repeated."""


@dataclass(frozen=True)
class Evaluation:
    """The outcome: means over the images, a row for each, and the images with the lowest PSNR."""

    protocol: Protocol
    inference: dict[str, Any]
    """The settings of the restorer, and what else the result depends on."""
    rows: list[dict[str, Any]]
    """`name`, `height`, `width`, `psnr_input` and the scores of every image; `set` where the protocol has several,
    `scene` where several images show one, `padded_to` where an image was padded more than the network pads it."""
    worst: list[Comparison]
    sizes: int
    """Different sizes of images."""
    programs: int
    """That the first process has compiled for them."""
    extra_metrics: tuple[str, ...] = ()

    def mean(self, metric: str) -> float:
        """Mean of `psnr_input` or a score, as the protocol averages."""
        if "over sets" in self.protocol.averaging:
            return float(np.mean([_mean(rows, metric) for rows in self._by_set().values()]))
        return _mean(self.rows, metric)

    def means(self) -> dict[str, float]:
        """The means of all scores, by name; the PSNR of the input is not one."""
        return {metric: self.mean(metric) for metric in self._metrics()[1:]}

    def record(self) -> dict[str, Any]:
        """What result files hold: the whole protocol, the means and the rows, ready for JSON."""
        metrics = self._metrics()
        sets = {
            name: {"images": len(rows), **{metric: _finite(_mean(rows, metric)) for metric in metrics}}
            for name, rows in self._by_set().items()
            if name is not None
        }
        return {
            "protocol": self.protocol.name,
            "protocol_details": dataclasses.asdict(self.protocol),
            "inference": self.inference,
            "images": len(self.rows),
            **{metric: _finite(self.mean(metric)) for metric in metrics},
            **({"sets": sets} if sets else {}),
            **({"extra_metrics": list(self.extra_metrics)} if self.extra_metrics else {}),
            "sizes": self.sizes,
            "programs": self.programs,
            "per_image": [{name: _finite(value) for name, value in row.items()} for row in self.rows],
        }

    def table(self) -> list[dict[str, str]]:
        """The rows, the means of several sets and the mean of all as text, for printing."""
        rows = self.rows
        shown = sorted(rows, key=_psnr)[:SHOWN_OF_MORE] if len(rows) > LONGEST_TABLE else rows
        lines = [{"name": _full_name(row), **{metric: row[metric] for metric in self._metrics()}} for row in shown]
        sets = self._by_set()
        if len(sets) > 1:
            for name, part in sets.items():
                means = {metric: _mean(part, metric) for metric in self._metrics()}
                lines.append({"name": f"mean of {name} ({len(part)})", **means})
        over_sets = len(sets) > 1 and "over sets" in self.protocol.averaging
        name = f"mean of {len(sets)} sets" if over_sets else f"mean of {len(rows)}"
        name += f"; above, the worst {len(shown)} of {len(rows)}" if len(shown) < len(rows) else ""
        lines.append({"name": name, **{metric: self.mean(metric) for metric in self._metrics()}})
        return [{HEADINGS.get(key, key): _cell(key, value) for key, value in line.items()} for line in lines]

    def _metrics(self) -> list[str]:
        return ["psnr_input", *(score.name for score in self.protocol.scores), *self.extra_metrics]

    def _by_set(self) -> dict[str | None, list[dict[str, Any]]]:
        sets: dict[str | None, list[dict[str, Any]]] = {}
        for row in self.rows:
            sets.setdefault(row.get("set"), []).append(row)
        return sets


def _mean(rows: Sequence[Mapping[str, Any]], metric: str) -> float:
    return float(np.mean([row[metric] for row in rows]))


def _psnr(scores: Mapping[str, Any]) -> float:
    return scores["psnr"]


def _finite(value: Any) -> Any:
    """JSON has no infinity; null is the PSNR of equal images."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _full_name(row: Mapping[str, Any]) -> str:
    """The name of an image, with that of its set, as two sets may have images of one name."""
    return f"{row['set']}/{row['name']}" if "set" in row else row["name"]


def _cell(key: str, value: Any) -> str:
    return value if isinstance(value, str) else f"{value:.2f}" if key.startswith("psnr") else f"{value:.4f}"


def evaluate(
    restorer: Restorer,
    examples: Sequence[Example],
    protocol: Protocol,
    sizes: Sequence[tuple[int, int]] | None = None,
    progress: Callable[[int], object] = lambda done: None,
    *,
    batch_size: int = 1,
    exact_sizes: bool = False,
    extra_metrics: Mapping[str, Metric] | None = None,
) -> Evaluation:
    """Restores every example as the protocol says and scores it on the host in float64.

    While the device computes, the next images are read and the last ones scored. Several processes share the images;
    each returns all rows, and the first one the pictures.

    Args:
        restorer: the network, in the mode to be judged.
        examples: a sequence that loads each image when it is asked for.
        protocol: the rules.
        sizes: what `check_examples` has returned; None to read every image once more for it.
        progress: called with the number of finished images after each.
        batch_size: images of one shape that the network is given together.
        exact_sizes: compile a program for every size of image, however many there are; otherwise some are padded, and
            `inference` says how many by more than the network pads them itself.
        extra_metrics: what is computed beyond the protocol, by name.

    Raises:
        UserError: if there are no examples, one does not fit the protocol, or an output is not finite.
    """
    check_scored(protocol)
    check_network(protocol, restorer.model)
    sizes = sizes or _sizes(restorer.model, protocol, examples, lambda done: None)
    shapes = _padded_shapes(restorer, sizes, exact_sizes)
    metrics = extra_metrics or {}
    load, finish = partial(_load, restorer.model, protocol, examples), partial(_score, protocol, metrics)
    compiled_before = compiled_programs()

    def scored(indices: Sequence[int]) -> Generator[tuple[int, dict[str, Any], Comparison]]:
        stream = restore_stream(
            restorer,
            [shapes[index] for index in indices],
            lambda position: load(indices[position]),
            lambda _, example, restored: finish(example, restored),
            batch_size=batch_size,
        )
        for position, result in stream:
            if isinstance(result, UserError):
                raise result
            yield indices[position], *result

    rows: list[dict[str, Any]] = []
    pictures: dict[int, Comparison] = {}
    own = range(jax.process_index(), len(examples), jax.process_count())
    with closing(scored(own)) as results:
        for done, (index, row, picture) in enumerate(results, 1):
            rows.append({"index": index, **row})
            pictures[index] = picture
            kept = sorted(pictures, key=lambda index: (_psnr(pictures[index].scores), index))[:PICTURED]
            pictures = {index: pictures[index] for index in kept}
            progress(min(done * jax.process_count(), len(examples)))
    programs = compiled_programs() - compiled_before
    further = {index for index in own if np.any(np.array(shapes[index]) > restorer.padded_size(sizes[index]))}
    rows = [{**row, "padded_to": shapes[row["index"]]} if row["index"] in further else row for row in rows]
    rows = sorted(hosts.gather_records(rows), key=lambda row: row["index"])
    worst = [row["index"] for row in sorted(rows, key=_psnr)[:PICTURED]]
    missing = [index for index in worst if index not in pictures]
    if missing and hosts.is_first():
        # Those that other processes have scored.
        pictures |= {index: picture for index, _, picture in scored(missing)}
    return Evaluation(
        protocol,
        {
            **restorer.settings(),
            "channels": _describe_channels(protocol, restorer.model),
            "batch_size": batch_size,
            "padded_further": sum("padded_to" in row for row in rows),
        },
        [{name: value for name, value in row.items() if name != "index"} for row in rows],
        [pictures[index] for index in worst if index in pictures],
        len(set(sizes)),
        programs,
        tuple(metrics),
    )


def evaluate_function(
    restore: Callable[[np.ndarray], np.ndarray],
    examples: Sequence[Example],
    protocol: Protocol,
    inference: Mapping[str, Any],
    progress: Callable[[int], object] = lambda done: None,
) -> Evaluation:
    """Scores what is no network of gamax, such as a filter of another library, exactly as `evaluate` scores one.

    Args:
        restore: of an image float32 `[H, W, C]`, white at 1, noise neither clipped nor rounded, to one of its shape.
        examples: a sequence that loads each image when it is asked for.
        protocol: the rules, without a local window or two views.
        inference: what the result depends on beyond the protocol, ready for JSON.
        progress: called with the number of finished images after each.

    Raises:
        UserError: if there are no examples, one does not fit the protocol, the protocol is for networks alone, or a
            result is not finite.
    """
    check_scored(protocol)
    if protocol.views == 2 or isinstance(protocol.local_window, int):
        raise UserError(f"protocol {protocol.name} is for networks alone; choose another")
    if not examples:
        raise UserError("there is no image to evaluate on")
    rows: list[dict[str, Any]] = []
    worst: list[Comparison] = []
    for done in range(1, len(examples) + 1):
        example = protocol_example(protocol, examples[done - 1])
        row, picture = _score(protocol, {}, example, restore(_unit(example["input"])))
        rows.append(row)
        worst = sorted([*worst, picture], key=lambda picture: _psnr(picture.scores))[:PICTURED]
        progress(done)
    sizes = {(row["height"], row["width"]) for row in rows}
    return Evaluation(protocol, dict(inference), rows, worst, sizes=len(sizes), programs=0)


def restore_inputs(
    restorer: Restorer,
    examples: Sequence[Example],
    protocol: Protocol,
    sizes: Sequence[tuple[int, int]],
    progress: Callable[[int], object] = lambda done: None,
    *,
    batch_size: int = 1,
) -> Iterator[tuple[str, np.ndarray]]:
    """Restores examples that have no target; yields name and float32 image `[H, W, C]`, clamped, in their order.

    The other arguments are those of `evaluate`.

    Raises:
        UserError: as `evaluate` does.
    """
    check_network(protocol, restorer.model)
    shapes = _padded_shapes(restorer, sizes, exact_sizes=False)
    for start in range(0, len(examples), STREAMED):
        part = range(start, min(start + STREAMED, len(examples)))
        stream = restore_stream(
            restorer,
            [shapes[index] for index in part],
            lambda position, part=part: _load(restorer.model, protocol, examples, part[position]),
            lambda _, example, restored: (example["name"], _delivered(protocol, example["name"], restored)),
            batch_size=batch_size,
        )
        for _, result in sorted(stream, key=lambda found: found[0]):
            if isinstance(result, UserError):
                raise result
            yield result
        progress(part.stop)


def check_examples(
    examples: Sequence[Example],
    protocol: Protocol,
    restorer: Restorer,
    progress: Callable[[int], object] = lambda done: None,
    *,
    exact_sizes: bool = False,
) -> list[tuple[int, int]]:
    """Reads every example once and tries the network on the largest shape, before any long work.

    Args:
        examples: a sequence that loads each image when it is asked for.
        protocol: the rules.
        restorer: the network; its parameters may be their shapes alone, as nothing is computed.
        progress: called with the number of images that have been read after each.
        exact_sizes: as `evaluate` will be given it.

    Returns:
        Height and width of every image as the network will be given it.

    Raises:
        UserError: if there is no example, one cannot be read or is too small, or the data, the network and the protocol
            do not fit together.
    """
    check_network(protocol, restorer.model)
    sizes = _sizes(restorer.model, protocol, examples, progress)
    shapes = _padded_shapes(restorer, sizes, exact_sizes)
    whole = [shape for size, shape in zip(sizes, shapes, strict=True) if not restorer.tiles(size)]
    if whole:
        largest = max(whole, key=math.prod)
        images = jax.ShapeDtypeStruct((1, *largest, restorer.model.input_channels), jnp.float32)
        jax.eval_shape(restorer.model.apply, {"params": restorer.params}, images)
    return sizes


def check_scored(protocol: Protocol) -> None:
    """Raises `UserError` if a protocol has no scores, only files for a server."""
    if not protocol.scores:
        raise UserError(f"protocol {protocol.name} scores nothing, it only writes files for a server; choose another")


def check_network(protocol: Protocol, model: nn.Module) -> None:
    """Raises `UserError` if a network cannot be judged under a protocol."""
    prior, name = takes_prior(model), type(model).__name__
    if prior and protocol.inputs == "noise":
        raise UserError(
            f"protocol {protocol.name} makes its inputs itself, and this {name} needs a diffusion prior of them; "
            "choose a protocol on pairs"
        )
    wanted, found = protocol.channels * protocol.views + 3 * prior, model.input_channels
    # An RGB network restores gray images, too.
    if found != wanted and (wanted, found) != (1, 3):
        raise UserError(
            f"protocol {protocol.name} is for networks that take {wanted} channels{' with a prior' if prior else ''}, "
            f"and this {name} takes {found}; choose another protocol"
        )
    window = getattr(model, "local_window", None)
    if protocol.local_window not in ("as the network has it", window):
        raise UserError(
            f"protocol {protocol.name} is for the network with local_window={protocol.local_window}, not {window}: "
            "eval.py makes it so; in training set it in model.overrides, or choose another protocol"
        )


def score_image(
    restored: np.ndarray, target: np.ndarray, scores: Sequence[Score], alignment: str = "none"
) -> dict[str, float]:
    """The scores of one image, by name.

    Args:
        restored: `[H, W, C]`, integers, or floats with white at 1; nothing is clamped or rounded here.
        target: the same of the target.
        scores: those of a protocol.
        alignment: that of the protocol.

    Raises:
        UserError: if the images must be aligned and cannot be.
    """
    if alignment == "ecc":
        aligned = align(_unit(restored), _unit(target))
        return {score.name: MASKED_METRICS[score.metric](aligned) for score in scores}
    return {
        score.name: METRICS[score.metric](_plane(score, restored), _plane(score, target), score.peak)
        for score in scores
    }


def _plane(score: Score, image: np.ndarray) -> np.ndarray:
    white = np.iinfo(image.dtype).max if np.issubdtype(image.dtype, np.integer) else 1
    inside = image[score.border : image.shape[0] - score.border, score.border : image.shape[1] - score.border]
    # Integers without a detour by float32.
    return PLANES[score.plane](inside / np.float64(white / score.peak), score.peak)


def _unit(image: np.ndarray) -> np.ndarray:
    """Float32 with white at 1."""
    return to_float(image) if np.issubdtype(image.dtype, np.integer) else image.astype(np.float32)


def _load(model: nn.Module, protocol: Protocol, examples: Sequence[Example], index: int) -> tuple[np.ndarray, Example]:
    example = protocol_example(protocol, examples[index], prior=takes_prior(model))
    return order_views(_unit(example["input"]), model), example


def _describe_channels(protocol: Protocol, model: nn.Module) -> str:
    views = _describe_views(protocol, model)
    return f"{views}, and a diffusion prior" if takes_prior(model) else views


def _describe_views(protocol: Protocol, model: nn.Module) -> str:
    if protocol.channels == 1 and model.input_channels == 3:
        return "gray, given three times, and the mean of the network's three outputs"
    if protocol.views == 2:
        return "right view, left view" if takes_right_view_first(model) else "left view, right view"
    return "gray" if protocol.channels == 1 else "RGB"


def _delivered(protocol: Protocol, name: str, output: np.ndarray) -> np.ndarray:
    """The restored image as it is scored: clamped, and rounded if the protocol says so."""
    if not np.isfinite(output).all():
        raise UserError(f"the network's output for '{name}' is not finite: its training has diverged")
    return to_integers(output) if protocol.quantization == "uint8" else np.clip(output, 0, 1)


def _score(
    protocol: Protocol, extra_metrics: Mapping[str, Metric], example: Example, output: np.ndarray
) -> tuple[dict[str, Any], Comparison]:
    name, degraded, target = example["name"], example["input"], example["target"]
    restored, rounded_target = _delivered(protocol, name, output), to_integers(to_float(target))
    if protocol.quantization == "uint8":
        target = rounded_target
    else:
        degraded, target = _unit(degraded), _unit(target)
    # The input is scored as the network gets it, unrounded and unclipped, without a prior; of two views the mean.
    views = np.split(degraded[..., : protocol.channels * protocol.views], protocol.views, axis=-1)
    try:
        psnrs = [score_image(view, target, protocol.scores[:1], protocol.alignment)["psnr"] for view in views]
        scores = score_image(restored, target, protocol.scores, protocol.alignment)
        in_colour = to_rgb(_unit(restored)), to_rgb(_unit(target))
        scores |= {key: float(metric(*in_colour)) for key, metric in extra_metrics.items()}
    except UserError as error:
        raise UserError(f"'{name}' cannot be scored: {error}") from error
    row = {
        "name": name,
        **({"set": example["set"]} if "set" in example else {}),
        **({"scene": example["scene"]} if "scene" in example else {}),
        "height": target.shape[0],
        "width": target.shape[1],
        "psnr_input": float(np.mean(psnrs)),
        **scores,
    }
    pictured = to_integers(_unit(views[0])), to_integers(_unit(restored)), rounded_target
    return row, Comparison(_full_name(row), *pictured, row["psnr_input"], scores)


def _sizes(
    model: nn.Module, protocol: Protocol, examples: Sequence[Example], progress: Callable[[int], object]
) -> list[tuple[int, int]]:
    """Reads every example for its height and width, and checks it."""
    if not examples:
        raise UserError("there is no image to evaluate on")
    sizes = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for size in pool.map(partial(_size, model, protocol, examples), range(len(examples))):
            sizes.append(size)
            progress(len(sizes))
    return sizes


def _size(model: nn.Module, protocol: Protocol, examples: Sequence[Example], index: int) -> tuple[int, int]:
    example = protocol_example(protocol, examples[index], prior=takes_prior(model))
    height, width = example["input"].shape[:2]
    needed = max((SMALLEST_SIDE[score.metric] + 2 * score.border for score in protocol.scores), default=1)
    if min(height, width) < needed:
        cut = f" after cutting to multiples of {protocol.crop_multiple}" if protocol.crop_multiple else ""
        raise UserError(
            f"'{example['name']}' has {width}x{height} pixels{cut}; SSIM needs at least {needed} a side, so remove it"
        )
    return height, width


def _padded_shapes(restorer: Restorer, sizes: Sequence[tuple[int, int]], exact_sizes: bool) -> list[tuple[int, int]]:
    """What every image is padded to; those that are restored in tiles stay as they are."""
    shapes = list(sizes)
    whole = [index for index, size in enumerate(sizes) if not restorer.tiles(size)]
    if not exact_sizes:
        pooled = [sizes[index] for index in whole]
        buckets = shape_buckets(pooled, [restorer.padded_size(size) for size in pooled])
        for index, shape in zip(whole, buckets, strict=True):
            shapes[index] = shape
    return shapes
