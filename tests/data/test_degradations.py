from __future__ import annotations

import dataclasses
import math
import os
import re
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from PIL import Image
from scipy.ndimage import gaussian_filter

from gamax.data.blur import blur, disc_kernels
from gamax.data.degradations import (
    DEGRADATIONS,
    JPEG,
    DefocusBlur,
    Degradation,
    Downscale,
    GaussianNoise,
    Haze,
    MotionBlur,
    PoissonGaussianNoise,
    RainStreaks,
    degrade,
    haze,
    linear_to_srgb,
    random_depth,
    srgb_to_linear,
)
from gamax.data.jpeg import jpeg
from gamax.errors import UserError

# Every degradation with every option that takes another path.
ALL = [
    GaussianNoise((5.0, 50.0)),
    GaussianNoise((5.0, 50.0), per_channel=True),
    PoissonGaussianNoise(),
    PoissonGaussianNoise((0.001, 0.01), (1e-5, 1e-4), linear_light=False),
    MotionBlur(),
    MotionBlur((0.0, 6.0), spatially_varying=True),
    DefocusBlur(),
    DefocusBlur(depth_varying=True),
    RainStreaks(),
    RainStreaks(blend="add"),
    Haze(),
    JPEG(),
    JPEG(subsample=False),
    JPEG(probability=0.5),
    Downscale(),
]
COMPILED = {degradation: jax.jit(degradation) for degradation in ALL}


def photographs(batch: int, height: int, width: int, channels: int = 3) -> jax.Array:
    """The same random image, with something at every scale, `batch` times."""
    image = jax.random.uniform(jax.random.key(9), (height, width, channels))
    smooth = 0.5 + 0.3 * jnp.sin(jnp.arange(height) / 5)[:, None, None] * jnp.cos(jnp.arange(width) / 7)[:, None]
    return jnp.broadcast_to(0.8 * smooth + 0.2 * image, (batch, height, width, channels))


def identify(degradation: Any) -> str:
    changed = [
        f"{item.name}={getattr(degradation, item.name)}"
        for item in dataclasses.fields(degradation)
        if getattr(degradation, item.name) != item.default
    ]
    return f"{degradation.kind}({', '.join(changed)})"


@pytest.mark.parametrize("degradation", ALL, ids=identify)
def test_each_image_draws_its_own_from_the_key(degradation):
    images = photographs(3, 24, 40)
    run = COMPILED[degradation]
    first, again, other = (run(jax.random.key(seed), images) for seed in (1, 1, 2))
    assert first.dtype == jnp.float32
    assert first.shape == images.shape
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert float(jnp.abs(first - images).max()) > 0.01
    if isinstance(degradation, Downscale | JPEG):
        # Few factors and qualities: two images may draw the same.
        many = run(jax.random.key(1), photographs(12, 24, 40))
        assert len({np.asarray(image).tobytes() for image in many}) > 1
    else:
        assert len({np.asarray(image).tobytes() for image in first}) == 3


@pytest.mark.parametrize("degradation", ALL, ids=identify)
def test_compiled_mapped_and_plain_agree(degradation):
    # JPEG rounds: the smallest difference may become a step of 1/255, or a coefficient of a block, in few pixels.
    allowed = 0.002 if isinstance(degradation, JPEG) else 0
    images, keys = photographs(2, 24, 40), jax.random.split(jax.random.key(5), 2)
    mapped = jax.jit(jax.vmap(degradation))(keys, images[:, None])
    for key, image, result in zip(keys, images, mapped, strict=True):
        for expected in (degradation(key, image[None]), COMPILED[degradation](key, image[None])):
            assert (np.abs(result - expected) > 2e-5).mean() <= allowed


@pytest.mark.parametrize("degradation", ALL, ids=identify)
@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (2, 7, 5, 1), (1, 16, 16, 3)])
def test_small_images_can_be_degraded(degradation, shape):
    # Smaller than the kernels, and grey; tracing finds wrong shapes.
    result = jax.eval_shape(degradation, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))
    assert (result.shape, result.dtype) == (shape, jnp.float32)


