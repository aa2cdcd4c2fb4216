"""The pictures of `gamax lab explain`."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize, to_rgb
from matplotlib.figure import Figure

from gamax.lab.explain import RGB, Seen, absolute_error, clipped_psnr, coverage, sample_errors, sampled, usage

MODULES_SHOWN = 4
KEYS_SHOWN = 3
PANEL = 3.0
"""Inches of the longer side of a panel."""
SAMPLED, MARK = "#D55E00", "#56B4E9"
OUTLIERS = (0.1, 99.9)
"""Percentiles between which a map goes through its colours."""

Place = tuple[int, int]
"""Row and column in the image."""


def draw(seen: Seen, image: RGB, target: RGB | None, place: Place, *, one_place: bool) -> dict[str, bytes]:
    """The PNG files, by their names, of what there is to show; modules that see the whole image, not its patches.

    Args:
        seen: what the network did.
        image: what it was given.
        target: what it should have made of that.
        place: the pixel that is looked at.
        one_place: show the filters at this pixel alone, not at a grid of nine.

    """
    whole = {path: maps for path, maps in seen.modules.items() if next(iter(maps.values())).shape[0] == 1}
    attentions = _spread({path: maps for path, maps in whole.items() if "key_map" in maps})
    filters = _spread({path: maps for path, maps in whole.items() if "offsets" in maps})
    drawn = {}
    if attentions:
        drawn["attention.png"] = attention_figure(attentions, image, place)
    if filters:
        drawn["filters.png"] = filters_figure(filters, image, [place] if one_place else _grid_of_places(image))
    if seen.chosen:
        drawn["samples.png"] = samples_figure(seen, image)
    drawn["levels.png"] = levels_figure(seen, image, target, place)
    if target is not None:
        drawn["error.png"] = error_figure(seen, image, target)
    return {name: _png(figure) for name, figure in drawn.items()}


def attention_figure(modules: Mapping[str, Mapping[str, np.ndarray]], image: RGB, place: Place) -> Figure:
    """A row for each attention: what it keeps, its most read key maps, and what the marked pixel reads.

    Args:
        modules: by path, `mask`, `key_map` and `query_map` of a batch of one.
        image: what the network was given.
        place: the marked pixel.

    """
    figure, rows = _panels(len(modules), KEYS_SHOWN + 3, image)
    figure.suptitle("Global attention; weights of positions in multiples of equal attention", fontsize=9)
    for axes, (path, maps) in zip(rows, modules.items(), strict=True):
        key_map, query_map = maps["key_map"][0], maps["query_map"][0]
        positions = key_map.shape[0] * key_map.shape[1]
        _show(axes[0], image, f"{path}\n{query_map.shape[1]}x{query_map.shape[0]}")
        axes[0].plot(place[1], place[0], "+", color=MARK, ms=12, mew=2)
        _heat(figure, axes[1], maps["mask"][0, ..., 0], "mask: what it keeps", image)
        used, covered = usage(query_map[None])[0], coverage(key_map[None])[0]
        for axis, key in zip(axes[2:-1], np.argsort(-used), strict=False):
            title = f"key map {key}: read by {used[key]:.0%},\ncovers {covered[key]:.1%}"
            _heat(figure, axis, key_map[..., key] * positions, title, image)
        for axis in axes[2 + len(used) : -1]:
            axis.axis("off")
        row, column = (place[axis] * query_map.shape[axis] // image.shape[axis] for axis in (0, 1))
        _heat(figure, axes[-1], key_map @ query_map[row, column] * positions, "what the marked\npixel reads", image)
        axes[-1].plot(place[1], place[0], "+", color=MARK, ms=12, mew=2)
    return figure


def filters_figure(modules: Mapping[str, Mapping[str, np.ndarray]], image: RGB, places: list[Place]) -> Figure:
    """A row for each filter: where it samples at these places, how far its taps move, and what share it has.

    Args:
        modules: by path, `offsets` and `modulation`, and `fusion` where there is one, of a batch of one.
        image: what the network was given.
        places: one, or a square number of them row by row.

    """
    figure, rows = _panels(len(modules), 4 if any("fusion" in maps for maps in modules.values()) else 3, image)
    figure.suptitle("Pixel-dependent filters; crosses: the taps of an ordinary convolution", fontsize=9)
    for axes, (path, maps) in zip(rows, modules.items(), strict=True):
        lengths = np.linalg.norm(maps["offsets"][0], axis=-1).mean(-1)
        _show(axes[0], image, f"{path}\n{lengths.shape[1]}x{lengths.shape[0]}, the places shown")
        axes[0].plot([column for _, column in places], [row for row, _ in places], "+", color=MARK, ms=8, mew=1.5)
        _draw_taps(figure, axes[1], maps, image, places)
        norm = Normalize(0, max(float(lengths.max()), 0.1))
        _heat(figure, axes[2], lengths, "mean length of the offsets,\npixels of this resolution", image, norm=norm)
        if "fusion" in maps:
            _heat(
                figure, axes[3], maps["fusion"][0, ..., 0], "weight of the attention,\nthe rest is the filter's", image
            )
        elif len(axes) == 4:
            axes[3].axis("off")
    return figure


def samples_figure(seen: Seen, image: RGB) -> Figure:
    """A row for each stage of the sampling: the chosen pixels over the photograph, and the policy's probabilities."""
    figure, rows = _panels(len(seen.chosen), 2, image, scale=1.6)
    figure.suptitle("Adaptive sampling: the pixels that each stage refines", fontsize=9)
    # Gray and dark, so that the colour stands out.
    dark = np.repeat(0.6 * image.mean(-1, keepdims=True), 3, -1)
    for stage, (axes, logits, chosen) in enumerate(zip(rows, seen.logits, seen.chosen, strict=True), 1):
        mask = sampled([chosen], (image.shape[0], image.shape[1]))
        shown = np.where(mask[..., None], to_rgb(SAMPLED), dark)
        _show(axes[0], shown, f"stage {stage}: {len(chosen):,} pixels, {mask.mean():.1%}")
        likely = np.exp(logits - logits.max(), dtype=np.float64)
        # Less than that of even is as good as never.
        likely = np.maximum(likely / likely.mean(), 1e-4)
        _heat(figure, axes[1], likely, "probability in the policy, multiples of even", image, norm=LogNorm())
    return figure


