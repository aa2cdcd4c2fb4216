"""Restoring photographs from disk to disk."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from io import FileIO
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from gamax.console import progress_bar, say
from gamax.data.images import SUFFIXES, UNREAD_SUFFIXES, check_format, read_image, to_float
from gamax.data.metadata import ImageHeader, describe_losses, encode_with_metadata, read_header
from gamax.data.prior import check_prior_limit
from gamax.errors import USER_ERROR_EXIT_CODE, StoppedError, UserError, nearest
from gamax.evaluation.before_after import before_after
from gamax.evaluation.buckets import shape_buckets
from gamax.evaluation.network_inputs import (
    Progress,
    SamplePrior,
    check_inputs,
    in_kind_of,
    load_sampler,
    network_input,
    right_views,
)
from gamax.evaluation.restored_log import describe_source, is_finished, log_line, open_log, read_log
from gamax.evaluation.restorer import Restorer, compiled_programs, tile_fields
from gamax.evaluation.stream import restore_stream
from gamax.files import check_writable, lock, replace_atomically
from gamax.interop.weights import find_weights, sha256
from gamax.pretrained import PRETRAINED, weights_for

LARGEST_WHOLE = 2**20
"""Pixels up to which `tile="auto"` restores an image whole."""
AUTO_TILE = 512

SAMPLING_SHARE = 0.95
"""Part of the progress of a photograph that stands for sampling its prior: some 80 passes of a larger network."""

TASK_LOCAL_WINDOWS: dict[str, int | None] = {
    "denoise": None,
    "deblur": 384,
    "defocus": None,
    "derain": None,
    "dehaze": None,
}
"""What the field does at test time, by task: the window of the test-time local conversion in pixels, or none.

