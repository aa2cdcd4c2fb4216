"""Restoring photographs from disk to disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from gamax.console import progress_bar, say
from gamax.data.images import SUFFIXES, check_format, read_image, to_float, to_rgb, write_image
from gamax.errors import UserError
from gamax.evaluation.restorer import Restorer
from gamax.files import check_writable
from gamax.interop.weights import load_weights

LARGEST_WHOLE = 2**20
"""Pixels up to which `tile="auto"` restores an image whole."""
AUTO_TILE = 512


def restore_files(
    sources: Sequence[Path],
    output: Path | None,
    weights: Path,
    *,
    tile: str = "auto",
    overlap: int | None = None,
    compare_tiling: bool = False,
    overwrite: bool = False,
) -> list[Path]:
    """Restores every source and returns the files written.

    Args:
        sources: image files; grey, alpha and 16 bits survive.
        output: a file for a single source, else a folder in which the names are kept; None writes NAME_restored
            beside a single source.
        weights: a run folder or a weight file.
        tile: `whole`, `auto`, or pixels a side.
        overlap: pixels that neighbouring tiles share; None for the default of `Restorer`.
        compare_tiling: print the largest difference between the tiled and the whole image, before rounding.
        overwrite: replace files that exist.

    Raises:
        UserError: before anything is written, if the arguments do not fit together or an output exists; at the end, if
            some of several sources could not be restored.
    """
    if not sources:
        raise UserError("there is no image to restore: name files, folders or patterns")
    targets = _targets(sources, output)
    existing = [target for target in targets if target.exists()]
    if existing and not overwrite:
        raise UserError(f"'{existing[0]}' exists already; choose another --output or add --overwrite")
    for folder in {target.parent for target in targets}:
        check_writable(folder)
    if tile not in ("auto", "whole") and not (tile.isascii() and tile.isdecimal()):
        raise UserError(f"--tile must be auto, whole or a number of pixels, not '{tile}'")
    model, params = load_weights(weights)
    whole = Restorer(model, params)
    tiled = None if tile == "whole" else Restorer(model, params, AUTO_TILE if tile == "auto" else int(tile), overlap)

    problems, written = [], []
    with progress_bar("restoring", len(sources), "images") as update:
        for index, (source, target) in enumerate(zip(sources, targets, strict=True)):

            def advance(part: float, index: int = index, name: str = source.name) -> None:
                update(index + part, name)

            try:
                image = read_image(source)
                check_format(target, image)
                small = tile == "auto" and image.shape[0] * image.shape[1] <= LARGEST_WHOLE
                restorer = whole if tiled is None or small else tiled
                restored = _restore(restorer, image, advance)
                target.parent.mkdir(parents=True, exist_ok=True)
                write_image(target, restored)
            except UserError as error:
                if len(sources) == 1:
                    raise UserError(f"'{source}' was not restored: {error}") from error
                problems.append(f"{source}: {error}")
                advance(1.0)
                continue
            written.append(target)
            if _has_colour_profile(source):
                say(f"the colour profile of '{source.name}' was not kept: its colours may look different")
            if restorer.tile is not None and max(image.shape[:2]) > restorer.tile:
                _report_tiling(restorer, image, compare_tiling)
    for problem in problems:
        say(f"not restored: {problem}")
    if problems:
        raise UserError(f"{len(problems)} of {len(sources)} images could not be restored, listed above")
    say(f"wrote {len(written)} image(s), {written[0]}{' and on' if len(written) > 1 else ''}")
    return written


def _targets(sources: Sequence[Path], output: Path | None) -> list[Path]:
    """The file to write for every source."""
    is_file = output is not None and output.suffix.lower() in SUFFIXES and not output.is_dir()
    if len(sources) == 1 and output is None:
        return [sources[0].with_name(f"{sources[0].stem}_restored{sources[0].suffix}")]
    if len(sources) == 1 and output is not None and is_file:
        return [output]
    if output is None or is_file:
        raise UserError(f"there are {len(sources)} images to restore: name a folder for them with --output")
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"two images are called '{twice}' and would overwrite each other in '{output}'")
    return [output / name for name in names]


def _restore(restorer: Restorer, image: np.ndarray, progress: Callable[[float], object]) -> np.ndarray:
    """Restores the colours of an image and gives it its own channels back: grey stays grey, alpha is kept."""
    restored = restorer(to_rgb(image), progress)
    if image.shape[2] == 1:
        return np.rint(restored.mean(2, keepdims=True)).astype(image.dtype)
    if image.shape[2] == 4:
        return np.concatenate([restored, image[:, :, 3:]], axis=2)
    return restored


def _has_colour_profile(path: Path) -> bool:
    """Whether a JPEG, PNG or WebP file says how its colours are to be understood."""
    with path.open("rb") as file:
        start = file.read(2**16)
    return any(mark in start for mark in (b"ICC_PROFILE\0", b"iCCP", b"ICCP"))


def _report_tiling(tiled: Restorer, image: np.ndarray, compare: bool) -> None:
    note = f"restored in tiles of {tiled.tile} pixels, overlap {tiled.settings()['overlap']}"
    if tiled.model.global_statistics:
        note += "; this network looks over all it is given, here each tile (--tile whole gives its exact result)"
    if compare:
        # Before rounding, which would turn the smallest difference into a whole grey level.
        colours = to_float(to_rgb(image))
        difference = 255 * np.abs(tiled(colours) - Restorer(tiled.model, tiled.params)(colours))
        note += f"; largest difference from whole {difference.max():.4f} of 255, mean {difference.mean():.6f}"
    say(note)
