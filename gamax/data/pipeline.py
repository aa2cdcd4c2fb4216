"""The input pipeline on the host: random crops of stored images, batched as integers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import grain
import numpy as np

from gamax.data.examples import Example


def training_batches(
    source: Sequence[Example],
    *,
    patch_size: int,
    batch_size: int,
    seed: int,
    threads: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator[dict[str, np.ndarray]]:
    """Iterates without end over batches of random crops, shuffled anew every epoch.

    Yields dictionaries with `target` and, for paired data, `input`: uint8 or uint16 `[batch_size, P, P, 3]` with
    P = `patch_size`, the same window cut from both. `batch_size` is that of one process; all processes together read
    every image once an epoch, and exactly what a single process with the whole batch would read.

    The batches depend on `seed` alone, not on the number of threads. `get_state()` returns a dictionary that JSON can
    hold, with the number of batches already yielded; after `set_state(state)` an iterator continues behind them. Images
    must be at least `patch_size` wide and high.
    """
    dataset = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
    # Cropped before dividing among processes: the window then depends on the position in the whole stream.
    dataset = dataset.random_map(partial(_random_crop, patch_size=patch_size))
    # Batched before threads come in: each of them makes whole batches, in an order that is given beforehand.
    dataset = dataset[process_index::process_count].batch(batch_size)
    # As many batches ahead as threads: more would only take memory, at 6 MiB for 32 crops of 256.
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    return iter(dataset.to_iter_dataset(options))


def _random_crop(example: Example, rng: np.random.Generator, *, patch_size: int) -> dict[str, np.ndarray]:
    height, width, _ = example["target"].shape
    y = rng.integers(height - patch_size + 1)
    x = rng.integers(width - patch_size + 1)
    names = [name for name in ("input", "target") if name in example]
    return {name: example[name][y : y + patch_size, x : x + patch_size] for name in names}