That of 384 stands behind the published GoPro results of NAFNet (arXiv 2204.04676, 2112.04491).
"""


@dataclass(frozen=True)
class _Job:
    """An image to restore: from where, to where, and how."""

    source: Path
    right: Path | None
    """The right view, where the source is the left one of a dual-pixel camera."""
    target: Path
    picture: Path | None
    """Where a picture before and after goes."""
    header: ImageHeader
    restorer: Restorer
    sample_prior: SamplePrior | None
    """Makes the prior of the image, for a network that takes one."""
    shape: tuple[int, int]
    """Height and width that the image is padded to."""
    made_from: dict[str, Any]

    @property
    def size(self) -> tuple[int, int]:
        return self.header.height, self.header.width

    @property
    def pixels(self) -> int:
        return self.header.height * self.header.width


def restore_files(
    sources: Sequence[Path],
    output: Path | None,
    weights: Path | None = None,
    *,
    task: str | None = None,
    tile: str = "auto",
    overlap: int | None = None,
    sliding_window: str | None = None,
    local_window: int | None = None,
    self_ensemble: bool = False,
    dtype: str | None = None,
    rows: int = 1,
    prior: Path | None = None,
    windows_at_once: int = 8,
    right: Path | None = None,
    batch_size: int = 1,
    exact_sizes: bool = False,
    compare: bool = False,
    compare_tiling: bool = False,
    overwrite: bool = False,
) -> list[Path]:
    """Restores every source and returns the restored files, those that were there already included.

    Grey, alpha and 16 bits survive, and so do colour profiles and the camera's notes where the format has a place for
    them; turned photographs come out upright. Work on a folder that was interrupted goes on: `restored.jsonl` in it
    says what every file was made from, and a file that would become the same again is left as it is.

    Args:
        sources: image files; what cannot be restored is reported at the end and stops no other.
        output: a file for a single source, else a folder in which the names are kept; None writes NAME_restored
            beside a single source.
        weights: a run folder, a weight file, or the name of weights that come with gamax; None for those of the task.
        task: one of `TASK_LOCAL_WINDOWS`, for what the field does at test time; None means denoise where it chooses the
            weights.
        tile: `whole`, `auto` (tiles above `LARGEST_WHOLE` pixels, unless `rows` share them), or pixels a side.
        overlap: pixels that neighbouring tiles share; None for the default of `Restorer`.
        sliding_window: one of `SLIDING_WINDOWS`, instead of `tile` and `overlap`.
        local_window: window of the test-time local conversion in pixels, 0 for none; None leaves it to the task.
        self_ensemble: mean over the eight flips and turns of an image.
        dtype: that the network computes in, `float32` or `bfloat16`; None for that of its training.
        rows: devices that share the rows of an image.
        prior: for a network that takes a prior of the image, a folder of `gamax data prior`, whose model and settings
            are taken, or a run folder or weight file of a latent diffusion model.
        windows_at_once: windows of a prior that go through its model together on each device; fewer take less memory.
        right: for a network that takes two views, the right view of the source; of several, the folder of the right
            views, which have the same names, or names that end in `_R` where those of the left ones end in `_L`.
        batch_size: images of one shape that go through the network together.
        exact_sizes: pad no image beyond what the network itself needs, however many programs that takes.
        compare: also write a picture before and after: NAME_compare.png, or `compare/NAME.png` in the folder.
        compare_tiling: print the largest difference between the tiled and the whole image, before rounding; not for
            networks that take a prior.
        overwrite: replace files that exist.

    Raises:
        UserError: before anything is written, if the arguments do not fit together or an output exists; at the end, if
            some of the sources could not be restored.
        StoppedError: if the disk is full.
    """
    if not sources:
        raise UserError("there is no image to restore: name files, folders or patterns")
    if tile not in ("auto", "whole") and not (tile.isascii() and tile.isdecimal()):
        raise UserError(f"--tile must be auto, whole or a number of pixels, not '{tile}'")
    if overlap is not None and (tile == "whole" or (tile == "auto" and rows > 1)):
        raise UserError("--overlap is for tiles, and there are none: leave it out, or choose --tile")
    if tile == "auto":
        side = AUTO_TILE if sliding_window is None and rows == 1 else None
    else:
        side = "whole" if tile == "whole" else int(tile)
    tiling = tile_fields(side, overlap, sliding_window)
    if batch_size < 1:
        raise UserError(f"--batch-size must be 1 or more, not {batch_size}")
    if prior is not None and batch_size > 1:
        raise UserError("--batch-size does not go with --prior, which is sampled for one image after the other")
    if prior is not None and compare_tiling:
        raise UserError("--compare-tiling does not go with --prior, which would be sampled twice: leave it out")
    rights = right_views(sources, right)
    targets = _targets(sources, output)
    folder = None if output is None or targets == [output] else output
    pictures = _pictures(targets, folder) if compare else [None] * len(targets)
    inputs = [*sources, *(view for view in rights if isinstance(view, Path))]
    _check_outputs(inputs, targets, pictures, folder, overwrite)
    weights = _choose_weights(weights, task)
    whole = _load_restorer(weights, task, local_window, dtype=dtype, self_ensemble=self_ensemble, rows=rows)
    check_inputs(weights, whole.model, prior, right)
    sample_prior, prior_settings = None, None
    if prior is not None:
        sample_prior, prior_settings = load_sampler(prior, windows_at_once)
        check_prior_limit(whole.model, prior_settings, prior)
    tiled = replace(whole, **tiling)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        headers = list(pool.map(_try_header, sources))
    problems: dict[Path, UserError] = {}
    files, restorers = [], []
    for source, view, target, picture, header in zip(sources, rights, targets, pictures, headers, strict=True):
        if isinstance(header, UserError):
            problems[source] = header
            continue
        if isinstance(view, UserError):
            problems[source] = view
            continue
        size = (header.height, header.width)
        small = tile == "auto" and sliding_window is None and header.height * header.width <= LARGEST_WHOLE
        files.append((source, view, target, picture, header))
        restorers.append(tiled if tiled.tiles(size) and not small else whole)
    jobs = _plan(files, restorers, sha256(find_weights(weights)), sample_prior, prior_settings, exact_sizes)

    folder = folder if jobs else None
    with lock(folder, wait=False) if folder else nullcontext():
        finished = _find_finished(jobs, folder, overwrite)
        to_do = [job for job in jobs if job.target not in finished]
        problems |= _restore_all(to_do, folder, batch_size)
    restored = [job for job in jobs if job.source not in problems]
    for sentence in _losses(restored):
        say(sentence)
    _report_tiling(restored, compare_tiling)
    written = [job.target for job in restored if job.target not in finished]
    if written:
        say(f"wrote {len(written)} image(s), {written[0]}{' and on' if len(written) > 1 else ''}")
    _report_problems(sources, problems)
    return [job.target for job in restored]


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


def _pictures(targets: Sequence[Path], folder: Path | None) -> list[Path | None]:
    """The file for the picture before and after of every target."""
    if folder is None:
        return [target.with_name(f"{target.stem}_compare.png") for target in targets]
    stems = [target.stem for target in targets]
    unique = len(set(stems)) == len(stems)
    return [folder / "compare" / f"{target.stem if unique else target.name}.png" for target in targets]


def _check_outputs(
    sources: Sequence[Path],
    targets: Sequence[Path],
    pictures: Sequence[Path | None],
    folder: Path | None,
    overwrite: bool,
) -> None:
    """Raises `UserError` if files would be lost or cannot be written; what a folder holds is a matter of its log."""
    existing = [] if folder else [path for path in (*targets, *pictures) if path and path.exists()]
    if existing and not overwrite:
        raise UserError(f"'{existing[0]}' exists already; choose another --output or add --overwrite")
    # After an interruption restored images would be taken for sources and restored again.
    if folder and folder.resolve() in {source.parent.resolve() for source in sources}:
        raise UserError(f"'{folder}' holds the images to restore; choose another folder with --output")
    for parent in {target.parent for target in targets}:
        check_writable(parent)


def _choose_weights(weights: Path | None, task: str | None) -> Path:
    """The weights that were named, or those that come with gamax for the task, of which it says what they are."""
    # What was named may be a path, too, and a path counts more; what gamax itself chooses is not looked for elsewhere.
    if weights is not None and (weights.exists() or str(weights) not in PRETRAINED):
        return weights
    shipped = weights_for(task or "denoise") if weights is None else PRETRAINED[str(weights)]
    if task not in (None, shipped.task):
        raise UserError(f"weights {shipped.name} are for {shipped.task}, not {task}: leave out --weights or --task")
    say(f"weights {shipped.name}: {shipped.summary}; {shipped.licence}")
    return shipped.path


def _load_restorer(weights: Path, task: str | None, local_window: int | None, **options: Any) -> Restorer:
    """The network, for whole images, as the arguments and the task want it; says what the task has chosen."""
    if task is not None and task not in TASK_LOCAL_WINDOWS:
        raise UserError(f"unknown task {nearest(task, TASK_LOCAL_WINDOWS)}")
    restorer = Restorer.from_weights(weights, local_window=local_window, **options)
    if task is None or local_window is not None:
        return restorer
    window = TASK_LOCAL_WINDOWS[task]
    if window is None:
        say(f"task {task}: nothing beyond the network itself, as is usual for it")
        return restorer
    try:
        restorer = Restorer.from_weights(weights, local_window=window, **options)
    except UserError as error:
        say(f"task {task}: without the usual test-time local conversion, as this network has none ({error})")
        return restorer
    say(f"task {task}: test-time local conversion with means over {window} pixels (--local-window 0 turns it off)")
    return restorer


def _try_header(source: Path) -> ImageHeader | UserError:
    try:
        if source.suffix.lower() in UNREAD_SUFFIXES and source.exists():
            kind = source.suffix[1:].upper()
            raise UserError(f"'{source}' is {kind}, a format that gamax does not read; convert it to PNG, JPEG or TIFF")
        header = read_header(source)
        if min(header.height, header.width) < 2:
            raise UserError(f"'{source}' has {header.width}x{header.height} pixels; sides need 2 or more")
    except UserError as error:
        return error
    return header


def _plan(
    files: Sequence[tuple[Path, Path | None, Path, Path | None, ImageHeader]],
    restorers: Sequence[Restorer],
    weights_sha256: str,
    sample_prior: SamplePrior | None,
    prior_settings: dict[str, Any] | None,
    exact_sizes: bool,
) -> list[_Job]:
    """The jobs for each file's source, right view, target, picture and header, with few shapes for those kept whole."""
    shapes = [(header.height, header.width) for *_, header in files]
    pooled = [index for index, shape in enumerate(shapes) if not restorers[index].tiles(shape)]
    if pooled and not exact_sizes:
        sizes = [shapes[index] for index in pooled]
        buckets = shape_buckets(sizes, [restorers[0].padded_size(size) for size in sizes])
        for index, bucket in zip(pooled, buckets, strict=True):
            shapes[index] = bucket
    jobs = []
    for (source, right, target, picture, header), restorer, shape in zip(files, restorers, shapes, strict=True):
        # Not the bucket itself: the network's own padding changes nothing, and more images may join a folder.
        settings = {**restorer.settings(), "padded_to": list(restorer.padded_size(shape))}
        if prior_settings is not None:
            settings["prior"] = prior_settings
        made_from = describe_source(source, weights_sha256, settings, right)
        jobs.append(_Job(source, right, target, picture, header, restorer, sample_prior, shape, made_from))
    return jobs


