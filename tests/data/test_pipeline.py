from __future__ import annotations

import json

import numpy as np
import pytest

from gamax.data.pipeline import training_batches
from gamax.errors import UserError

SIZE, PATCH = (20, 24), 8


class Coordinates:
    """Images whose pixels say (image, row, column), so that a crop shows where it comes from."""

    def __init__(self, length, paired=True, dtype=np.uint8):
        self.length, self.paired, self.dtype = length, paired, dtype

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        rows, columns = np.indices(SIZE)
        target = np.stack([np.full(SIZE, index), rows, columns], axis=-1).astype(self.dtype)
        example = {"name": str(index), "target": target}
        return {**example, "input": target + 100} if self.paired else example


def batches(count, length=10, *, state=None, paired=True, dtype=np.uint8, **values):
    values = {"patch_size": PATCH, "batch_size": 4, "seed": 3, "threads": 2, **values}
    iterator = training_batches(Coordinates(length, paired, dtype), **values)
    if state is not None:
        iterator.set_state(state)
    return [next(iterator) for _ in range(count)], iterator.get_state()


def iterator_of(batch_size):
    return training_batches(Coordinates(10), patch_size=PATCH, batch_size=batch_size, seed=3, threads=2)


def assert_equal(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], strict=True)


def images_of(batch_list):
    return np.concatenate([batch["target"][:, 0, 0, 0] for batch in batch_list])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_batches_hold_whole_windows_of_the_stored_type(dtype):
    (batch,), _ = batches(1, dtype=dtype)
    assert batch["target"].shape == (4, PATCH, PATCH, 3)
    assert batch["target"].dtype == dtype
    rows, columns = np.indices((PATCH, PATCH))
    for crop in batch["target"].astype(int):
        np.testing.assert_array_equal(crop[..., 1], crop[0, 0, 1] + rows)
        np.testing.assert_array_equal(crop[..., 2], crop[0, 0, 2] + columns)


def test_input_and_target_are_cut_from_the_same_window():
    for batch in batches(5)[0]:
        np.testing.assert_array_equal(batch["input"], batch["target"] + 100)


def test_clean_data_has_targets_only():
    assert batches(1, paired=False)[0][0].keys() == {"target"}


def test_every_window_position_occurs():
    corners = np.concatenate([batch["target"][:, 0, 0, 1:] for batch in batches(200)[0]])
    assert set(corners[:, 0]) == set(range(SIZE[0] - PATCH + 1))
    assert set(corners[:, 1]) == set(range(SIZE[1] - PATCH + 1))


def test_every_epoch_shows_every_image_once_in_a_new_order():
    order = images_of(batches(10)[0]).reshape(4, 10)
    assert (np.sort(order, axis=1) == np.arange(10)).all()
    assert len({tuple(epoch) for epoch in order}) == 4


def test_batches_depend_on_the_seed_and_not_on_the_number_of_threads():
    expected, _ = batches(9, threads=1)
    for threads in (2, 5):
        assert_equal(batches(9, threads=threads)[0], expected)
    assert not np.array_equal(images_of(batches(9, seed=4)[0]), images_of(expected))


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("stop", [1, 4])
def test_a_restored_iterator_continues_exactly(stop, threads):
    # 10 images in batches of 4: both stops are inside an epoch.
    expected, _ = batches(9)
    _, state = batches(stop)
    rest, _ = batches(9 - stop, state=json.loads(json.dumps(state)), threads=threads)
    assert_equal(rest, expected[stop:])


@pytest.mark.parametrize("shares", [[[0, 1], [2, 3]], [[0, 2], [3, 1]], [[3], [1], [0], [2]]])
def test_processes_share_an_epoch_and_reproduce_the_global_batches(shares):
    expected, _ = batches(6, length=12)
    read = [batches(6, length=12, rows=rows)[0] for rows in shares]
    epochs = [set(images_of(share[:3])) for share in read]
    assert sum(len(images) for images in epochs) == len(set.union(*epochs)) == 12
    for rows, share in zip(shares, read, strict=True):
        for step in range(6):
            np.testing.assert_array_equal(share[step]["target"], expected[step]["target"][rows])


