from __future__ import annotations

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gamax.data.augmentations import dihedral

SQUARE = np.arange(16).reshape(4, 4)
SYMMETRIES = [np.rot90(flipped, turns) for flipped in (SQUARE, SQUARE[:, ::-1]) for turns in range(4)]


def test_all_eight_symmetries_are_equally_likely():
    count = 8000
    images = jnp.broadcast_to(jnp.asarray(SQUARE)[None, :, :, None], (count, 4, 4, 1))
    (turned,) = jax.jit(dihedral)(jax.random.key(0), images)
    seen = Counter(image.tobytes() for image in np.asarray(turned))
    expected = {symmetry[..., None].astype(np.int32).tobytes() for symmetry in SYMMETRIES}
    assert len(expected) == 8
    assert seen.keys() == expected
    # 1000 each, standard deviation 30.
    assert all(abs(number - count / 8) < 150 for number in seen.values())


def test_every_array_is_turned_the_same_way():
    target = jax.random.randint(jax.random.key(1), (32, 6, 6, 3), 0, 256).astype(jnp.uint8)
    source = jnp.concatenate([255 - target, target[..., :1]], axis=-1)
    turned_source, turned_target = dihedral(jax.random.key(2), source, target)
    assert turned_target.dtype == jnp.uint8
    np.testing.assert_array_equal(turned_source[..., :3], 255 - turned_target)
    np.testing.assert_array_equal(turned_source[..., 3:], turned_target[..., :1])
    assert not np.array_equal(turned_target, target)


def test_the_key_decides():
    images = jax.random.uniform(jax.random.key(0), (16, 6, 6, 3))
    first, again, other = (dihedral(jax.random.key(seed), images)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_it_can_be_vmapped():
    images = jax.random.uniform(jax.random.key(0), (2, 8, 6, 6, 3))
    keys = jax.random.split(jax.random.key(1), 2)
    (mapped,) = jax.vmap(dihedral)(keys, images)
    for i in range(2):
        np.testing.assert_array_equal(mapped[i], dihedral(keys[i], images[i])[0])


def test_only_squares_can_be_turned():
    with pytest.raises(ValueError, match="square images, not 4x6"):
        dihedral(jax.random.key(0), jnp.zeros((1, 4, 6, 3)))
