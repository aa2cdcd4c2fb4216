from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import convolve, map_coordinates

from gamax.data.blur import (
    blur,
    blur_field,
    circle_of_confusion,
    defocus,
    disc_kernels,
    motion_kernels,
    splat,
    streak_kernels,
    trajectories,
)


def photographs(batch: int, height: int, width: int) -> jax.Array:
    """Random images with something at every scale."""
    noise = jax.random.normal(jax.random.key(9), (batch, height, width, 3))
    return (
        0.5
        + 0.05 * noise
        + 0.2 * jnp.sin(jnp.arange(width) / 5)[:, None] * jnp.cos(jnp.arange(height) / 7)[:, None, None]
    )


def moments(kernels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre of mass and matrix of second moments about it, in pixels from the middle."""
    taps = np.arange(kernels.shape[-1]) - kernels.shape[-1] // 2
    grid = np.stack(np.meshgrid(taps, taps, indexing="ij"), axis=-1)
    kernels = np.asarray(kernels, np.float64)
    centre = np.einsum("bij,ija->ba", kernels, grid)
    return centre, np.einsum("bij,ija,ijc->bac", kernels, grid, grid) - centre[:, :, None] * centre[:, None]


@pytest.mark.parametrize("roughness", [0.0, 0.5, 1.0])
def test_motion_kernels_are_centred_and_keep_the_energy(roughness):
    kernels = np.asarray(motion_kernels(jax.random.key(0), 32, 23, jnp.full(32, 21.0), jnp.full(32, roughness)))
    assert kernels.dtype == np.float32
    assert kernels.min() >= 0
    np.testing.assert_allclose(kernels.sum(axis=(1, 2), dtype=np.float64), 1, atol=3e-7)
    centre, _ = moments(kernels)
    np.testing.assert_allclose(centre, 0, atol=1e-4)
    assert len({kernel.tobytes() for kernel in kernels}) == 32


def test_straight_motion_is_a_line_of_the_asked_length_in_any_direction():
    length = 20.0
    kernels = motion_kernels(jax.random.key(1), 200, 21, jnp.full(200, length), jnp.zeros(200))
    _, second = moments(np.asarray(kernels))
    variances, vectors = np.linalg.eigh(second)
    # Uniform over the length: L^2 / 12. Splatting widens by at most 1/4 along each axis.
    np.testing.assert_allclose(variances[:, 1], length**2 / 12, rtol=0.03)
    assert variances[:, 0].max() < 0.26
    angles = np.arctan2(vectors[:, 0, 1], vectors[:, 1, 1]) % np.pi
    counts, _ = np.histogram(angles, bins=4, range=(0, np.pi))
    # 50 each, standard deviation 6.
    assert counts.min() > 25


def test_rougher_motion_is_more_crooked():
    straightness = []
    for roughness in (0.0, 0.3, 1.0):
        path = np.asarray(trajectories(jax.random.key(2), 200, 80, jnp.full(200, 20.0), jnp.full(200, roughness)))
        travelled = np.linalg.norm(np.diff(path, axis=1), axis=-1).sum(axis=1)
        straightness.append((np.linalg.norm(path[:, -1] - path[:, 0], axis=-1) / travelled).mean())
        np.testing.assert_allclose(np.linalg.norm(path, axis=-1).max(axis=1), 10, rtol=1e-5)
        np.testing.assert_allclose(path.mean(axis=1), 0, atol=1e-4)
    assert straightness[0] > 0.999
    assert 0.87 < straightness[1] < 0.97
    assert 0.55 < straightness[2] < 0.73


def test_the_hand_moves_smoothly_and_forgets_its_direction():
    path = np.asarray(trajectories(jax.random.key(0), 2000, 80, jnp.ones(2000), jnp.ones(2000)))
    velocity = np.diff(path, axis=1)
    # Each path has its own scale.
    velocity /= np.sqrt((velocity**2).mean(axis=(1, 2), keepdims=True))
    after = {lag: (velocity[:, lag:] * velocity[:, :-lag]).mean() for lag in (1, 20, 60)}
    assert after[1] > 0.93
    assert 0.3 < after[20] < 0.5
    assert after[60] < 0.15


def test_no_motion_is_the_identity():
    kernels = np.asarray(motion_kernels(jax.random.key(0), 2, 5, jnp.zeros(2), jnp.array([0.0, 1.0])))
    np.testing.assert_allclose(kernels, np.broadcast_to(np.pad([[1.0]], 2), (2, 5, 5)), atol=1e-6)


def test_splatting_shares_a_position_among_four_pixels():
    kernel = np.asarray(splat(jnp.array([[0.25, -0.5]]), 3))
    expected = np.zeros((3, 3))
    expected[1:, :2] = [[0.375, 0.375], [0.125, 0.125]]
    np.testing.assert_allclose(kernel, expected, atol=1e-6)


def test_discs_have_the_asked_radius():
    radius = np.array([0.0, 1.5, 3.0, 4.7, 8.0], np.float32)
    kernels = np.asarray(disc_kernels(jnp.asarray(radius), 17))
    assert kernels.min() >= 0
    np.testing.assert_allclose(kernels.sum(axis=(1, 2)), 1, rtol=1e-6)
    np.testing.assert_allclose(kernels[0], np.pad([[1.0]], 8))
    centre, second = moments(kernels)
    np.testing.assert_allclose(centre, 0, atol=1e-5)
    # A disc has r^2 / 4 along each axis; the edge's ramp and the grid add up to an eighth of a pixel squared.
    np.testing.assert_allclose(second[1:, 0, 0], radius[1:] ** 2 / 4 + 0.08, atol=0.055)
    np.testing.assert_allclose(second[:, 1, 1], second[:, 0, 0], rtol=1e-5)
    np.testing.assert_allclose(second[:, 0, 1], 0, atol=1e-5)
    # The peak is one pixel's share of the area.
    np.testing.assert_allclose(1 / kernels.max(axis=(1, 2))[1:], np.pi * radius[1:] ** 2, rtol=0.06)


def test_the_edge_of_a_disc_is_anti_aliased():
    # The kernel moves smoothly with the radius, so no radius is special.
    kernels = np.asarray(disc_kernels(jnp.linspace(3, 4, 101), 9))
    assert np.abs(np.diff(kernels, axis=0)).sum(axis=(1, 2)).max() < 0.02


def test_streaks_have_angle_length_and_width():
    angle, length, width = jnp.array([0.0, 30.0, -60.0]), jnp.array([20.0, 24.0, 16.0]), jnp.array([1.0, 3.0, 2.0])
    kernels = np.asarray(streak_kernels(angle, length, width, 33))
    assert kernels.min() >= 0
    np.testing.assert_allclose(kernels.max(axis=(1, 2)), 1)
    energy = kernels.sum(axis=(1, 2))
    # The ends fade over a quarter each: three quarters of the length count.
    np.testing.assert_allclose(energy, (0.75 * length + 1) * width, rtol=0.05)
    centre, second = moments(kernels / energy[:, None, None])
    np.testing.assert_allclose(centre, 0, atol=1e-4)
    _, vectors = np.linalg.eigh(second)
    measured = np.degrees(np.arctan(vectors[:, 1, 1] / vectors[:, 0, 1]))
    np.testing.assert_allclose(measured, angle, atol=1)


@pytest.mark.parametrize(
    ("height", "width", "size"), [(16, 23, 5), (17, 12, 9), (5, 7, 31), (1, 6, 3), (8, 8, 1), (140, 300, 7)]
)
def test_blur_is_a_convolution_with_reflected_border(height, width, size):
    rng = np.random.default_rng(0)
    images, kernels = rng.random((3, height, width, 2), np.float32), rng.random((3, size, size), np.float32)
    kernels /= kernels.sum(axis=(1, 2), keepdims=True)
    blurred = jax.jit(blur)(images, kernels)
    assert blurred.dtype == jnp.float32
    expected = [
        np.stack([convolve(image[..., c].astype(float), kernel, mode="mirror") for c in range(2)], axis=-1)
        for image, kernel in zip(images, kernels, strict=True)
    ]
    np.testing.assert_allclose(blurred, expected, atol=2e-6)


def test_blur_keeps_a_constant_image():
    kernels = motion_kernels(jax.random.key(0), 4, 13, jnp.full(4, 11.0), jnp.ones(4))
    constant = jnp.full((4, 20, 30, 3), 0.7)
    np.testing.assert_allclose(blur(constant, kernels), 0.7, rtol=1e-5)
    np.testing.assert_allclose(defocus(constant, jnp.linspace(0, 9, 2400).reshape(4, 20, 30), 6.0), 0.7, rtol=1e-5)
    field = jnp.broadcast_to(kernels[:, None, None], (4, 3, 4, 13, 13))
    np.testing.assert_allclose(blur_field(constant, field), 0.7, rtol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(32, 48), (17, 29)])
def test_a_field_of_equal_kernels_is_a_blur(height, width):
    images = photographs(2, height, width)
    kernels = motion_kernels(jax.random.key(0), 2, 9, jnp.full(2, 7.0), jnp.ones(2))
    field = jnp.broadcast_to(kernels[:, None, None], (2, 3, 4, 9, 9))
    np.testing.assert_allclose(jax.jit(blur_field)(images, field), blur(images, kernels), atol=2e-6)


def test_a_field_blends_the_kernels_of_the_nodes():
    height, width = 21, 16
    images = photographs(1, height, width)
    kernels = jax.random.uniform(jax.random.key(1), (1, 3, 2, 5, 5))
    result = np.asarray(blur_field(images, kernels))
    rows, columns = np.arange(height) / math.ceil(height / 2), np.arange(width) / width
    expected = np.zeros((height, width, 3))
    for i in range(3):
        for j in range(2):
            weight = np.maximum(1 - np.abs(rows - i), 0)[:, None] * np.maximum(1 - np.abs(columns - j), 0)
            expected += weight[..., None] * np.asarray(blur(images, kernels[:, i, j])[0])
    np.testing.assert_allclose(result[0], expected, atol=3e-5)


def test_a_field_stands_for_a_rolling_camera():
    # The oracle averages the image moved along every pixel's own path.
    side, cells, roll = 64, 4, 12.0
    image = photographs(1, side, side)
    turn = trajectories(jax.random.key(3), 1, 60, jnp.array([roll]), jnp.array([0.5]), axes=1)[0]
    nodes = np.arange(cells + 1) * (side // cells) - (side - 1) / 2

    def tangents(positions: np.ndarray) -> np.ndarray:
        radius = np.stack(np.meshgrid(positions, positions, indexing="ij"), axis=-1) / np.hypot(side / 2, side / 2)
        return np.stack([-radius[..., 1], radius[..., 0]], axis=-1)

    paths = tangents(nodes)[:, :, None] * turn
    blurred = np.asarray(blur_field(image, splat(paths[None], 17))[0])
    pixels = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"))
    moves = tangents(np.arange(side) - (side - 1) / 2).transpose(2, 0, 1)
    expected = np.mean(
        [
            np.stack(
                [
                    map_coordinates(image[0, ..., c], pixels - moves * float(step), order=1, mode="mirror")
                    for c in range(3)
                ],
                axis=-1,
            )
            for step in turn[:, 0]
        ],
        axis=0,
    )
    error = np.sqrt(((blurred - expected) ** 2).mean())
    assert error < 0.005
    # It is not the same everywhere: the centre stays sharp, unlike the corners.
    assert np.sqrt(((np.asarray(image[0]) - expected) ** 2).mean()) > 5 * error


def test_defocus_blurs_each_pixel_with_its_own_radius():
    images = photographs(1, 24, 40)
    radius = jnp.where(jnp.arange(40) < 20, 2.0, 5.0) * jnp.ones((1, 24, 1))
    result = jax.jit(defocus, static_argnums=(2, 3))(images, radius, 5.0, 6)
    for columns, value in ((slice(0, 20), 2.0), (slice(20, 40), 5.0)):
        expected = blur(images, disc_kernels(jnp.array([value]), 11))
        np.testing.assert_allclose(result[:, :, columns], expected[:, :, columns], atol=2e-6)


def test_defocus_leaves_what_is_in_focus_and_limits_the_radius():
    images = photographs(1, 16, 16)
    np.testing.assert_allclose(defocus(images, jnp.zeros((1, 16, 16)), 4.0), images, atol=1e-6)
    np.testing.assert_array_equal(defocus(images, jnp.ones((1, 16, 16)), 0.0), images)
    far = defocus(images, jnp.full((1, 16, 16), 100.0), 4.0)
    np.testing.assert_allclose(far, blur(images, disc_kernels(jnp.array([4.0]), 9)), atol=1e-6)


def test_defocus_between_two_levels_is_near_the_disc_between():
    images = photographs(1, 48, 48)
    result = defocus(images, jnp.full((1, 48, 48), 3.5), 5.0)
    expected = blur(images, disc_kernels(jnp.array([3.5]), 11))
    assert float(jnp.sqrt(((result - expected) ** 2).mean())) < 0.1 * float((images - expected).std())


def test_the_circle_of_confusion_is_that_of_a_thin_lens():
    focal, aperture, focus = 0.05, 0.05 / 1.8, 3.0
    depth = np.array([0.5, 1.0, 3.0, 10.0, 1e6])
    exact = aperture / 2 * focal * np.abs(depth - focus) / (depth * (focus - focal))
    at_infinity = aperture / 2 * focal / (focus - focal)
    circles = circle_of_confusion(jnp.asarray(depth, jnp.float32)[None, None], focus, at_infinity)
    np.testing.assert_allclose(circles[0, 0], exact, rtol=1e-5, atol=1e-9)