def levels_figure(seen: Seen, image: RGB, target: RGB | None, place: Place) -> Figure:
    """The input, every output from coarse to fine and the target; below, a quarter of each side around the place."""
    images = [image, *seen.outputs, *([] if target is None else [target])]
    stages = len(seen.chosen)
    levels = len(seen.outputs) - stages
    made = [f"output {index} of {levels}" if levels > 1 else "restored" for index in range(1, levels + 1)]
    titles = ["input", *made, *(f"stage {index} of {stages}" for index in range(1, stages + 1)), "target"]
    if target is not None:
        for index, shown in enumerate(images[:-1]):
            psnr = clipped_psnr(shown, target)
            titles[index] += ", equal" if psnr is None else f", {psnr:.2f} dB"
    figure, rows = _panels(2, len(images), image)
    figure.suptitle("From the input to the result", fontsize=9)
    height, width = (max(1, side // 4) for side in image.shape[:2])
    top = min(max(place[0] - height // 2, 0), image.shape[0] - height)
    left = min(max(place[1] - width // 2, 0), image.shape[1] - width)
    for axes, shown, title in zip(rows.T, images, titles, strict=False):
        _show(axes[0], shown, title)
        _show(axes[1], shown[top : top + height, left : left + width], "", interpolation="nearest")
    return figure


def error_figure(seen: Seen, image: RGB, target: RGB) -> Figure:
    """The absolute errors of the input and of the result, and by how much they differ, in gray levels of 255."""
    before, after = (255 * absolute_error(shown, target) for shown in (image, seen.outputs[-1]))
    figure, rows = _panels(1, 3, image, scale=1.5)
    text = "Absolute error, mean of the channels, in gray levels of 255"
    if seen.chosen:
        errors = sample_errors(seen, image, target)
        for part, error in errors["input"].items():
            text += f"\n{part.replace('_', ' ')}: {255 * error:.2f} before, {255 * errors['restored'][part]:.2f} after"
    figure.suptitle(text, fontsize=9)
    # One scale for both; single pixels may exceed it.
    limit = max(float(np.percentile(before, 99.5)), float(np.percentile(after, 99.5)), 1e-6)
    _heat(figure, rows[0, 0], before, f"input: {before.mean():.2f}", image, norm=Normalize(0, limit))
    _heat(figure, rows[0, 1], after, f"restored: {after.mean():.2f}", image, norm=Normalize(0, limit))
    change = before - after
    _heat(figure, rows[0, 2], change, f"smaller by: {change.mean():.2f}", image, "PuOr", Normalize(-limit, limit))
    return figure


def tap_positions(offsets: Float[np.ndarray, "h w taps 2"], place: Place, scale: float) -> Float[np.ndarray, "taps 2"]:
    """Row and column in the image at which each tap of a filter samples for the pixel of the features at a place.

    Args:
        offsets: in pixels of the features, (dy, dx).
        place: row and column of that pixel in the features.
        scale: pixels of the image in one of the features, along a side.

    """
    size = math.isqrt(offsets.shape[2])
    taps = np.stack(np.divmod(np.arange(size * size), size), -1) - size // 2
    # The middle of a pixel of the features is the middle of the pixels that it stands for.
    return (np.array(place) + taps + offsets[place] + 0.5) * scale - 0.5


def _draw_taps(figure: Figure, axes: Axes, maps: Mapping[str, np.ndarray], image: RGB, places: list[Place]) -> None:
    """Enlarged crops around the places, side by side, with the taps in the colour of their modulation."""
    offsets, modulation = maps["offsets"][0], maps["modulation"][0]
    scale = image.shape[0] / offsets.shape[0]
    reach = math.isqrt(offsets.shape[2]) // 2 + math.ceil(np.abs(offsets).max()) + 1
    radius = math.ceil(scale * reach)
    columns, side = math.isqrt(len(places)), 2 * radius + 1
    padded = np.pad(image, ((radius, radius), (radius, radius), (0, 0)), "edge")
    mosaic = np.ones((columns * (side + 1) - 1, columns * (side + 1) - 1, 3), np.float32)
    moved, fixed, weights = [], [], []
    for index, place in enumerate(places):
        corner = np.array(divmod(index, columns)) * (side + 1)
        crop = padded[place[0] : place[0] + side, place[1] : place[1] + side]
        mosaic[corner[0] : corner[0] + side, corner[1] : corner[1] + side] = crop
        pixel = (int(place[0] / scale), int(place[1] / scale))
        shift = corner + radius - np.array(place)
        moved.append(tap_positions(offsets, pixel, scale) + shift)
        fixed.append(tap_positions(np.zeros_like(offsets), pixel, scale) + shift)
        weights.append(modulation[pixel])
    # Pale, so that the points stand out.
    _show(axes, 0.5 + 0.5 * mosaic, "where the taps sample;\ncolour: their modulation", interpolation="nearest")
    crosses, points = np.concatenate(fixed), np.concatenate(moved)
    size = 40 / columns
    axes.scatter(crosses[:, 1], crosses[:, 0], size / 2, "black", marker="x", linewidths=0.4)
    drawn = axes.scatter(points[:, 1], points[:, 0], size, np.concatenate(weights), cmap="viridis", linewidths=0)
    figure.colorbar(drawn, ax=axes, shrink=0.8, pad=0.02).ax.tick_params(which="both", labelsize=6)


def _spread(modules: dict[str, dict[str, np.ndarray]]) -> dict[str, dict[str, np.ndarray]]:
    """A few of the modules from the first to the last that runs."""
    paths = list(modules)
    picked = np.linspace(0, len(paths) - 1, min(len(paths), MODULES_SHOWN)).round().astype(int)
    return {paths[index]: modules[paths[index]] for index in picked}


def _grid_of_places(image: RGB) -> list[Place]:
    height, width = image.shape[:2]
    return [(height * row // 6, width * column // 6) for row in (1, 3, 5) for column in (1, 3, 5)]


def _panels(rows: int, columns: int, image: RGB, scale: float = 1.0) -> tuple[Figure, np.ndarray]:
    """A figure and its axes `[rows, columns]`, each panel in the shape of the image."""
    height, width = (scale * PANEL * side / max(image.shape[:2]) for side in image.shape[:2])
    # Beside a panel is a colour bar, above it a title.
    figure = Figure((columns * (width + 0.5), rows * (height + 0.45) + 0.5), dpi=110, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _show(axes: Axes, image: np.ndarray, title: str, interpolation: str | None = None) -> None:
    axes.imshow(np.clip(image, 0, 1), interpolation=interpolation)
    axes.set_title(title, fontsize=7)
    axes.set(xticks=[], yticks=[])


def _heat(
    figure: Figure,
    axes: Axes,
    values: np.ndarray,
    title: str,
    image: RGB,
    cmap: str = "magma",
    norm: Normalize | None = None,
) -> None:
    """A map in colours over the area of the image, whatever its own resolution."""
    extent = (-0.5, image.shape[1] - 0.5, image.shape[0] - 0.5, -0.5)
    norm = norm or Normalize()
    if not norm.scaled():
        norm.vmin, norm.vmax = map(float, np.percentile(values, OUTLIERS))
    drawn = axes.imshow(values, extent=extent, cmap=cmap, norm=norm)
    axes.set_title(title, fontsize=7)
    axes.set(xticks=[], yticks=[])
    figure.colorbar(drawn, ax=axes, shrink=0.8, pad=0.02).ax.tick_params(which="both", labelsize=6)


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()