def test_batches_continue_behind_the_samples_seen_with_another_batch_size():
    expected = np.concatenate([batch["target"] for batch in batches(9)[0]])
    rest = batches(4, batch_size=3, first_sample=16)[0] + batches(1, batch_size=8, first_sample=28)[0]
    np.testing.assert_array_equal(np.concatenate([batch["target"] for batch in rest]), expected[16:])


def test_an_image_of_exactly_the_patch_size_and_a_batch_larger_than_the_set():
    class Single(Coordinates):
        def __getitem__(self, index):
            return {"name": "a", "target": np.full((PATCH, PATCH, 3), 7, np.uint8)}

    iterator = training_batches(Single(1), patch_size=PATCH, batch_size=5, seed=0, threads=1)
    np.testing.assert_array_equal(next(iterator)["target"], np.full((5, PATCH, PATCH, 3), 7))


def test_a_batch_of_one_and_a_position_far_ahead():
    expected, _ = batches(1)
    assert_equal(
        [{"target": next(one)["target"]} for one in [iterator_of(1)] * 4],
        [{"target": expected[0]["target"][i : i + 1]} for i in range(4)],
    )
    far = iterator_of(1)
    far.set_state({"next_index": 10**9})
    assert next(far)["target"].shape == (1, PATCH, PATCH, 3)


class Damaged(Coordinates):
    """Cannot read some of its examples."""

    def __init__(self, length, damaged):
        super().__init__(length)
        self.damaged = damaged

    def __getitem__(self, index):
        if index in self.damaged:
            raise UserError(f"record {index} of 'set-00001' cannot be read")
        return super().__getitem__(index)


def damaged_batches(damaged, count=6, **values):
    values = {"patch_size": PATCH, "batch_size": 4, "seed": 3, "threads": 2, **values}
    iterator = training_batches(Damaged(10, damaged), **values)
    return [next(iterator) for _ in range(count)]


@pytest.mark.parametrize("threads", [1, 3])
def test_an_example_that_cannot_be_read_is_named(threads):
    with pytest.raises(UserError) as caught:
        damaged_batches({7}, threads=threads)
    assert str(caught.value) == "record 7 of 'set-00001' cannot be read"


def test_a_damaged_example_is_replaced_by_the_next_if_asked_for(capsys):
    expected, _ = batches(6)
    replaced = damaged_batches({4, 9}, skip_corrupt=True)
    names = images_of(expected)
    np.testing.assert_array_equal(images_of(replaced), np.where(names == 4, 5, np.where(names == 9, 0, names)))
    # The windows of all others stay what they are.
    for before, after in zip(expected, replaced, strict=True):
        kept = ~np.isin(before["target"][:, 0, 0, 0], [4, 9])
        np.testing.assert_array_equal(before["input"][kept], after["input"][kept])
    # Once each, though both epochs meet them.
    assert sorted(capsys.readouterr().out.splitlines()) == [
        f"skipped: record {index} of 'set-00001' cannot be read" for index in (4, 9)
    ]


def test_a_set_without_any_readable_example_ends():
    with pytest.raises(UserError, match="none of the training images can be read"):
        damaged_batches(set(range(10)), skip_corrupt=True)


def test_no_images_at_all_are_refused():
    with pytest.raises(UserError, match=r"there are no images to train on"):
        batches(1, length=0)


def test_an_image_smaller_than_the_patch_is_named():
    with pytest.raises(UserError, match=r"'[0-9]' is 24x20 pixels, less than the patch of 21"):
        batches(1, patch_size=21)


def test_an_image_smaller_than_the_patch_is_mirrored_if_that_is_asked_for():
    (batch,), _ = batches(1, patch_size=22, pad=True)
    np.testing.assert_array_equal(batch["input"], batch["target"] + 100)
    for crop in batch["target"].astype(int):
        assert crop[:, 0, 1].tolist() == [*range(20), 18, 17]
        np.testing.assert_array_equal(crop[0, :, 2], crop[0, 0, 2] + np.arange(22))
    larger, _ = batches(3, pad=True)
    assert_equal(larger, batches(3)[0])
