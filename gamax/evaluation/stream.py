"""Restoring many images: the next ones are read and the last ones written while the device computes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import numpy as np

from gamax.errors import UserError
from gamax.evaluation.restorer import Restorer

T = TypeVar("T")
R = TypeVar("R")

PIXELS_AHEAD = 2**24
"""Pixels of images that are read before they are needed; beyond them, one image."""
PIXELS_BEHIND = 2**24
"""Pixels of restored images that wait for being finished; beyond them, one image."""


def restore_stream(
    restorer: Restorer,
    shapes: Sequence[tuple[int, int]],
    load: Callable[[int], tuple[np.ndarray, T]],
    finish: Callable[[int, T, np.ndarray], R],
    *,
    batch_size: int = 1,
    progress: Callable[[int, float], object] = lambda index, fraction: None,
) -> Generator[tuple[int, R | UserError]]:
    """Restores many images and yields the index of each with its result as they are finished, the largest first.

    Images of one shape go through the network batch after batch. Images larger than the restorer's tile are restored in
    tiles, one at a time.

    Args:
        restorer: the network.
        shapes: the height and width that each image is padded to, from `shape_buckets`.
        load: returns an image as `Restorer` takes it, and anything that `finish` needs; called in threads.
        finish: makes the result of what `load` has returned beside the image and the restored one; called in threads. A
            `UserError` of one of the two, or of the restorer, is the result of that image and stops no other.
        batch_size: images of one shape that the network is given together.
        progress: called with the index and the finished fraction after every tile of an image that is tiled.
    """

    def load_checked(index: int) -> tuple[np.ndarray, T]:
        image, rest = load(index)
        restorer.check(image)
        return image, rest

    def finish_restored(index: int, restored: tuple[T, np.ndarray] | UserError) -> R | UserError:
        return restored if isinstance(restored, UserError) else _attempt(partial(finish, index, *restored))

    def pixels(index: int) -> int:
        return shapes[index][0] * shapes[index][1]

    order = sorted(range(len(shapes)), key=lambda index: (-pixels(index), shapes[index], index))
    readers, writers = (ThreadPoolExecutor(os.cpu_count()) for _ in range(2))
    with readers, writers:
        try:
            loaded = _read_ahead(readers, lambda index: _attempt(partial(load_checked, index)), order, pixels)
            finishing: deque[tuple[int, Future[R | UserError]]] = deque()
            behind = 0
            for index, restored in _restore(restorer, shapes, loaded, batch_size, progress):
                finishing.append((index, writers.submit(finish_restored, index, restored)))
                behind += pixels(index)
                # However large, one is always allowed.
                while finishing and (finishing[0][1].done() or (behind > PIXELS_BEHIND and len(finishing) > 1)):
                    first, future = finishing.popleft()
                    behind -= pixels(first)
                    yield first, future.result()
            for index, future in finishing:
                yield index, future.result()
        finally:
            for pool in (readers, writers):
                pool.shutdown(cancel_futures=True)


def _read_ahead(
    pool: ThreadPoolExecutor, load: Callable[[int], R], order: Iterable[int], pixels: Callable[[int], int]
) -> Iterator[tuple[int, R]]:
    """What `load` returns for each index, in order."""
    loading: deque[tuple[int, Future[R]]] = deque()
    ahead = 0
    for index in order:
        loading.append((index, pool.submit(load, index)))
        ahead += pixels(index)
        if ahead > PIXELS_AHEAD and len(loading) > 1:
            first, future = loading.popleft()
            ahead -= pixels(first)
            yield first, future.result()
    while loading:
        first, future = loading.popleft()
        yield first, future.result()


def _restore(
    restorer: Restorer,
    shapes: Sequence[tuple[int, int]],
    loaded: Iterable[tuple[int, tuple[np.ndarray, T] | UserError]],
    batch_size: int,
    progress: Callable[[int, float], object],
) -> Iterator[tuple[int, tuple[T, np.ndarray] | UserError]]:
    """The restored images, or what was wrong; while the device computes a batch, the one before is handed on."""
    batch: list[tuple[int, np.ndarray, T]] = []
    ready: Callable[[], list[tuple[int, tuple[T, np.ndarray] | UserError]]] = list

    def start() -> Callable[[], list[tuple[int, tuple[T, np.ndarray] | UserError]]]:
        indices, images, rests = zip(*batch, strict=True)
        wait = _attempt(lambda: restorer.start(images, shapes[indices[0]], batch_size))

        def results() -> list[tuple[int, tuple[T, np.ndarray] | UserError]]:
            restored = wait if isinstance(wait, UserError) else _attempt(wait)
            if isinstance(restored, UserError):
                # Of one of them, or of all together: each is tried alone.
                return [(index, again(*job)) for index, *job in zip(indices, images, rests, strict=True)]
            return list(zip(indices, zip(rests, restored, strict=True), strict=True))

        def again(image: np.ndarray, rest: T) -> tuple[T, np.ndarray] | UserError:
            alone = _attempt(lambda: restorer.start([image], shapes[indices[0]])()[0])
            return alone if isinstance(alone, UserError) else (rest, alone)

        return results

    for index, value in loaded:
        if isinstance(value, UserError):
            yield index, value
            continue
        image, rest = value
        if restorer.tiles(image.shape[:2]):
            restored = _attempt(partial(restorer, image, partial(progress, index)))
            yield index, restored if isinstance(restored, UserError) else (rest, restored)
            continue
        if batch and (len(batch) == batch_size or shapes[index] != shapes[batch[0][0]]):
            ready, before, batch = start(), ready, []
            yield from before()
        batch.append((index, image, rest))
    if batch:
        ready, before = start(), ready
        yield from before()
    yield from ready()


def _attempt(work: Callable[[], R]) -> R | UserError:
    """What the work returns, or the `UserError` that it raises."""
    try:
        return work()
    except UserError as error:
        return error
