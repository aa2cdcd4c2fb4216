from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from gamax.diffusion.patchwise import predict_in_windows, window_starts, window_weights


def tell_places_apart(windows: jax.Array) -> jax.Array:
    """A stand-in for a network: no two pixels of a window are treated alike."""
    rows = jnp.arange(windows.shape[1])[:, None, None]
    return jnp.cumsum(jnp.sin(windows[..., :2] + rows), axis=2) + windows[..., 2:]


@pytest.fixture
def image() -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=(14, 9, 3)), jnp.float32)


def run(predict: Callable[[jax.Array], jax.Array], image: jax.Array, stride: int = 3, **options: object) -> np.ndarray:
    options = {"window": 6, "stride": stride, "at_once": 4, **options}
    return np.asarray(jax.jit(lambda image: predict_in_windows(predict, image, **options))(image))


def test_weights_are_the_distance_to_the_border_within_bounds():
    weights = window_weights(128)
    for row, column in ((0, 50), (1, 60), (30, 90), (63, 64), (127, 127)):
        distance = min(row, column, 127 - row, 127 - column) / 127
        assert weights[row, column] == pytest.approx(min(max(distance, 0.01), 0.5))
    assert weights.min() == 0.01
    np.testing.assert_array_equal(weights, weights.T)
    np.testing.assert_array_equal(window_weights(1), [[0.01]])


@pytest.mark.parametrize(
    ("side", "starts"), [(6, [0]), (7, [0, 1]), (9, [0, 3]), (10, [0, 3, 4]), (16, [0, 3, 6, 9, 10])]
)
def test_windows_cover_a_side_to_its_end(side, starts):
    assert window_starts(side, 6, 3) == starts


@pytest.mark.parametrize("stride", [2, 3, 6])
def test_it_equals_a_loop_over_windows(stride, image):
    totals, weights = np.zeros((14, 9, 2)), np.zeros((14, 9, 1))
    for top in {*range(0, 9, stride), 8}:
        for left in {*range(0, 4, stride), 3}:
            place = (slice(top, top + 6), slice(left, left + 6))
            totals[place] += np.asarray(tell_places_apart(image[place][None])[0]) * window_weights(6)[..., None]
            weights[place] += window_weights(6)[..., None]
    np.testing.assert_allclose(run(tell_places_apart, image, stride), totals / weights, atol=1e-5)


def test_one_window_is_the_network_itself(image):
    result = run(tell_places_apart, image[:6, :6])
    np.testing.assert_allclose(result, tell_places_apart(image[None, :6, :6])[0], rtol=1e-5, atol=1e-6)


def test_what_is_constant_stays_so(image):
    np.testing.assert_allclose(run(lambda windows: jnp.full((*windows.shape[:3], 1), 0.7), image), 0.7, rtol=1e-6)


def test_devices_that_share_the_windows_change_nothing(image):
    mesh = jax.make_mesh((4,), ("windows",), (AxisType.Auto,), devices=jax.devices()[:4])
    shared = run(tell_places_apart, image, mesh=mesh)
    np.testing.assert_allclose(shared, run(tell_places_apart, image), atol=1e-6)
