from __future__ import annotations

import threading

import flax.linen as nn
import jax
import numpy as np
import pytest

from gamax.errors import UserError
from gamax.evaluation import stream
from gamax.evaluation.buckets import shape_buckets
from gamax.evaluation.restorer import Restorer, compiled_programs
from gamax.evaluation.stream import restore_stream


class Shift(nn.Module):
    """Adds the largest value of every image in the batch to it, so that one image must not see another."""

    offset: float = 0.0
    size_multiple: int = 4
    input_channels: int = 3
    dtype: type = np.float32

    def __call__(self, images):
        return images + images.max((1, 2, 3), keepdims=True) + self.offset


SIZES = [(9, 12), (8, 8), (30, 20), (9, 12), (31, 17), (8, 8), (9, 12)]
IMAGES = [np.random.default_rng(index).random((*size, 3), np.float32) for index, size in enumerate(SIZES)]


def load(index: int) -> tuple[np.ndarray, str]:
    return IMAGES[index], f"image {index}"


def finish(index: int, name: str, restored: np.ndarray) -> tuple[str, np.ndarray]:
    return name, restored


@pytest.mark.parametrize("batch_size", [1, 2, 4])
@pytest.mark.parametrize("tile", [None, 16])
def test_every_image_is_restored_once_as_it_is_alone(batch_size, tile):
    restorer = Restorer(Shift(), {}, tile=tile, overlap=tile and 4)
    results = dict(restore_stream(restorer, SIZES, load, finish, batch_size=batch_size))
    assert sorted(results) == list(range(len(SIZES)))
    for index, (name, restored) in results.items():
        assert name == f"image {index}"
        np.testing.assert_array_equal(restored, restorer(IMAGES[index]))


