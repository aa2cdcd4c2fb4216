from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from skimage import data

from gamax.errors import UserError
from gamax.evaluation import device_metrics, metrics

SHAPE = (48, 40, 3)


def eight_bit(image: np.ndarray) -> np.ndarray:
    return np.round(np.clip(image, 0, 255)) / np.float32(255)


def hard_pairs() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Float32 images of 8-bit values in which float32 arithmetic is easily wrong, restored and target."""
    rng = np.random.default_rng(0)
    natural, coffee = data.astronaut()[100:148, 200:240], data.coffee()[100:148, 200:240]
    light, black, dark = np.full(SHAPE, 200), np.zeros(SHAPE), rng.integers(0, 4, SHAPE)
    ramp = np.broadcast_to(np.linspace(0, 255, SHAPE[1])[:, np.newaxis], SHAPE)
    one_pixel = light.copy()
    one_pixel[20, 20, 1] += 1
    pairs = {
        "natural": (natural + rng.normal(0, 8, SHAPE), natural),
        "natural, very noisy": (coffee + rng.normal(0, 50, SHAPE), coffee),
        "natural, hardly noisy": (natural + (rng.random(SHAPE) < 0.01), natural),
        "natural and its negative": (255 - natural, natural),
        "flat, one step lighter": (light + 1, light),
        "flat, hardly noisy": (light + rng.normal(0, 1, SHAPE), light),
        "flat, one pixel": (one_pixel, light),
        "black and white": (black + 255, black),
        "black, one step lighter": (black + 1, black),
        "dark": (dark + rng.normal(0, 1, SHAPE), dark),
        "noise": (rng.integers(0, 256, SHAPE), rng.integers(0, 256, SHAPE)),
        "ramp": (ramp + rng.normal(0, 2, SHAPE), ramp),
        "two images": (coffee, natural),
        **{f"equal, {index}": (image, image) for index, image in enumerate((natural, light, dark))},
    }
    return {name: (eight_bit(first), eight_bit(second)) for name, (first, second) in pairs.items()}


PAIRS = hard_pairs()
RESTORED, TARGET = (np.stack(images).astype(np.float32) for images in zip(*PAIRS.values(), strict=True))


def on_the_host(metric: str, restored: np.ndarray, target: np.ndarray, plane: str = "rgb") -> np.ndarray:
    planes = ([metrics.PLANES[plane](image, 1) for image in images] for images in (restored, target))
    return np.array([metrics.METRICS[metric](first, second, 1) for first, second in zip(*planes, strict=True)])


def test_the_names_are_those_of_the_host():
    assert [*device_metrics.METRICS] == [*metrics.METRICS]
    assert [*device_metrics.PLANES] == [*metrics.PLANES]


@pytest.mark.parametrize("metric", metrics.METRICS)
def test_every_device_scores_its_own_images_within_the_stated_bounds(metric):
    by_image = NamedSharding(jax.make_mesh((8,), ("data",)), P("data"))
    images = [jax.device_put(array, by_image) for array in (RESTORED, TARGET)]
    program = jax.jit(device_metrics.METRICS[metric]).lower(*images).compile()
    assert not any(word in program.as_text() for word in ("all-gather", "all-reduce", "all-to-all", "permute"))
    values = program(*images)
    assert values.sharding.is_equivalent_to(by_image, 1)
    assert values.dtype == jnp.float32
    expected = on_the_host(metric, RESTORED, TARGET)
    bounds = {"psnr": 5e-5, "mae": 1e-6 * expected}.get(metric, 2e-6)
    equal = (RESTORED == TARGET).all((1, 2, 3))
    # Exact for equal images, whose PSNR is infinite.
    allowed = np.where(equal, 0, bounds)
    errors = np.abs(np.where(values == expected, 0, values - expected))
    assert equal.sum() == 3
    assert (errors <= allowed).all(), dict(zip(PAIRS, errors.tolist(), strict=True))


@pytest.mark.parametrize("plane", ["y-studio", "y-studio-rounded", "y-full-range"])
def test_the_stated_bound_of_luma_holds(plane):
    luma = jax.jit(device_metrics.PLANES[plane])
    expected = on_the_host("psnr", RESTORED, TARGET, plane)
    below = expected < 60
    assert below.sum() >= 8
    values = device_metrics.psnr(luma(RESTORED), luma(TARGET))
    np.testing.assert_allclose(values[below], expected[below], rtol=0, atol=1e-3)
    for image in (*RESTORED, *TARGET):
        np.testing.assert_allclose(luma(image[np.newaxis])[0], metrics.PLANES[plane](image, 1), rtol=0, atol=2e-7)


def test_images_are_reduced_before_ssim():
    rng = np.random.default_rng(0)
    # Reduced by 2, to parts that share pixels.
    target = rng.random((1, 385, 387, 1), np.float32)
    restored = np.clip(target + 0.3 * rng.standard_normal(target.shape, np.float32), 0, 1)
    value = jax.jit(device_metrics.ssim_downsampled)(restored, target)
    np.testing.assert_allclose(value, on_the_host("ssim-wang-downsampled", restored, target), rtol=0, atol=2e-6)


def test_lower_precision_is_widened_first():
    restored, target = (jnp.asarray(array[:2], jnp.bfloat16) for array in (RESTORED, TARGET))
    expected = on_the_host("psnr", *(np.asarray(array, np.float32) for array in (restored, target)))
    np.testing.assert_allclose(device_metrics.psnr(restored, target), expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize("metric", ["psnr", "mae", "ssim-2d-replicate", "ssim-uniform-7x7"])
def test_gradients_are_those_of_the_host(metric):
    rng = np.random.default_rng(0)
    target, direction = rng.random((1, 13, 12, 2), np.float32), rng.standard_normal((1, 13, 12, 2))
    restored = np.clip(target + 0.1 * rng.standard_normal(target.shape, np.float32), 0, 1)
    gradient = jax.jit(jax.grad(lambda images: device_metrics.METRICS[metric](images, target).sum()))(restored)
    step = 1e-6 * direction
    above, below = (on_the_host(metric, restored + sign * step, target)[0] for sign in (1, -1))
    assert (gradient * direction).sum() == pytest.approx((above - below) / 2e-6, rel=1e-3)


@pytest.mark.parametrize("metric", ["psnr", "ssim-uniform-7x7"])
def test_vmap_adds_an_axis(metric):
    grouped = [array.reshape(2, 8, *SHAPE) for array in (RESTORED, TARGET)]
    values = jax.jit(jax.vmap(device_metrics.METRICS[metric]))(*grouped)
    np.testing.assert_allclose(values.ravel(), on_the_host(metric, RESTORED, TARGET), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("metric", metrics.METRICS)
def test_images_that_cannot_be_compared_are_refused(metric):
    with pytest.raises(UserError, match=r"\(1, 12, 12, 3\) and \(1, 12, 12, 1\)"):
        device_metrics.METRICS[metric](jnp.ones((1, 12, 12, 3)), jnp.ones((1, 12, 12, 1)))
    side = metrics.SMALLEST_SIDE[metric]
    if side > 1:
        with pytest.raises(UserError, match=f"at least {side} pixels a side, not {side - 1}x12"):
            device_metrics.METRICS[metric](jnp.ones((1, side - 1, 12, 3)), jnp.ones((1, side - 1, 12, 3)))
    else:
        assert math.isfinite(device_metrics.METRICS[metric](jnp.ones((1, 1, 2, 3)), jnp.zeros((1, 1, 2, 3)))[0])


@pytest.mark.parametrize("plane", [name for name in metrics.PLANES if name != "rgb"])
def test_planes_of_other_channels_are_refused(plane):
    channels = 3 if plane == "gray" else 1
    with pytest.raises(UserError, match=rf"the images are \(1, 2, 2, {channels}\)"):
        device_metrics.PLANES[plane](jnp.ones((1, 2, 2, channels)))