@pytest.mark.parametrize("degradation", ALL, ids=identify)
def test_a_patch_smaller_than_the_kernel_stays_finite(degradation):
    result = jax.jit(degradation)(jax.random.key(0), photographs(1, 5, 7))
    assert np.isfinite(result).all()


@pytest.mark.parametrize("degradation", ALL, ids=identify)
def test_the_batch_can_be_divided_among_devices(degradation):
    # Every device degrades its own images and needs nothing of the others.
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    images = photographs(8, 16, 24)
    divided = jax.device_put(images, sharding)
    program = jax.jit(degradation, out_shardings=sharding).lower(jax.random.key(0), divided).compile()
    assert not re.findall(r"all-gather|all-to-all|all-reduce|collective-permute", program.as_text())
    allowed = 0.002 if isinstance(degradation, JPEG) else 0
    result = np.asarray(program(jax.random.key(0), divided))
    assert (np.abs(result - COMPILED[degradation](jax.random.key(0), images)) > 2e-5).mean() <= allowed


@pytest.mark.parametrize("sigma", [15.0, 25.0, 50.0])
def test_noise_has_the_asked_mean_and_deviation(sigma):
    images = jnp.full((4, 64, 64, 3), 0.5)
    noise = np.asarray(jax.jit(GaussianNoise((sigma, sigma)))(jax.random.key(0), images) - images)
    assert noise.dtype == np.float32
    assert abs(noise.mean() * 255) < 0.02 * sigma
    np.testing.assert_allclose(noise.std(axis=(1, 2, 3)) * 255, sigma, rtol=0.03)
    normalised = noise / noise.std()
    assert abs((normalised**3).mean()) < 0.05
    assert abs((normalised**4).mean() - 3) < 0.1


def test_noise_keeps_the_numbers_of_recorded_results():
    # What the results in the repository were trained with, before degradations had settings of their own.
    def recorded(key, images, sigma):
        sigma_key, noise_key = jax.random.split(key)
        scale = jax.random.uniform(sigma_key, (images.shape[0], 1, 1, 1), images.dtype, *sigma) / 255
        return images + scale * jax.random.normal(noise_key, images.shape, images.dtype)

    images, key = photographs(4, 16, 16), jax.random.key(7)
    for sigma in ((25.0, 25.0), (0.0, 50.0)):
        expected = jax.jit(recorded, static_argnums=2)(key, images, sigma)
        np.testing.assert_array_equal(jax.jit(GaussianNoise(sigma))(key, images), expected)
        chain = (GaussianNoise(sigma),)
        np.testing.assert_array_equal(jax.jit(degrade, static_argnums=2)(key, images, chain), expected)


def test_noise_is_white_and_differs_between_images_and_channels():
    noise = GaussianNoise()(jax.random.key(0), jnp.zeros((2, 64, 64, 3))) * 255 / 25
    pairs = [(noise[0], noise[1]), (noise[..., 0], noise[..., 1]), (noise[:, 1:], noise[:, :-1])]
    for left, right in pairs:
        assert abs(float((left * right).mean())) < 0.03


def test_noise_is_not_clipped():
    images = jnp.concatenate([jnp.zeros((1, 32, 32, 3)), jnp.ones((1, 32, 32, 3))])
    noisy = GaussianNoise()(jax.random.key(0), images)
    assert float(noisy.min()) < -0.1
    assert float(noisy.max()) > 1.1


@pytest.mark.parametrize("per_channel", [False, True])
def test_each_image_draws_its_deviation_from_the_range(per_channel):
    noise = GaussianNoise((10.0, 50.0), per_channel)(jax.random.key(0), jnp.zeros((400, 40, 40, 3)))
    deviations = np.asarray(noise).std(axis=(1, 2)) * 255
    # Each is measured from 1600 samples, within about 5 %.
    assert deviations.min() > 9
    assert deviations.max() < 54
    np.testing.assert_allclose(np.quantile(deviations, [0.25, 0.5, 0.75]), [20, 30, 40], atol=4)
    correlation = np.corrcoef(deviations.T)[0, 1:]
    assert (np.abs(correlation) < 0.2 if per_channel else correlation > 0.97).all()


