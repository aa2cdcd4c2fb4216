"""Examples in plain folders: a target, with or without its input, before anything is prepared."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from gamax.data.images import check_unique_stems, list_images, pair_images, read_image, to_rgb
from gamax.errors import UserError

T = TypeVar("T")


Example = dict[str, Any]
"""`name` (text), `target` and, for paired data, `input`: uint8 or uint16 images `[H, W, 3]`."""


@dataclass(frozen=True)
class ExampleFiles:
    """Where the images of an example are; `input` is None when only a clean image exists."""

    name: str
    target: Path
    input: Path | None = None


@dataclass(frozen=True)
class ExampleFacts:
    """What reading the images of an example has shown; `bit_depth` is 8 or 16."""

    height: int
    width: int
    bit_depth: int


def list_examples(folder: str | Path, paired: bool) -> list[ExampleFiles]:
    """Lists the examples in `folder`: its images, or the pairs in its `input/` and `target/`, in natural order.

    Raises `UserError` when the folder is missing or empty, a partner is missing, or two examples have the same name.
    """
    if paired:
        return [ExampleFiles(target.stem, target, source) for source, target in pair_images(folder)]
    images = list_images(folder)
    check_unique_stems(images)
    return [ExampleFiles(path.stem, path) for path in images]


def read_example(files: ExampleFiles) -> Example:
    """Reads the images of an example and turns them into RGB; `UserError` when one cannot be read."""
    images = {"target": files.target} if files.input is None else {"input": files.input, "target": files.target}
    return {"name": files.name, **{key: to_rgb(read_image(path)) for key, path in images.items()}}


def inspect_examples(examples: Sequence[ExampleFiles]) -> Iterator[tuple[ExampleFiles, ExampleFacts | UserError]]:
    """Reads every image once, with one thread a processor, and yields its facts or what is wrong with it, in order."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        futures = [pool.submit(_inspect, files) for files in examples]
        try:
            for files, future in track(zip(examples, futures, strict=True), "Checking images", len(examples)):
                yield files, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _inspect(files: ExampleFiles) -> ExampleFacts | UserError:
    try:
        example = read_example(files)
    except UserError as error:
        return error
    target = example["target"]
    height, width, _ = target.shape
    if "input" in example:
        source = example["input"]
        if source.shape != target.shape:
            sizes = f"{source.shape[1]}x{source.shape[0]} and {width}x{height}"
            return UserError(f"'{files.input}' and '{files.target}' differ in size ({sizes} pixels)")
        if source.dtype != target.dtype:
            return UserError(f"'{files.input}' and '{files.target}' differ in bit depth; convert one of them")
    return ExampleFacts(height, width, 8 * target.dtype.itemsize)


def track(items: Iterable[T], description: str, total: int) -> Iterable[T]:
    """Shows a progress bar on stderr while `items` are consumed, if someone is there to see it."""
    if not sys.stderr.isatty():
        return items
    from rich.console import Console
    from rich.progress import track as rich_track

    return rich_track(items, description, total, console=Console(stderr=True), transient=True)
