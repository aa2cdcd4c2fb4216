from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gamax.evaluation import buckets


def shape_buckets(sizes, multiple, programs=8):
    """For a network that pads to a multiple."""
    padded = [(height + -height % multiple, width + -width % multiple) for height, width in sizes]
    return buckets.shape_buckets(sizes, padded, programs)


SIDES = st.tuples(st.integers(2, 700), st.integers(2, 700))


@given(st.lists(SIDES, min_size=1, max_size=60), st.sampled_from([1, 8, 16, 32]), st.integers(1, 10))
def test_every_image_fits_and_there_are_no_more_shapes_than_asked_for(sizes, multiple, programs):
    shapes = shape_buckets(sizes, multiple, programs)
    assert len(shapes) == len(sizes)
    assert len(set(shapes)) <= programs
    assert all(shape[0] >= size[0] and shape[1] >= size[1] for shape, size in zip(shapes, sizes, strict=True))


@given(st.lists(SIDES, min_size=1, max_size=8))
def test_few_sizes_stay_as_they_are(sizes):
    assert shape_buckets(sizes, 16) == sizes


def test_sides_are_first_rounded_up_as_the_network_pads_them():
    sizes = [(height, 321) for height in range(465, 482)]
    assert shape_buckets(sizes, 16) == [(480, 336)] * 16 + [(496, 336)]


def test_portraits_and_landscapes_stay_apart():
    sizes = [(480, 320), (320, 480), (490, 320), (320, 470)]
    assert shape_buckets(sizes, 1, programs=2) == [(490, 320), (320, 480), (490, 320), (320, 480)]


def test_a_hundred_sizes_are_padded_by_a_fifth_on_average():
    rng = np.random.default_rng(0)
    sizes = [(int(height), int(width)) for height, width in rng.integers(300, 600, (100, 2))]
    assert len(set(sizes)) == 100
    shapes = shape_buckets(sizes, 16)
    assert len(set(shapes)) == 8
    pixels, padded = (sum(height * width for height, width in items) for items in (sizes, shapes))
    assert padded / pixels == pytest.approx(1.2, abs=0.1)


def test_thousands_of_sizes_are_divided_too():
    sizes = [(int(height), int(width)) for height, width in np.random.default_rng(0).integers(2, 4000, (3000, 2))]
    assert len(set(shape_buckets(sizes, 8))) == 8