def test_camera_noise_has_a_variance_linear_in_the_light():
    shot, read = 0.01, 4e-4
    steps = jnp.linspace(0, 1, 5)
    images = jnp.broadcast_to(steps[:, None, None, None], (5, 128, 128, 3))
    noisy = PoissonGaussianNoise((shot, shot), (read, read), linear_light=False)(jax.random.key(0), images)
    noise = np.asarray(noisy - images)
    # 49152 samples: each variance is known to 0.6 %.
    np.testing.assert_allclose(noise.var(axis=(1, 2, 3)), shot * steps + read, rtol=0.025)
    np.testing.assert_allclose(noise.mean(axis=(1, 2, 3)), 0, atol=0.002)
    assert abs((noise[..., 0] * noise[..., 1]).mean()) < 0.02 * noise.var()
    assert noisy.min() < 0
    assert noisy.max() > 1


def test_camera_noise_acts_in_linear_light():
    shot, read = 0.004, 1e-4
    images = jnp.full((1, 128, 128, 3), 0.6)
    noisy = PoissonGaussianNoise((shot, shot), (read, read))(jax.random.key(0), images)
    light = np.asarray(srgb_to_linear(noisy))
    expected = ((0.6 + 0.055) / 1.055) ** 2.4
    np.testing.assert_allclose(light.mean(), expected, rtol=0.01)
    np.testing.assert_allclose(light.var(), shot * expected + read, rtol=0.03)


def test_camera_noise_levels_follow_the_measured_regression():
    # Black shows the read noise alone; white adds the shot noise.
    settings = PoissonGaussianNoise(linear_light=False)
    images = jnp.concatenate([jnp.zeros((300, 24, 24, 3)), jnp.ones((300, 24, 24, 3))], axis=2)
    noise = np.asarray(settings(jax.random.key(0), images) - images)
    read = noise[:, :, :24].var(axis=(1, 2, 3))
    shot = noise[:, :, 24:].var(axis=(1, 2, 3)) - read
    log_shot = np.log(shot)
    low, high = (math.log(value) for value in settings.shot)
    np.testing.assert_allclose(
        np.quantile(log_shot, [0.25, 0.75]), [low + (high - low) / 4, high - (high - low) / 4], atol=0.5
    )
    residual = np.log(read) - (2.18 * log_shot + 1.20)
    assert abs(residual.mean()) < 0.05
    # The measurement of both variances adds a little.
    assert 0.24 < residual.std() < 0.32


def test_linear_light_and_back_is_the_same():
    values = jnp.linspace(-0.2, 1.3, 301)
    np.testing.assert_allclose(linear_to_srgb(srgb_to_linear(values)), values, atol=2e-6)
    np.testing.assert_allclose(srgb_to_linear(jnp.array([0.0, 0.5, 1.0])), [0, 0.2140411, 1], rtol=1e-5)


def test_motion_blur_keeps_the_light_and_removes_detail():
    images = jnp.zeros((6, 65, 65, 1)).at[:, 32, 32].set(1)
    kernels = np.asarray(jax.jit(MotionBlur((9.0, 15.0)))(jax.random.key(0), images))[..., 0]
    np.testing.assert_allclose(kernels.sum(axis=(1, 2)), 1, rtol=1e-5)
    assert kernels.min() > -1e-6
    taps = np.arange(65) - 32
    np.testing.assert_allclose(np.einsum("bij,i->b", kernels, taps), 0, atol=1e-3)
    np.testing.assert_allclose(np.einsum("bij,j->b", kernels, taps), 0, atol=1e-3)
    reach = [np.hypot(*(np.argwhere(kernel > 1e-5) - 32).T).max() for kernel in kernels]
    assert min(reach) > 4
    assert max(reach) < 7.5 + math.sqrt(2)


