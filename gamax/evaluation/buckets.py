"""Shape buckets: many sizes of images in few compiled programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

MOST_CANDIDATES = 256
"""Shapes that are merged pair by pair; where there are more, sides are first rounded up further."""


def shape_buckets(
    sizes: Sequence[tuple[int, int]], padded: Sequence[tuple[int, int]], programs: int = 8
) -> list[tuple[int, int]]:
    """The height and width that each image is padded to, so that there are at most `programs` different ones.

    Few different sizes stay as they are. If there are too many, images are padded as the network pads them anyway,
    which changes no result. If that is not enough, the two shapes are merged, again and again, whose images then take
    the fewest pixels more; padding beyond the network's own does change results a little.

    Args:
        sizes: height and width of every image.
        padded: what the network itself pads each to, `Restorer.padded_size`.
        programs: the most shapes there may be.
    """
    if len(set(sizes)) <= programs:
        return list(sizes)
    shapes, step = list(padded), 1
    while len(set(shapes)) > MOST_CANDIDATES:
        step *= 2
        shapes = [(height + -height % step, width + -width % step) for height, width in padded]
    counts = Counter(shapes)
    sides, images = np.array(list(counts)), np.array(list(counts.values()))
    while len(sides) > programs:
        pixels = images * sides.prod(1)
        merged = np.maximum(sides[:, None], sides).prod(2) * (images[:, None] + images)
        added = np.where(np.tri(len(sides), dtype=bool), np.inf, merged - pixels[:, None] - pixels)
        first, second = np.unravel_index(added.argmin(), added.shape)
        sides[first] = np.maximum(sides[first], sides[second])
        images[first] += images[second]
        sides, images = np.delete(sides, second, 0), np.delete(images, second)
    buckets = sorted(((int(height), int(width)) for height, width in sides), key=lambda shape: shape[0] * shape[1])
    return [next(bucket for bucket in buckets if bucket[0] >= h and bucket[1] >= w) for h, w in shapes]