def _find_finished(jobs: Sequence[_Job], folder: Path | None, overwrite: bool) -> set[Path]:
    """The targets that need not be written again; raises `UserError` if others exist and may not be replaced."""
    if folder is None:
        return set()
    log = read_log(folder)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        same = pool.map(lambda job: is_finished(log, job.made_from, job.target), jobs)
        ours = {job.target for job, is_ours in zip(jobs, same, strict=True) if is_ours}
    others = [job.target for job in jobs if job.target not in ours and job.target.exists()]
    if others and not overwrite:
        count = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise UserError(
            f"'{others[0]}'{count} exists already and was made from something else or in another way; choose another "
            "--output, or add --overwrite, which makes only these again"
        )
    finished = {job.target for job in jobs if job.target in ours and (job.picture is None or job.picture.exists())}
    if finished:
        say(f"{len(finished)} of {len(jobs)} are restored already")
    return finished


def _restore_all(jobs: Sequence[_Job], folder: Path | None, batch_size: int) -> dict[Path, UserError]:
    """Restores and writes; returns what went wrong, by source."""
    problems: dict[Path, UserError] = {}
    writable = []
    for job in jobs:
        if job.target.exists() and not job.target.stat().st_mode & 0o222:
            problems[job.source] = UserError(f"'{job.target}' is write-protected; make it writable or remove it")
        else:
            writable.append(job)
    if not writable:
        return problems
    before = compiled_programs()
    megapixels = sum(job.pixels for job in writable) / 1e6
    steps = ceil(megapixels)
    fractions = {job.target: 0.0 for job in writable}
    count, done = 0, 0.0
    with (
        open_log(folder) if folder else nullcontext() as log,
        # Pixels, not images: among images of several sizes only their rate is steady.
        progress_bar("restoring", steps, "megapixels", units_per_step=megapixels / steps) as update,
    ):

        def advance(job: _Job, fraction: float) -> None:
            nonlocal done
            done += (fraction - fractions[job.target]) * job.pixels / 1e6 / megapixels
            fractions[job.target] = fraction
            # All is done when the last file is written, not when its last tile is restored.
            part = 1.0 if count == len(writable) else min(done, 0.999)
            sampling = job.sample_prior is not None and fraction < SAMPLING_SHARE
            name = f"the prior of {job.source.name}" if sampling else job.source.name
            update(part * steps, f"{count} of {len(writable)} images, {name}")

        if writable[0].sample_prior is not None:
            results = _restore_with_priors(writable, log, advance)
        else:
            results = _restore_in_streams(writable, batch_size, log, advance)
        for job, problem in results:
            count += 1
            advance(job, 1.0)
            if problem is not None:
                problems[job.source] = problem
    _report_programs(writable, compiled_programs() - before)
    return problems