def test_roll_blurs_the_corners_and_spares_the_centre():
    points = [(2, 2), (2, 61), (61, 2), (61, 61), (31, 31)]
    images = jnp.zeros((5, 64, 64, 1))
    for index, (row, column) in enumerate(points):
        images = images.at[index, row, column].set(1)
    roll = MotionBlur((0.0, 0.0), (0.0, 0.0), spatially_varying=True, roll=(16.0, 16.0))
    # One point an image would draw five paths; as channels of one image they share it.
    spread = np.asarray(jax.jit(roll)(jax.random.key(0), images[..., 0].transpose(1, 2, 0)[None]))[0]
    peaks = spread.max(axis=(0, 1))
    assert peaks[4] > 0.6
    assert peaks[:4].max() < 0.2
    # A corner moves at right angles to its radius.
    grid = np.stack(np.meshgrid(np.arange(64), np.arange(64), indexing="ij"), axis=-1)
    middle = spread[..., 4]
    moment = np.einsum("ij,ija,ijb->ab", middle, grid - 31.0, grid - 31.0)
    assert np.trace(moment) < 1
    away = spread[8:56, 8:56, :4].sum(axis=(0, 1)).max()
    assert away < 0.3


def test_defocus_is_a_disc_of_the_asked_radius():
    images = photographs(2, 32, 32)
    result = DefocusBlur((3.0, 3.0))(jax.random.key(0), images)
    np.testing.assert_allclose(result, blur(images, disc_kernels(jnp.array([3.0, 3.0]), 7)), atol=1e-6)


def test_defocus_with_depth_ranges_from_sharp_to_the_radius():
    images = jnp.broadcast_to(jax.random.uniform(jax.random.key(0), (96, 96, 1)), (4, 96, 96, 1))
    result = np.asarray(jax.jit(DefocusBlur((6.0, 6.0), depth_varying=True))(jax.random.key(1), images))
    local = result[:, 3:-3, 3:-3].reshape(4, 9, 10, 9, 10).std(axis=(2, 4))
    sharp = np.asarray(images).std()
    blurred = np.asarray(blur(images, disc_kernels(jnp.full(4, 6.0), 13))).std()
    assert (local.max(axis=(1, 2)) > 0.6 * sharp).all()
    assert (local.min(axis=(1, 2)) < 2 * blurred).all()


@pytest.mark.parametrize("blend", ["screen", "add"])
def test_rain_only_brightens(blend):
    images = jnp.linspace(0, 1, 48)[None, :, None, None] * jnp.ones((4, 48, 64, 3))
    rain = RainStreaks((0.005, 0.005), brightness=(0.4, 0.4), blend=blend)
    streaks = np.asarray(jax.jit(rain)(jax.random.key(0), images) - images)
    assert streaks.min() > -1e-6
    assert streaks.max() > 0.2
    np.testing.assert_allclose(streaks[..., 0], streaks[..., 2], atol=1e-6)
    # Screened, what is bright already has less to gain, and nothing rises above 1.
    dark, bright = streaks[:, :24].mean(), streaks[:, 24:].mean()
    if blend == "screen":
        assert bright < 0.5 * dark
        assert (streaks + np.asarray(images)).max() <= 1 + 1e-6
    else:
        assert 0.7 * dark < bright < 1.4 * dark


def test_rain_follows_its_density_and_brightness():
    def light(density: float, brightness: float) -> float:
        rain = RainStreaks((density,) * 2, (12.0, 12.0), (1.0, 1.0), brightness=(brightness,) * 2, blend="add")
        return float(rain(jax.random.key(0), jnp.zeros((16, 64, 64, 1))).mean())

    # Drops at 1, 2/3 and 1/3 of length, width and brightness, a third each, and mean brightness 3/4: a streak one pixel
    # wide has three quarters of its length plus one pixel; the far ones are dimmer instead of thinner.
    light_of_one = np.mean([0.75 * scale * scale * (0.75 * 12 * scale + 1) for scale in (1, 2 / 3, 1 / 3)])
    for density, brightness in ((0.002, 0.8), (0.008, 0.8), (0.008, 0.2)):
        np.testing.assert_allclose(light(density, brightness), density * brightness * light_of_one, rtol=0.15)
    assert light(0.0, 0.8) < 1e-6