def test_a_hundred_sizes_are_compiled_at_most_eight_times():
    rng = np.random.default_rng(0)
    images = [rng.random((*size, 3), np.float32) for size in rng.integers(20, 90, (100, 2))]
    sizes = [image.shape[:2] for image in images]
    assert len(set(sizes)) == 100
    # No other test has this network.
    restorer, before = Restorer(Shift(offset=0.125), {}), compiled_programs()
    shapes = shape_buckets(sizes, [restorer.padded_size(size) for size in sizes])
    results = dict(
        restore_stream(restorer, shapes, lambda i: (images[i], None), lambda i, _, image: image, batch_size=3)
    )
    assert compiled_programs() - before <= 8
    for index, image in enumerate(images):
        # Reflection adds no new largest value.
        np.testing.assert_allclose(results[index], image + image.max() + 0.125, rtol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_an_image_that_fails_stops_no_other(batch_size):
    images = {**dict(enumerate(IMAGES)), 4: np.zeros((1, 1, 3), np.uint8)}

    def load_some(index: int) -> tuple[np.ndarray, None]:
        if index == 0:
            raise UserError("cannot read")
        return images[index], None

    def finish_some(index: int, rest: None, restored: np.ndarray) -> int:
        if index == 2:
            raise UserError("cannot write")
        return index

    results = dict(restore_stream(Restorer(Shift(), {}), SIZES, load_some, finish_some, batch_size=batch_size))
    failed = {index: str(result) for index, result in results.items() if isinstance(result, UserError)}
    assert failed.keys() == {0, 2, 4}
    assert (failed[0], failed[2]) == ("cannot read", "cannot write")
    assert "1x1 pixels is too small" in failed[4]
    assert all(results[index] == index for index in (1, 3, 5, 6))


def test_other_errors_are_not_hidden():
    def broken(index: int, rest: object, restored: np.ndarray) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(restore_stream(Restorer(Shift(), {}), SIZES, load, broken))


def test_no_more_is_read_ahead_than_allowed(monkeypatch):
    monkeypatch.setattr(stream, "PIXELS_AHEAD", 300)
    held, most, lock = 0, 0, threading.Lock()
    images = [np.zeros((10, 10, 3), np.float32)] * 40

    def count(change: int) -> None:
        nonlocal held, most
        with lock:
            held += change
            most = max(most, held)

    def load_counted(index: int) -> tuple[np.ndarray, None]:
        count(1)
        return images[index], None

    def finish_counted(index: int, rest: None, restored: np.ndarray) -> None:
        count(-1)

    monkeypatch.setattr(stream, "PIXELS_BEHIND", 300)
    results = list(restore_stream(Restorer(Shift(), {}), [(10, 10)] * 40, load_counted, finish_counted))
    assert len(results) == 40
    # Three wait before, one more is on its way; one is computed and one handed over; three wait behind, and one more.
    assert most <= 10


def test_images_are_restored_while_others_are_finished():
    """The first image is finished only after the third one is restored."""
    third_restored = threading.Event()

    class Noting(Restorer):
        def start(self, images, shape=None, batch_size=1):
            if images[0].max() == 3:
                third_restored.set()
            return super().start(images, shape, batch_size)

    def finish_late(index: int, rest: None, restored: np.ndarray) -> bool:
        return index != 0 or third_restored.wait(10)

    images = [np.full((8, 8, 3), index + 1, np.float32) for index in range(3)]
    results = restore_stream(Noting(Shift(), {}), [(8, 8)] * 3, lambda index: (images[index], None), finish_late)
    assert dict(results) == {0: True, 1: True, 2: True}


class Fetched:
    """What a device gives back when it has run out of memory in the meantime."""

    def __array__(self, *arguments, **options):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    def __getitem__(self, index):
        return self


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(("tile", "batch_size"), [(None, 1), (None, 3), (12, 1)])
def test_an_image_that_the_device_cannot_hold_stops_no_other(tile, batch_size, late):
    class Small(Restorer):
        def _apply(self, images):
            # More than a batch of the smallest ones, or the tiles of the largest.
            if images.size > 3 * 9 * 12 * 3 or images.shape[1:3] == (12, 12):
                if late:
                    return Fetched()
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
            return super()._apply(images)

    restorer = Small(Shift(), {}, tile=tile, overlap=tile and 4)
    results = dict(restore_stream(restorer, SIZES, load, finish, batch_size=batch_size))
    failed = {index: str(result) for index, result in results.items() if isinstance(result, UserError)}
    assert failed.keys() == {2, 4}
    assert all(
        "do not fit the memory of the device: take (smaller) tiles or batches" in text for text in failed.values()
    )


def test_an_image_that_fails_in_the_network_fails_alone():
    images = {index: np.full((8, 8, 3), 100, np.uint8) for index in range(4)}
    images[2] = np.zeros((8, 8, 3), np.uint8)

    class Undefined(Restorer):
        def _apply(self, images):
            return np.where(images.max((1, 2, 3), keepdims=True) > 0, images, np.nan)

    stream_of = restore_stream(
        Undefined(Shift(), {}), [(8, 8)] * 4, lambda index: (images[index], None), lambda i, _, image: i, batch_size=3
    )
    results = dict(stream_of)
    assert "output is not finite" in str(results.pop(2))
    assert results == {0: 0, 1: 1, 3: 3}


def test_images_are_read_while_others_are_computed():
    """The second image is asked for before the first one is restored."""
    second_asked = threading.Event()

    class Waiting(Restorer):
        def start(self, images, shape=None, batch_size=1):
            assert second_asked.wait(10)
            return super().start(images, shape, batch_size)

    def load_noted(index: int) -> tuple[np.ndarray, None]:
        if index == 1:
            second_asked.set()
        return np.zeros((8, 8, 3), np.float32), None

    results = restore_stream(Waiting(Shift(), {}), [(8, 8)] * 3, load_noted, lambda index, _, image: index)
    assert sorted(index for index, _ in results) == [0, 1, 2]