def _restore_with_priors(
    jobs: Sequence[_Job], log: FileIO | None, advance: Callable[[_Job, float], None]
) -> Iterator[tuple[_Job, UserError | None]]:
    """Restores and writes one job after the other; yields each with what went wrong."""
    # One after the other: beside sampling, reading and writing take no time that could be saved.
    for job in sorted(jobs, key=_sampling_order):
        try:
            _restore_with_prior(job, log, partial(advance, job))
        except UserError as error:
            yield job, error
        else:
            yield job, None


def _sampling_order(job: _Job) -> tuple[int, int]:
    """Sorts the largest padded size first, where memory would be short, and equal ones together."""
    window = job.made_from["settings"]["prior"]["window"]
    height, width = (side + -side % window for side in job.size)
    return -height * width, height


def _restore_with_prior(job: _Job, log: FileIO | None, progress: Progress) -> None:
    """Samples the prior of an image, restores the image and writes it."""
    given, image = _load(job, lambda fraction: progress(SAMPLING_SHARE * fraction))
    if job.restorer.tiles(job.size):
        restored = job.restorer(given, lambda fraction: progress(SAMPLING_SHARE + (1 - SAMPLING_SHARE) * fraction))
    else:
        (restored,) = job.restorer.start([given], job.shape)()
    _write(job, image, restored, log)


