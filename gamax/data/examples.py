"""Examples before anything is prepared: where their images are and what reading them shows."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from gamax.console import progress_bar
from gamax.data.images import check_unique_stems, list_images, pair_images, read_image, to_gray, to_rgb
from gamax.errors import UserError

T = TypeVar("T")


Example = dict[str, Any]
"""`name` (text), `target` and `input`, or only one of them: uint8 or uint16 images `[H, W, C]`.

Clean photographs have a `target` only, noisy ones whose clean side is kept secret an `input` only. C is 3, or 1 in sets
that are gray; the `input` of a dual-pixel camera has both its views, left and right, in 6 channels. Where there is a
diffusion prior, the `input` has 16 bits, and 3 channels more at its end.
"""

DUAL_PIXEL = ("input_left", "input_right")
"""The names under which the two views of a dual-pixel camera are stored; an `Example` has them as one `input`."""

PRIOR = "prior"
"""The name under which a diffusion prior is stored; an `Example` has it at the end of its `input`."""


@dataclass(frozen=True, eq=False)
class ImageFile:
    """An image of an example: a whole file, or what `read` makes of one (a half, a variable of a MATLAB file)."""

    path: Path
    read: Callable[[Path], np.ndarray] = read_image
    """Returns uint8 or uint16 `[H, W, C]`; raises `UserError` with one sentence that names the file."""


@dataclass(frozen=True, eq=False)
class ExampleFiles:
    """Where the images of an example are, under the keys `target`, `input` or those of `DUAL_PIXEL`, and `PRIOR`."""

    name: str
    images: Mapping[str, ImageFile]

    @property
    def path(self) -> Path:
        """The file that stands for the example in messages."""
        return (self.images.get("target") or next(iter(self.images.values()))).path


@dataclass(frozen=True)
class ExampleFacts:
    """What reading the images of an example has shown."""

    height: int
    width: int
    bit_depth: int
    """8 or 16; a prior, which always has 16, does not count."""
    psnr_input: float | None
    """PSNR of the input against the target in dB, peak 255 or 65535; None where there are not both."""


def clean(path: Path, name: str | None = None) -> ExampleFiles:
    """A clean image; its name is that of the file without suffix unless given."""
    return ExampleFiles(name or path.stem, {"target": ImageFile(path)})


def pair(input_path: Path, target_path: Path, name: str | None = None) -> ExampleFiles:
    """A degraded and a clean image; the name is that of the input without suffix unless given."""
    return ExampleFiles(name or input_path.stem, {"input": ImageFile(input_path), "target": ImageFile(target_path)})


def list_examples(folder: str | Path, paired: bool) -> list[ExampleFiles]:
    """Lists the examples in `folder`: its images, or the pairs in its `input/` and `target/`, in natural order.

    Raises `UserError` when the folder is missing or empty, a partner is missing, or two examples have the same name.
    """
    if paired:
        return [pair(source, target) for source, target in pair_images(folder)]
    images = list_images(folder)
    check_unique_stems(images)
    return [clean(path) for path in images]


def read_images(files: ExampleFiles, channels: int = 3) -> dict[str, np.ndarray]:
    """Reads the images of an example as gray (`channels` 1) or RGB (3), a prior as it is.

    Raises `UserError` when one cannot be read.
    """
    convert = to_gray if channels == 1 else to_rgb
    images = {key: image.read(image.path) for key, image in files.images.items()}
    return {key: image if key == PRIOR else convert(image) for key, image in images.items()}


def read_example(files: ExampleFiles, channels: int = 3) -> Example:
    """Reads an example; `UserError` when one of its images cannot be read, or what is one input differs in size."""
    images = read_images(files, channels)
    inputs = {key: image for key, image in images.items() if key != "target"}
    if inputs:
        check_agreement(files, inputs)
    return join_views({"name": files.name, **images})


def join_views(example: Example) -> Example:
    """Puts the views of a dual-pixel camera and a prior, as far as there are any, into one `input`.

    Beside a prior, 8-bit views become 16-bit ones that stand for the same values.
    """
    keys = [key for key in ("input", *DUAL_PIXEL, PRIOR) if key in example]
    if len(keys) < 2:
        return example
    parts = [example.pop(key) for key in keys]
    if keys[-1] == PRIOR:
        parts = [part * np.uint16(257) if part.dtype == np.uint8 else part for part in parts]
    return {**example, "input": np.concatenate(parts, axis=-1)}


def takes_prior(model: Any) -> bool:
    """Whether a network is given a diffusion prior behind its input; it says so in its field `prior`."""
    return getattr(model, "prior", False)


def takes_right_view_first(model: Any) -> bool:
    """Whether a network of two views wants the right one before the left one, as Swintormer does."""
    return getattr(model, "view_order", "left-right") == "right-left"


def order_views(images: Any, model: Any) -> Any:
    """Puts the `input` of examples, `[..., C]` of NumPy or JAX, into the order in which a network takes its channels.

    Examples have the left view first. A prior stays at the end.
    """
    channels = images.shape[-1]
    if channels != 6 + 3 * takes_prior(model) or not takes_right_view_first(model):
        return images
    return images[..., np.array([3, 4, 5, 0, 1, 2, *range(6, channels)])]


def examine(
    examples: Sequence[ExampleFiles], look: Callable[[ExampleFiles], T], description: str = ""
) -> Generator[tuple[ExampleFiles, T | UserError]]:
    """Applies `look` to every example, with one thread a processor, and yields what it returns or raises, in order.

    Shows progress if there is a `description`. Whoever stops before the end must close the generator, or the threads go
    on reading.
    """

    def attempt(files: ExampleFiles) -> T | UserError:
        try:
            return look(files)
        except UserError as error:
            return error

    bar = progress_bar(description, len(examples), "images") if description else nullcontext(lambda _: None)
    with ThreadPoolExecutor(os.cpu_count()) as pool, bar as update:
        futures = [pool.submit(attempt, files) for files in examples]
        try:
            for index, (files, future) in enumerate(zip(examples, futures, strict=True)):
                yield files, future.result()
                update(index + 1)
        finally:
            pool.shutdown(cancel_futures=True)


def inspect_examples(
    examples: Sequence[ExampleFiles], channels: int = 3, description: str = ""
) -> Generator[tuple[ExampleFiles, ExampleFacts | UserError]]:
    """Reads every image once and yields its facts or what is wrong with it, in order; see `examine`."""
    return examine(examples, partial(_inspect, channels=channels), description)


def _inspect(files: ExampleFiles, channels: int) -> ExampleFacts:
    images = read_images(files, channels)
    check_agreement(files, images)
    height, width, _ = next(iter(images.values())).shape
    return ExampleFacts(height, width, bit_depth(images), psnr_input(images))


def check_agreement(files: ExampleFiles, images: Mapping[str, np.ndarray]) -> None:
    """Raises `UserError` if the images of an example, as `read_images` has read them, do not belong together.

    They must have one size and, but for a prior, one bit depth.
    """
    first_key, *other_keys = images
    first = images[first_key]
    for key in other_keys:
        # Two parts of one file differ in no name.
        names = " and ".join(dict.fromkeys(f"'{files.images[name].path}'" for name in (first_key, key)))
        sizes = [f"{image.shape[1]}x{image.shape[0]}" for image in (first, images[key])]
        if sizes[0] != sizes[1]:
            remedy = "make the prior again" if key == PRIOR else "cut both to the same window"
            raise UserError(f"{names} differ in size ({' and '.join(sizes)} pixels); {remedy}")
        if key != PRIOR and first.dtype != images[key].dtype:
            raise UserError(f"{names} differ in bit depth; convert one of them")


def bit_depth(images: Mapping[str, np.ndarray]) -> int:
    """8 or 16, that of the first of the images."""
    return 8 * next(iter(images.values())).dtype.itemsize


def psnr_input(images: Mapping[str, np.ndarray]) -> float | None:
    """PSNR of the input against the target in dB, peak 255 or 65535; of two views the mean; None without both.

    Infinite if they are equal.
    """
    import cv2

    target = images.get("target")
    inputs = [image for key, image in images.items() if key not in ("target", PRIOR)]
    if target is None or not inputs:
        return None
    if all(np.array_equal(image, target) for image in inputs):
        return float("inf")
    return float(np.mean([cv2.PSNR(image, target, float(np.iinfo(target.dtype).max)) for image in inputs]))
