from __future__ import annotations

import inspect
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gamax.data.augmentations import cutblur, dihedral, mixup

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
    # Without the check of annotations, which only tests have.
    with pytest.raises(ValueError, match="square images, not 4x6"):
        inspect.unwrap(dihedral)(jax.random.key(0), jnp.zeros((1, 4, 6, 3)))


def pairs(batch: int, height: int = 20, width: int = 30) -> tuple[jax.Array, jax.Array]:
    inputs, targets = jax.random.uniform(jax.random.key(8), (2, batch, height, width, 3))
    return inputs, targets


def shares(mixed: jax.Array, images: jax.Array) -> np.ndarray:
    """The weight of each image in its mixture with the previous one, by least squares; the mixture must be exact."""
    mixed, images = np.asarray(mixed, np.float64), np.asarray(images, np.float64)
    partners = np.roll(images, 1, axis=0)
    difference = images - partners
    share = ((mixed - partners) * difference).sum(axis=(1, 2, 3)) / (difference**2).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(mixed, partners + share[:, None, None, None] * difference, atol=1e-6)
    return share


def test_mixup_blends_both_of_a_pair_alike():
    inputs, targets = pairs(16)
    mixed_inputs, mixed_targets = jax.jit(mixup, static_argnums=3)(jax.random.key(0), inputs, targets[..., :1], 1.0)
    assert mixed_inputs.dtype == mixed_targets.dtype == jnp.float32
    share = shares(mixed_inputs, inputs)
    np.testing.assert_allclose(share, shares(mixed_targets, targets[..., :1]), atol=1e-5)
    assert len(np.unique(share.round(4))) == 16


@pytest.mark.parametrize("alpha", [0.4, 1.2])
def test_mixup_weights_have_the_beta_distribution(alpha):
    images = jax.random.uniform(jax.random.key(1), (2000, 2, 2, 1))
    share = shares(mixup(jax.random.key(0), images, images, 1.0, alpha)[0], images)
    expected = np.random.default_rng(0).beta(alpha, alpha, 200_000)
    assert abs(share.mean() - 0.5) < 0.03
    # Of a Beta(a, a): 1 / (4 (2 a + 1)).
    np.testing.assert_allclose(share.var(), 1 / (4 * (2 * alpha + 1)), rtol=0.06)
    np.testing.assert_allclose(np.quantile(share, [0.1, 0.3, 0.7]), np.quantile(expected, [0.1, 0.3, 0.7]), atol=0.05)


@pytest.mark.parametrize("augment", [mixup, cutblur])
def test_pairs_are_augmented_with_the_asked_probability(augment):
    inputs, targets = jax.random.uniform(jax.random.key(8), (2, 1000, 4, 4, 1))
    results = {p: jax.jit(augment, static_argnums=3)(jax.random.key(3), inputs, targets, p) for p in (0.0, 0.3, 1.0)}
    for probability, (result, _) in results.items():
        changed = (np.asarray(result) != np.asarray(inputs)).any(axis=(1, 2, 3)).mean()
        assert abs(changed - probability) < 0.05
    for result, given in zip(results[0.0], (inputs, targets), strict=True):
        np.testing.assert_array_equal(result, given)


@pytest.mark.parametrize("augment", [mixup, cutblur])
def test_the_key_decides_about_pairs_too_and_compiling_changes_nothing(augment):
    inputs, targets = pairs(8)
    first, again, other = (augment(jax.random.key(seed), inputs, targets, 1.0)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    np.testing.assert_allclose(
        jax.jit(augment, static_argnums=3)(jax.random.key(1), inputs, targets, 1.0)[0], first, atol=1e-6
    )


def test_cutblur_pastes_a_rectangle_at_its_place():
    height, width, alpha = 20, 30, 0.7
    inputs, targets = pairs(400, height, width)
    cut, kept = jax.jit(cutblur, static_argnums=(3, 4))(jax.random.key(0), inputs, targets, 1.0, alpha)
    np.testing.assert_array_equal(kept, targets)
    cut, inputs, targets = (np.asarray(images) for images in (cut, inputs, targets))
    pasted = (cut == targets).all(axis=-1)
    np.testing.assert_array_equal(cut[~pasted], inputs[~pasted])
    corners = []
    for mask in pasted:
        # The rectangle never has all the rows, so the side with whole rows of False is the outside.
        inside = mask if (~mask).all(axis=1).any() or (~mask).all(axis=0).any() else ~mask
        rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        assert inside[np.ix_(rows, columns)].all()
        assert inside.sum() == len(rows) * len(columns)
        assert abs(len(rows) - alpha * height) <= 2
        assert abs(len(columns) - alpha * width) <= 2
        corners.append((rows[0], columns[0], rows[-1], columns[-1], inside is mask))
    tops, lefts, bottoms, rights, insides = map(np.array, zip(*corners, strict=True))
    # Inside as often as outside (standard deviation 0.025); the rectangle reaches every border.
    assert abs(insides.mean() - 0.5) < 0.1
    assert (tops.min(), lefts.min(), bottoms.max(), rights.max()) == (0, 0, height - 1, width - 1)
    assert len(set(tops)) >= 7
    assert len(set(lefts)) >= 9
    assert abs(np.corrcoef(tops, lefts)[0, 1]) < 0.15


def test_cutblur_pastes_nothing_or_everything_at_the_ends():
    inputs, targets = pairs(64)
    for alpha in (-1.0, 2.0):
        cut = np.asarray(cutblur(jax.random.key(0), inputs, targets, 1.0, alpha)[0])
        whole = (cut == np.asarray(targets)).all(axis=(1, 2, 3))
        assert 0.25 < whole.mean() < 0.75
        np.testing.assert_array_equal(cut[~whole], np.asarray(inputs)[~whole])