def _restore_in_streams(
    jobs: Sequence[_Job], batch_size: int, log: FileIO | None, advance: Callable[[_Job, float], None]
) -> Iterator[tuple[_Job, UserError | None]]:
    """Restores and writes the jobs of one restorer after those of another; yields each with what went wrong."""
    for restorer in {id(job.restorer): job.restorer for job in jobs}.values():
        group = [job for job in jobs if job.restorer is restorer]
        yield from _restore_stream(group, batch_size, log, advance)


def _restore_stream(
    jobs: Sequence[_Job], batch_size: int, log: FileIO | None, advance: Callable[[_Job, float], None]
) -> Iterator[tuple[_Job, UserError | None]]:
    """Restores and writes the jobs of one restorer, in any order; yields each with what went wrong."""

    def finish(index: int, image: np.ndarray, restored: np.ndarray) -> None:
        _write(jobs[index], image, restored, log)

    results = restore_stream(
        jobs[0].restorer,
        [job.shape for job in jobs],
        lambda index: _load(jobs[index]),
        finish,
        batch_size=batch_size,
        progress=lambda index, fraction: advance(jobs[index], fraction),
    )
    for index, problem in results:
        yield jobs[index], problem


def _load(job: _Job, progress: Progress = lambda fraction: None) -> tuple[np.ndarray, np.ndarray]:
    """What the network is given, and the image as it is; `progress` is that of sampling a prior."""
    image = read_image(job.source)
    check_format(job.target, image)
    if image.shape[:2] != job.size:
        height, width = job.size
        raise UserError(
            f"'{job.source}' says that it has {width}x{height} pixels and has {image.shape[1]}x{image.shape[0]}; copy "
            "it again or remove it"
        )
    if job.header.alpha != (image.shape[2] == 4):
        raise UserError(f"'{job.source}' holds transparency of a kind that is not read; save it with an alpha channel")
    model, gray = job.restorer.model, job.header.gray
    return network_input(image, model, gray, job.right, job.sample_prior, progress), image


