"""What can be wrong with a set of images, found by reading every image once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from gamax.data.examples import (
    ExampleFiles,
    bit_depth,
    check_agreement,
    examine,
    list_examples,
    pair,
    psnr_input,
    read_images,
)
from gamax.data.images import describe_unpaired, match_images, to_gray
from gamax.errors import UserError

SAME_PICTURE = 0.9
"""Correlation of two thumbnails from which on they show the same picture.

Measured on 400 photographs: saving as JPEG of quality 10, scaling by 0.25 to 1.07, noise of sigma 25 and blur of sigma
3 leave at least 0.957; of 20 million pairs of crops from different photographs one was above. A picture cut by 1 % is
never missed, one cut by 2 % in 19 of 100 cases, one cut by 4 % or flipped almost always.
"""

OTHER_PICTURE = 0.5
"""Correlation below which the input and the target of a pair are different pictures.

The lowest of 628 real pairs with noise, rain, haze or motion blur has 0.86; 99 % of wrong pairs are below 0.31.
"""

SHIFTED_PIXELS = 0.8
SHIFTED_DB = 0.15
MISALIGNED_DB = 0.3
"""A pair may be shifted when a shift of at least 0.8 pixels lowers what the target leaves unexplained by 0.15 dB, and
is misaligned from 0.3 dB on.