@pytest.mark.parametrize("angle", [-45.0, 0.0, 20.0])
def test_rain_falls_in_the_asked_direction(angle):
    rain = RainStreaks((0.001, 0.001), (30.0, 30.0), (4.0, 4.0), (angle, angle), blend="add")
    streaks = np.asarray(rain(jax.random.key(0), jnp.zeros((8, 64, 64, 1))))[..., 0]
    # Along the streaks the image changes least: the eigenvector of the structure tensor with the smaller eigenvalue.
    # Smoothed, as differences of neighbours are not the same in all directions.
    gradients = np.stack(np.gradient(gaussian_filter(streaks, 2, axes=(1, 2)), axis=(1, 2)))
    _, vectors = np.linalg.eigh(np.einsum("abij,cbij->ac", gradients, gradients))
    row, column = vectors[:, 0]
    assert abs(math.degrees(math.atan(column / row)) - angle) < 2


def test_haze_is_the_scattering_model():
    rng = np.random.default_rng(0)
    images, depth = rng.random((3, 8, 9, 3)), 3 * rng.random((3, 8, 9))
    beta, airlight = rng.random(3), rng.random((3, 3))
    transmission = np.exp(-beta[:, None, None] * depth)[..., None]
    expected = images * transmission + airlight[:, None, None] * (1 - transmission)
    result = jax.jit(haze)(*(jnp.asarray(values, jnp.float32) for values in (images, depth, beta, airlight)))
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_haze_between_nothing_and_everything():
    images = photographs(4, 24, 32)
    np.testing.assert_allclose(Haze((0.0, 0.0))(jax.random.key(0), images), images, atol=1e-6)
    dense = np.asarray(Haze((1e4, 1e4), (0.7, 0.9))(jax.random.key(0), images))
    # All but what is nearest has the colour of the haze, which differs between images, not between channels.
    colours = np.median(dense, axis=(1, 2))
    assert (colours >= 0.7).all()
    assert (colours <= 0.9).all()
    assert np.ptp(colours, axis=1).max() < 1e-6
    assert len(np.unique(colours[:, 0])) == 4
    assert (np.abs(dense - colours[:, None, None]) < 1e-4).mean() > 0.95


