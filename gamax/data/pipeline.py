"""The input pipeline on the host: random crops of stored images, batched as integers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import grain
import numpy as np

from gamax.console import say
from gamax.data.examples import Example
from gamax.errors import UserError


def training_batches(
    source: Sequence[Example],
    *,
    patch_size: int,
    batch_size: int,
    seed: int,
    threads: int,
    skip_corrupt: bool = False,
    pad: bool = False,
    first_sample: int = 0,
    rows: Sequence[int] | None = None,
) -> grain.DatasetIterator[dict[str, np.ndarray]]:
    """Iterates without end over batches of random crops, shuffled anew every epoch.

    Yields dictionaries with `target` and, for paired data, `input`: uint8 or uint16 `[len(rows), P, P, C]` with
    P = `patch_size`, the same window cut from both. Images must be at least `patch_size` wide and high, unless with
    `pad`, which mirrors smaller ones at their right and lower border.

    All crops of a training are one endless stream that depends on `seed` alone. Batches are cut from it behind the
    `first_sample` crops that have been seen, so training continues exactly after an interruption, with another batch
    size, or on another number of processes: each reads only its `rows`, the places in every batch that its devices
    hold (all of them by default). The number of threads changes nothing.

    An example that cannot be read raises `UserError`, which names its file, from `next`; with `skip_corrupt` the next
    one that can be read takes its place, which is said once.
    """
    if not source:
        raise UserError("there are no images to train on")
    keep_freed_memory()
    if skip_corrupt:
        source = _SkipCorrupt(source)
    # Without a number of epochs, grain overflows at a batch size of 1; a million million images are as good as no end.
    dataset = grain.MapDataset.source(source).seed(seed).shuffle().repeat(10**12 // len(source))
    # Cropped before dividing among processes: the window then depends on the position in the whole stream.
    stream = dataset.random_map(partial(_random_crop, patch_size=patch_size, pad=pad))
    share = _Share(stream, first_sample, batch_size, range(batch_size) if rows is None else rows)
    # Batched before threads come in: each of them makes whole batches, in an order that is given beforehand.
    dataset = grain.MapDataset.source(share).batch(len(share.rows))
    # As many batches ahead as threads: more would only take memory, at 6 MiB for 32 crops of 256.
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    return iter(dataset.to_iter_dataset(options))


def keep_freed_memory() -> None:
    """Lets the process keep up to 64 MiB of freed memory instead of returning it after every image.

    The C library of Linux returns large blocks at once, and getting them again as fresh pages takes longer than reading
    an image: a raw pair of 512x512 pixels is fetched in 0.5 ms instead of 3.9. Having freed one block of nearly 32 MiB,
    it takes that for a common size and raises its limits (`mallopt(3)`, M_MMAP_THRESHOLD). Elsewhere nothing happens.
    """
    bytearray(2**25 - 2**16)


def _random_crop(example: Example, rng: np.random.Generator, *, patch_size: int, pad: bool) -> dict[str, np.ndarray]:
    names = [name for name in ("input", "target") if name in example]
    height, width, _ = example[names[0]].shape
    missing = [(0, max(patch_size - side, 0)) for side in (height, width)]
    if pad and missing != [(0, 0), (0, 0)]:
        example = {**example, **{name: np.pad(example[name], (*missing, (0, 0)), "reflect") for name in names}}
        height, width, _ = example[names[0]].shape
    if min(height, width) < patch_size:
        raise UserError(f"'{example['name']}' is {width}x{height} pixels, less than the patch of {patch_size}")
    y = rng.integers(height - patch_size + 1)
    x = rng.integers(width - patch_size + 1)
    return {name: example[name][y : y + patch_size, x : x + patch_size] for name in names}


class _Share(Sequence[dict[str, np.ndarray]]):
    """The places `rows` of the batches that follow the first samples of a stream, one after the other."""

    def __init__(self, stream: grain.MapDataset[Any], first: int, batch_size: int, rows: Sequence[int]):
        self._stream, self._first, self._batch_size, self.rows = stream, first, batch_size, rows

    def __len__(self) -> int:
        return (len(self._stream) - self._first) // self._batch_size * len(self.rows)

    def __getitem__(self, index: int) -> Any:  # pyrefly: ignore[bad-override]
        batch, place = divmod(index, len(self.rows))
        return self._stream[self._first + batch * self._batch_size + self.rows[place]]


class _SkipCorrupt(Sequence[Example]):
    """Puts the next readable example in the place of one that cannot be read.

    So the order stays a function of the seed: the examples behind a damaged one keep their places.
    """

    def __init__(self, source: Sequence[Example]):
        self._source = source
        self._reported: set[int] = set()

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:  # pyrefly: ignore[bad-override]
        for position in (*range(index, len(self)), *range(index)):
            try:
                return self._source[position]
            except UserError as error:
                if position not in self._reported:
                    self._reported.add(position)
                    say(f"skipped: {error}")
        raise UserError("none of the training images can be read; prepare the set again")