def _write(job: _Job, image: np.ndarray, restored: np.ndarray, log: FileIO | None) -> None:
    """Encodes the restored image with the alpha of the other and writes it, and the picture of both."""
    restored = in_kind_of(image, restored, job.header.gray)
    if image.shape[2] == 4:
        restored = np.concatenate([np.broadcast_to(restored, (*job.size, 3)), image[:, :, 3:]], axis=2)
    try:
        content = encode_with_metadata(restored, job.target.suffix, job.header)
    except UserError as error:
        raise UserError(f"cannot write '{job.target}': {error}") from error
    try:
        job.target.parent.mkdir(parents=True, exist_ok=True)
        if job.picture is not None:
            # With the profile, or it would show other colours than the photograph.
            picture = encode_with_metadata(before_after(image, restored), ".png", replace(job.header, exif=None))
            job.picture.parent.mkdir(exist_ok=True)
            replace_atomically(job.picture, picture)
        if log is not None:
            line = log_line(job.made_from, job.target, hashlib.sha256(content).hexdigest()).encode() + b"\n"
            if log.write(line) < len(line):
                raise OSError(errno.ENOSPC, "the last line is cut short")
        replace_atomically(job.target, content)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoppedError(
                f"error: the disk of '{job.target.parent}' is full; make room, and the same command goes on",
                USER_ERROR_EXIT_CODE,
            ) from error
        raise UserError(f"cannot write '{job.target}' ({error.strerror})") from error


def _report_programs(jobs: Sequence[_Job], programs: int) -> None:
    sizes = {job.size for job in jobs}
    say(f"{len(sizes)} size(s) of images, {programs} program(s) compiled for them")
    padded = sum(job.made_from["settings"]["padded_to"] != list(job.restorer.padded_size(job.size)) for job in jobs)
    if padded:
        say(
            f"{padded} image(s) were padded by more than the network needs, which changes them a little; --exact-sizes "
            "compiles a program for every size instead"
        )


def _losses(jobs: Sequence[_Job]) -> list[str]:
    """What the restored files miss of their sources, a sentence for each kind."""
    by_kind: dict[str, list[str]] = {}
    for job in jobs:
        channels = 1 if job.header.gray and not job.header.alpha else 3
        for loss in describe_losses(channels, job.target.suffix, job.header):
            by_kind.setdefault(loss, []).append(job.source.name)
    return [
        f"not kept of '{names[0]}'{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {loss}"
        for loss, names in by_kind.items()
    ]


def _report_tiling(jobs: Sequence[_Job], compare: bool) -> None:
    tiled = [job for job in jobs if job.restorer.tiles(job.size)]
    if not tiled:
        return
    restorer = tiled[0].restorer
    note = (
        f"{len(tiled)} image(s) restored in tiles of {restorer.tile} pixels, overlap {restorer.settings()['overlap']}"
    )
    if restorer.blending == "mean":
        note += ", averaged with equal weights"
    if restorer.model.global_statistics:
        note += "; this network looks over all it is given, here each tile (--tile whole gives its exact result)"
    say(note)
    for job in tiled if compare else ():
        # Before rounding, which would turn the smallest difference into a whole grey level.
        image = to_float(_load(job)[0])
        difference = 255 * np.abs(restorer(image) - replace(restorer, tile=None, overlap=None)(image))
        say(
            f"'{job.source.name}': largest difference from whole {difference.max():.4f} of 255, "
            f"mean {difference.mean():.6f}"
        )


def _report_problems(sources: Sequence[Path], problems: Mapping[Path, UserError]) -> None:
    """Raises `UserError` if there are any."""
    if not problems:
        return
    if len(sources) == 1:
        raise UserError(f"'{sources[0]}' was not restored: {problems[sources[0]]}") from problems[sources[0]]
    for source in sources:
        if source in problems:
            say(f"not restored: {problems[source]}")
    raise UserError(f"{len(problems)} of {len(sources)} images could not be restored, listed above")