def test_haze_keeps_what_is_nearest_and_most_of_the_farthest_is_airlight():
    result = np.asarray(Haze((1.5, 1.5), (0.8, 0.8))(jax.random.key(0), jnp.zeros((8, 48, 48, 1))))
    np.testing.assert_allclose(result.min(axis=(1, 2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(result.max(axis=(1, 2, 3)), 0.8 * (1 - math.exp(-1.5)), rtol=1e-5)


def test_random_depth_is_smooth_and_far_at_the_top():
    depth = np.asarray(random_depth(jax.random.key(0), 50, 64, 96))
    np.testing.assert_allclose(depth.min(axis=(1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(depth.max(axis=(1, 2)), 1, atol=1e-6)
    # Nowhere an edge: neighbours differ by a few times a straight ramp's step at most.
    assert max(np.abs(np.diff(depth, axis=axis)).max() for axis in (1, 2)) < 5 / 64
    assert np.abs(np.diff(depth, n=2, axis=1)).max() < 0.01
    assert depth[:, 0].mean() - depth[:, -1].mean() > 0.4
    assert len({image.tobytes() for image in depth}) == 50


def test_jpeg_draws_every_quality_of_the_range():
    images = photographs(40, 16, 16)
    results = np.asarray(jax.jit(JPEG((20, 23)))(jax.random.key(0), images))
    expected = np.asarray(jpeg(images[:4], jnp.array([20, 21, 22, 23])))
    matches = np.abs(results[:, None] - expected).max(axis=(2, 3, 4)) < 1e-3
    assert matches.any(axis=1).all()
    assert matches.any(axis=0).all()


def test_jpeg_codes_a_share_of_the_images_and_leaves_the_others():
    images = 1.5 * photographs(1000, 8, 8)
    results = np.asarray(jax.jit(JPEG((50, 50), probability=0.25))(jax.random.key(0), images))
    coded = np.asarray(jpeg(images[:1], jnp.array([50])))
    untouched = (results == np.asarray(images)).all(axis=(1, 2, 3))
    assert 200 < (~untouched).sum() < 300
    np.testing.assert_allclose(results[~untouched], np.broadcast_to(coded, results[~untouched].shape), atol=1e-3)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_downscale_is_what_pillow_does(factor):
    images = photographs(2, 36, 48, 1)
    result = np.asarray(Downscale((factor, factor))(jax.random.key(0), images))
    small = Image.fromarray(np.array(images[0, ..., 0])).resize((48 // factor, 36 // factor), Image.Resampling.BICUBIC)
    expected = np.asarray(small.resize((48, 36), Image.Resampling.BICUBIC))
    np.testing.assert_allclose(result[0, ..., 0], expected, atol=1e-5)


def test_downscale_keeps_light_and_place_at_any_size():
    height, width = 29, 41
    constant = jnp.full((1, height, width, 3), 0.3)
    for factor in (2, 3, 4):
        downscale = jax.jit(Downscale((factor, factor)))
        np.testing.assert_allclose(downscale(jax.random.key(0), constant), 0.3, rtol=1e-5)
        # A slow ramp passes unchanged, so nothing is moved; the border sees less of it.
        ramp = jnp.broadcast_to(jnp.linspace(0, 1, width)[:, None], (1, height, width, 3))
        result = downscale(jax.random.key(0), ramp)
        margin = 3 * factor
        np.testing.assert_allclose(result[:, :, margin:-margin], ramp[:, :, margin:-margin], atol=0.002)
    # Factor 1 changes nothing; what is finer than the small image is gone.
    images = photographs(1, height, width)
    np.testing.assert_allclose(Downscale((1, 1))(jax.random.key(0), images), images, atol=1e-6)
    checks = (jnp.indices((32, 32)).sum(axis=0) % 2).astype(jnp.float32)[None, ..., None]
    assert float(Downscale((4, 4))(jax.random.key(0), checks)[:, 8:-8, 8:-8].std()) < 0.01


def test_each_image_draws_its_factor():
    images = photographs(60, 24, 24)
    results = np.asarray(jax.jit(Downscale((2, 4)))(jax.random.key(0), images))
    counts = []
    for factor in (2, 3, 4):
        expected = np.asarray(Downscale((factor, factor))(jax.random.key(0), images[:1]))
        counts.append((np.abs(results - expected).max(axis=(1, 2, 3)) < 1e-5).sum())
    assert sum(counts) == 60
    # 20 each, standard deviation 3.7.
    assert min(counts) > 8


def test_a_chain_applies_all_in_order_with_keys_of_their_own():
    images, key = photographs(2, 24, 24), jax.random.key(3)
    chain = (DefocusBlur((2.0, 2.0)), GaussianNoise((10.0, 10.0)), GaussianNoise((10.0, 10.0)))
    result = jax.jit(degrade, static_argnums=2)(key, images, chain)
    noise = np.asarray(result - blur(images, disc_kernels(jnp.full(2, 2.0), 5))) * 255
    # Two independent draws add their variances; the same draw twice would double the deviation.
    np.testing.assert_allclose(noise.std(), 10 * math.sqrt(2), rtol=0.05)
    np.testing.assert_array_equal(degrade(key, images, ()), images)


def test_every_degradation_has_a_name_and_simple_fields():
    assert set(DEGRADATIONS) == {
        *("gaussian_noise", "poisson_gaussian_noise", "motion_blur", "defocus_blur"),
        *("rain_streaks", "haze", "jpeg", "downscale"),
    }
    assert tuple(DEGRADATIONS.values()) == typing.get_args(Degradation)
    for kind, degradation in DEGRADATIONS.items():
        assert degradation().kind == kind
        assert hash(degradation()) == hash(degradation())


@pytest.mark.parametrize(
    ("make", "field", "limits"),
    [
        (lambda: GaussianNoise((5, 2)), "GaussianNoise.sigma", "of at least 0, not (5, 2)"),
        (lambda: GaussianNoise((-1.0, 2.0)), "GaussianNoise.sigma", "of at least 0"),
        (lambda: GaussianNoise((math.nan, 2.0)), "GaussianNoise.sigma", "of at least 0"),
        (lambda: GaussianNoise((0.0, math.inf)), "GaussianNoise.sigma", "of at least 0"),
        (lambda: PoissonGaussianNoise((0.0, 0.1)), "PoissonGaussianNoise.shot", "above 0"),
        (lambda: PoissonGaussianNoise(read=(0.2, 0.1)), "PoissonGaussianNoise.read", "above 0"),
        (lambda: MotionBlur((-1.0, 5.0)), "MotionBlur.length", "of at least 0"),
        (lambda: MotionBlur(roughness=(0.0, 1.5)), "MotionBlur.roughness", "from 0 to 1"),
        (lambda: MotionBlur(roll=(3.0, 1.0)), "MotionBlur.roll", "of at least 0"),
        (lambda: DefocusBlur((2.0, 1.0)), "DefocusBlur.radius", "of at least 0"),
        (lambda: RainStreaks(density=(0.0, 2.0)), "RainStreaks.density", "from 0 to 1"),
        (lambda: RainStreaks(length=(-1.0, 2.0)), "RainStreaks.length", "of at least 0"),
        (lambda: RainStreaks(width=(-1.0, 2.0)), "RainStreaks.width", "of at least 0"),
        (lambda: RainStreaks(angle=(0.0, 91.0)), "RainStreaks.angle", "from -90 to 90"),
        (lambda: RainStreaks(brightness=(0.0, 1.1)), "RainStreaks.brightness", "from 0 to 1"),
        (lambda: Haze(beta=(-1.0, 1.0)), "Haze.beta", "of at least 0"),
        (lambda: Haze(airlight=(0.9, 1.1)), "Haze.airlight", "from 0 to 1"),
        (lambda: JPEG((0, 50)), "JPEG.quality", "from 1 to 100"),
        (lambda: Downscale((0, 2)), "Downscale.factor", "from 1 to 32"),
    ],
)
def test_values_out_of_range_are_refused(make, field, limits):
    with pytest.raises(UserError) as caught:
        make()
    assert f"{field} must be two ascending values {limits}" in str(caught.value)


@pytest.mark.parametrize("probability", [0, 0.0, -0.5, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(probability):
    with pytest.raises(UserError, match=r"JPEG\.probability must be above 0 and at most 1, not"):
        JPEG(probability=probability)


def test_an_unknown_blend_is_refused():
    with pytest.raises(UserError, match=r"RainStreaks\.blend must be 'screen' or 'add', not 'multiply'"):
        RainStreaks(blend="multiply")


@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_wrong_types_are_left_to_the_configuration(kind):
    for item in dataclasses.fields(DEGRADATIONS[kind]):
        number = () if isinstance(item.default, float) else (25.0,)
        for wrong in (*number, (1.0,), ("a", "b"), [5, 2], None, {}):
            DEGRADATIONS[kind](**{item.name: wrong})


def test_degradations_and_augmentations_need_jax_alone():
    program = (
        "import sys, gamax.data.augmentations, gamax.data.degradations;"
        "print([name for name in ('cv2', 'grain', 'skimage', 'tensorflow_datasets') if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"