Of those 628 real pairs, and of 252 with noise of sigma 25 and 50 or blur and noise, none is taken for shifted; the
highest gain at such a shift is 0.09 dB, in motion blur. Moved by (2, -3) or (10, 4) pixels, all are misaligned; moved
by one pixel, 94 % of rain, 89 % of noise of sigma 50 and 68 % of haze are, but no motion blur.
"""

_THUMBNAIL = 24
_FLAT = 0.5
_ALIGNED_ON = 512
_LARGEST_SHIFT = 32
_BLOCK = 1024


@dataclass(frozen=True)
class PsnrRange:
    """PSNR of inputs against their targets in dB, pairs that are equal left out."""

    mean: float
    lowest: float
    lowest_name: str
    highest: float
    highest_name: str


@dataclass(frozen=True)
class SplitReport:
    """What one part of a set holds."""

    name: str
    """`train`, `test`, ...; empty for a folder without parts."""
    paired: bool
    num_examples: int
    """Images, or pairs."""
    num_published: int | None
    """How many the published set has; None where that is not known."""
    sizes: Mapping[tuple[int, int], int]
    """How many examples have each (height, width)."""
    bit_depths: Mapping[int, int]
    """How many examples have each bit depth."""
    psnr_input: PsnrRange | None
    """None where there are no pairs that differ."""


@dataclass(frozen=True)
class Report:
    """What `check_images` has found; every problem and note is one sentence that says what to do."""

    splits: tuple[SplitReport, ...]
    problems: tuple[str, ...]
    """What makes training or scores wrong."""
    notes: tuple[str, ...]
    """What may be intended."""


@dataclass(frozen=True)
class Shift:
    """Where the content of an input lies, seen from its target."""

    right: float
    """In pixels."""
    down: float
    """In pixels."""
    gain: float
    """By how many dB undoing the shift lowers the variance that one image leaves unexplained in the other."""


@dataclass(frozen=True)
class _Look:
    """What one reading of an example has shown."""

    height: int
    width: int
    bit_depth: int
    fingerprint: np.ndarray
    """The thumbnail of the target, else of the input."""
    psnr_input: float | None
    agreement: float | None
    """Correlation of the thumbnails of input and target; None without both, or when one of them is flat."""
    shift: Shift | None


def check_images(source: str | Path, dataset: str | None = None) -> Report:
    """Reads every image once and reports all that is wrong, not only the first thing.

    Args:
        source: a folder of images, or with `input/` and `target/`, or with `train/` and `test/` that hold either; or,
            with a dataset, the folder that holds its files as their authors distribute them.
        dataset: a name that `gamax data list` prints.

    Raises:
        UserError: when there is nothing to check: no folder, no images in it, no such dataset, or not its layout.
    """
    source = Path(source).expanduser()
    if dataset is None:
        splits, problems = _list_folder(source)
        channels, published = 3, {}
    else:
        from gamax.data.builders import find_builder

        builder = find_builder(dataset)
        splits, problems = builder.examples(source), []
        channels, published = builder.CHANNELS, builder.COUNTS
    flat = [(name, files) for name, examples in splits.items() for files in examples]
    looks: dict[str, list[tuple[ExampleFiles, _Look]]] = {name: [] for name in splits}
    examined = examine([files for _, files in flat], partial(_look, channels=channels), "checking")
    for (name, _), (files, found) in zip(flat, examined, strict=True):
        if isinstance(found, UserError):
            problems.append(str(found))
        else:
            looks[name].append((files, found))
    notes: list[str] = []
    for name, found in looks.items():
        problems += _pair_problems(found)
        notes += _pair_notes(name, found)
    problems += _mixed_depths(source, [look.bit_depth for found in looks.values() for _, look in found])
    problems += _shared_pictures(looks)
    for name, found in looks.items():
        notes += _repeated_pictures(name, found)
        wanted = published.get(name)
        if wanted is not None and wanted != len(splits[name]):
            notes.append(
                f"{name} has {len(splits[name]):,} examples, the published set {wanted:,}; complete it, or say so with "
                "every score"
            )
    reports = [_report(name, splits[name], published.get(name), looks[name]) for name in splits]
    return Report(tuple(reports), tuple(problems), tuple(notes))


def _list_folder(folder: Path) -> tuple[dict[str, list[ExampleFiles]], list[str]]:
    parts = {name: folder / name for name in ("train", "test") if (folder / name).is_dir()} or {"": folder}
    splits, problems = {}, []
    for name, part in parts.items():
        if not ((part / "input").is_dir() or (part / "target").is_dir()):
            splits[name] = list_examples(part, paired=False)
            continue
        pairs, unpaired = match_images(part)
        splits[name] = [pair(source, target) for source, target in pairs]
        if unpaired:
            problems.append(f"{describe_unpaired(part, unpaired)}; add the partner or remove the image")
    return splits, problems


def _look(files: ExampleFiles, channels: int) -> _Look:
    images = read_images(files, channels)
    check_agreement(files, images)
    height, width, _ = next(iter(images.values())).shape
    depth, psnr = bit_depth(images), psnr_input(images)
    grays = {key: _gray(image) for key, image in images.items()}
    if psnr is None:
        return _Look(height, width, depth, thumbnail(next(iter(grays.values()))), None, None, None)
    target = grays.pop("target")
    # Of the two views of a dual-pixel camera, the mean: their shifts from the target are opposite.
    gray = np.mean(list(grays.values()), axis=0)
    fingerprint, partner = thumbnail(target), thumbnail(gray)
    agreement = float(fingerprint @ partner) if fingerprint.any() and partner.any() else None
    shift = None if psnr == math.inf else find_shift(gray, target)
    return _Look(height, width, depth, fingerprint, psnr, agreement, shift)


def _gray(image: np.ndarray) -> np.ndarray:
    return to_gray(image)[..., 0].astype(np.float32) * np.float32(255 / np.iinfo(image.dtype).max)


def thumbnail(gray: np.ndarray) -> np.ndarray:
    """A float32 vector whose scalar product with that of another image is their correlation at 24x24 pixels.

    Only detail counts, since most photographs are bright above and dark below. `gray` is float32 `[H, W]` in [0, 255].
    The vector of an image without contrast at this size is 0.
    """
    import cv2

    small = cv2.resize(gray, (_THUMBNAIL, _THUMBNAIL), interpolation=cv2.INTER_AREA)
    detail = small - cv2.GaussianBlur(small, (0, 0), _THUMBNAIL / 8)
    detail -= detail.mean()
    norm = float(np.linalg.norm(detail))
    return np.zeros(detail.size, np.float32) if norm < _FLAT * _THUMBNAIL else detail.ravel() / norm


def find_shift(image: np.ndarray, target: np.ndarray) -> Shift | None:
    """Finds the shift up to 32 pixels between two gray images, float32 `[H, W]`; None for images without contrast.

    It is where the normalised cross-correlation of their centres is highest. Phase correlation, which weighs all
    frequencies alike, takes a third of real motion blurs for shifts; this takes one of 12, whose gain is small.
    """
    import cv2

    height, width = (min(side, _ALIGNED_ON) for side in target.shape)
    top, left = ((side - size) // 2 for side, size in zip(target.shape, (height, width), strict=True))
    margin = min(_LARGEST_SHIFT, height // 8, width // 8)
    if margin < 1:
        return None
    # Most of the noise lies at frequencies where photographs have next to nothing.
    image, target = (cv2.GaussianBlur(x[top : top + height, left : left + width], (0, 0), 1.0) for x in (image, target))
    inner = target[margin : height - margin, margin : width - margin]
    if min(image.std(), inner.std()) < _FLAT:
        return None
    scores = cv2.matchTemplate(image, inner, cv2.TM_CCOEFF_NORMED)
    y, x = map(int, np.unravel_index(np.argmax(scores), scores.shape))
    gain = _unexplained_db(float(scores[margin, margin])) - _unexplained_db(float(scores[y, x]))
    return Shift(x - margin + _vertex(scores[y], x), y - margin + _vertex(scores[:, x], y), gain)


def _unexplained_db(correlation: float) -> float:
    return 10 * math.log10(1 - max(correlation, 0.0) ** 2 + 1e-6)


def _vertex(scores: np.ndarray, index: int) -> float:
    """Offset of the vertex of the parabola through the highest score and its neighbours."""
    if not 0 < index < len(scores) - 1:
        return 0.0
    before, highest, after = map(float, scores[index - 1 : index + 2])
    curvature = before - 2 * highest + after
    return 0.5 * (before - after) / curvature if curvature < 0 else 0.0


def _is_other(look: _Look) -> bool:
    return look.agreement is not None and look.agreement < OTHER_PICTURE


def _is_shifted(look: _Look, gain: float) -> bool:
    shift = look.shift
    return (
        shift is not None
        and not _is_other(look)
        and max(abs(shift.right), abs(shift.down)) >= SHIFTED_PIXELS
        and shift.gain >= gain
    )


def _pair_problems(found: Sequence[tuple[ExampleFiles, _Look]]) -> Iterator[str]:
    for files, look in found:
        names = _pair_names(files)
        if _is_other(look):
            yield f"{names} show different pictures (correlation {look.agreement:.2f}); find the right partner"
        elif _is_shifted(look, MISALIGNED_DB):
            assert look.shift is not None
            yield f"{names} are misaligned ({_describe_shift(look.shift)}); align them or remove the pair"
    equal = [files for files, look in found if look.psnr_input == math.inf]
    if equal and len(equal) == len(found):
        yield f"{_pair_names(equal[0])} are equal, as are all pairs there; put the degraded images into the inputs"


def _pair_notes(split: str, found: Sequence[tuple[ExampleFiles, _Look]]) -> Iterator[str]:
    where = f"{split}: " if split else ""
    shifted = [
        f"{files.name} ({_describe_shift(look.shift)})"
        for files, look in found
        if look.shift is not None and _is_shifted(look, SHIFTED_DB) and not _is_shifted(look, MISALIGNED_DB)
    ]
    if shifted:
        yield f"{where}{len(shifted)} pairs may be shifted by a pixel or two; look at {_first(shifted)}"
    equal = [files.name for files, look in found if look.psnr_input == math.inf]
    if equal and len(equal) < len(found):
        yield f"{where}{len(equal)} pairs have an input equal to the target; look at {_first(equal)}"
    scores = [(look.psnr_input, files.name) for files, look in found if look.psnr_input is not None]
    middle = float(np.median([score for score, _ in scores])) if scores else 0.0
    poor = [f"{name} ({score:.1f} dB)" for score, name in sorted(scores) if score < min(8.0, middle - 6)]
    if poor:
        yield f"{where}{len(poor)} inputs are far worse than the median of {middle:.1f} dB; look at {_first(poor)}"


def _pair_names(files: ExampleFiles) -> str:
    return " and ".join(dict.fromkeys(f"'{image.path}'" for image in files.images.values()))


def _describe_shift(shift: Shift) -> str:
    right = f"{abs(shift.right):.1f} pixels {'right' if shift.right > 0 else 'left'}"
    down = f"{abs(shift.down):.1f} {'down' if shift.down > 0 else 'up'}"
    return f"the input lies {right} and {down}"


def _first(names: Sequence[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def _mixed_depths(source: Path, depths: Sequence[int]) -> Iterator[str]:
    counts = Counter(depths)
    if len(counts) > 1:
        listed = " and ".join(f"{count} of {depth} bits" for depth, count in sorted(counts.items()))
        yield f"'{source}' mixes bit depths ({listed}); convert one kind to train on it"


def _shared_pictures(looks: Mapping[str, Sequence[tuple[ExampleFiles, _Look]]]) -> Iterator[str]:
    train = looks.get("train", ())
    for split, others in looks.items():
        if split == "train":
            continue
        for index, partner, score in _matches(_fingerprints(train), _fingerprints(others)):
            yield (
                f"'{train[index][0].path}' of train shows the same picture as '{others[partner][0].path}' of {split} "
                f"(correlation {score:.3f}); remove it from train"
            )


def _repeated_pictures(split: str, found: Sequence[tuple[ExampleFiles, _Look]]) -> Iterator[str]:
    # One clean file may serve several inputs, and one file may hold several pictures.
    unique = list({(files.path, look.fingerprint.tobytes()): (files, look) for files, look in found}.values())
    prints = _fingerprints(unique)
    repeats = [
        f"{unique[index][0].name} ({unique[partner][0].name})"
        for index, partner, _ in _matches(prints, prints, earlier=True)
    ]
    if repeats:
        where = f"{split}: " if split else ""
        yield (
            f"{where}{len(repeats)} of {len(unique)} pictures repeat an earlier one; keep such together when you split "
            f"off images for validation: {_first(repeats)}"
        )


def _fingerprints(found: Sequence[tuple[ExampleFiles, _Look]]) -> np.ndarray:
    return np.stack([look.fingerprint for _, look in found]) if found else np.zeros((0, _THUMBNAIL**2), np.float32)


def _matches(prints: np.ndarray, others: np.ndarray, earlier: bool = False) -> Iterator[tuple[int, int, float]]:
    """Yields the rows of `prints` that match one of `others`, the row of the best match there, and its correlation.

    With `earlier` only among the rows before. In blocks: all correlations of 13,000 images would take 700 MB.
    """
    if not len(others):
        return
    for start in range(0, len(prints), _BLOCK):
        scores = prints[start : start + _BLOCK] @ others.T
        if earlier:
            scores[np.arange(len(others)) >= start + np.arange(len(scores))[:, None]] = 0
        best = scores.argmax(axis=1)
        for row in np.flatnonzero(scores.max(axis=1) >= SAME_PICTURE):
            yield start + int(row), int(best[row]), float(scores[row, best[row]])


def _report(
    name: str, examples: Sequence[ExampleFiles], published: int | None, found: Sequence[tuple[ExampleFiles, _Look]]
) -> SplitReport:
    scores = [
        (look.psnr_input, files.name)
        for files, look in found
        if look.psnr_input is not None and look.psnr_input != math.inf
    ]
    psnr = None
    if scores:
        (lowest, lowest_name), (highest, highest_name) = min(scores), max(scores)
        psnr = PsnrRange(float(np.mean([score for score, _ in scores])), lowest, lowest_name, highest, highest_name)
    return SplitReport(
        name=name,
        paired=any(len(files.images) > 1 for files in examples),
        num_examples=len(examples),
        num_published=published,
        sizes=dict(Counter((look.height, look.width) for _, look in found)),
        bit_depths=dict(Counter(look.bit_depth for _, look in found)),
        psnr_input=psnr,
    )
