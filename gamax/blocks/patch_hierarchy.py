"""The hierarchy of ever smaller patches of an image that DMPHN (arXiv 1904.03468) and SAPHN (2402.06117) share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float

from gamax.blocks.padding import pad_to_multiple
from gamax.errors import UserError


def check_levels(levels: tuple[int, ...]) -> None:
    """`UserError` unless these are numbers of patches from one on, each twice the one before: (1, 2, 4)."""
    if not levels or levels != tuple(2**level for level in range(len(levels))):
        raise UserError(f"levels must be numbers of patches that start at 1 and double, such as 1,2,4, not {levels}")


def patch_multiples(levels: tuple[int, ...], scale: int) -> tuple[int, int]:
    """What must divide height and width, if the smallest patches must be multiples of `scale`."""
    # Even levels cut the height, odd ones the width: with an even number of levels it is cut once less.
    return scale * 2 ** (len(levels) // 2), scale * 2 ** ((len(levels) - 1) // 2)


def pad_to_patches(images: Float[Array, "b h w c"], multiples: tuple[int, int]) -> Float[Array, "b h2 w2 c"]:
    """Pads by reflection on the right and at the bottom to multiples from `patch_multiples`."""
    width = images.shape[2] + -images.shape[2] % multiples[1]
    return pad_to_multiple(images, multiples[0])[:, :, :width]


def encode_patches(
    images: Float[Array, "b h w c"],
    levels: tuple[int, ...],
    encode: Callable[[Array, int], Any],
    decode: Callable[[Any, int], Array],
    fuse: Callable[[Any, Any, int], Any],
) -> tuple[Any, list[Array]]:
    """Encodes an image by way of its patches, from the smallest up.

    Level 1 is the whole image, level 2 its upper and lower half, level 3 the left and right halves of these, and so on.
    All patches of a level have one size and go through its encoder as one batch. What a level has encoded is joined to
    the patches of the level above, decoded into a residual image and added to these, and, in `fuse`, to what is
    encoded of them.

    Args:
        images: with sides that `patch_multiples` divide.
        levels: numbers of patches.
        encode: of patches `[N, H, W, C]` and the number of their level, from 1; any tree of arrays `[N, h, w, c]`.
        decode: the residual images of such a tree.
        fuse: of what is encoded at a level, what comes from the level below, joined, and the level's number.

    Returns:
        What `fuse` makes at level 1 (of one level alone, what `encode` does), and the whole image as restored by each
        level below, the smallest patches first.
    """
    patches = [images]
    for level in range(2, len(levels) + 1):
        patches.append(_cut(patches[-1], level))
    features = encode(patches.pop(), len(levels))
    restored = []
    for level in range(len(levels), 1, -1):
        # Two patches that the level above keeps in one piece are joined before they are decoded for it.
        features = jax.tree.map(lambda leaf, level=level: _join(leaf, level), features)
        larger = patches.pop() + decode(features, level)
        features = fuse(encode(larger, level - 1), features, level - 1)
        for above in range(level - 1, 1, -1):
            larger = _join(larger, above)
        restored.append(larger)
    return features, restored


def _cut(patches: Float[Array, "n h w c"], level: int) -> Float[Array, "n2 h2 w2 c"]:
    """The halves, one below the other at even levels and side by side at odd ones, next to each other in the batch."""
    count, height, width, channels = patches.shape
    if level % 2 == 0:
        return patches.reshape(2 * count, height // 2, width, channels)
    halves = patches.reshape(count, height, 2, width // 2, channels).swapaxes(1, 2)
    return halves.reshape(2 * count, height, width // 2, channels)


def _join(patches: Float[Array, "n h w c"], level: int) -> Float[Array, "n2 h2 w2 c"]:
    """The inverse of `_cut`."""
    count, height, width, channels = patches.shape
    if level % 2 == 0:
        return patches.reshape(count // 2, 2 * height, width, channels)
    halves = patches.reshape(count // 2, 2, height, width, channels).swapaxes(1, 2)
    return halves.reshape(count // 2, height, 2 * width, channels)
