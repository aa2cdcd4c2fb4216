from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np
import pytest

from gamax.blocks import Conv, pixel_shuffle, pixel_unshuffle
from gamax.lab.receptive_field import receptive_field
from gamax.models import abstract_params, create_model
from gamax.models.dmphn import DMPHN


class Filters(nn.Module):
    """A row of 3x3 filters, `lower` of them at half resolution."""

    full: int
    lower: int
    size_multiple: int = 2
    input_channels: int = 3

    @nn.compact
    def __call__(self, x):
        for index in range(self.full):
            x = Conv(3, 3, name=f"full_{index}")(x)
        x = pixel_unshuffle(x, 2)
        for index in range(self.lower):
            x = Conv(12, 3, name=f"lower_{index}")(x)
        return pixel_shuffle(x, 2)


@pytest.mark.parametrize(
    ("full", "lower", "pixels"),
    # A filter at half resolution sees three squares, of two pixels each.
    [(1, 0, 3), (3, 0, 7), (0, 1, 6), (0, 2, 10), (2, 3, 18)],
)
def test_filters_add_up(full, lower, pixels):
    assert receptive_field(Filters(full, lower), length=64) == pixels


def test_means_over_the_image_see_all_of_it():
    options = {"width": 4, "depth": 3, "levels": 1, "blocks_per_level": 1}
    assert receptive_field(create_model("gama_ir_tiny", **options), length=64) is None
    # Four filters at full resolution and one at half.
    assert receptive_field(create_model("gama_ir_tiny", **options, mixer="none"), length=64) == 14


def test_it_is_as_wide_as_where_the_gradient_is_not_zero():
    # Positive everywhere, nothing cancels and no unit is dead; large enough that the longest way does not underflow. A
    # level of this network cuts the row in the middle, so pixels there see less than others.
    model, length = DMPHN(levels=(1, 2, 4), widths=(1, 1, 1)), 1024
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.3, np.float32), abstract_params(model))

    @jax.jit
    def gradient(images, output):
        return jax.grad(lambda images: model.apply({"params": params}, images)[0, 8, output, 0])(images)

    images = np.full((1, 16, length, 3), 0.9, np.float32)
    widths = []
    for output in [*range(length // 4, length // 4 + 8), *range(length // 2 - 4, length // 2 + 4)]:
        seen = np.flatnonzero(np.asarray(gradient(images, output)).any((0, 1, 3)))
        widths.append(seen.max() - seen.min() + 1)
    assert receptive_field(model, length) == max(widths)
