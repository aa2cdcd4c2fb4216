from __future__ import annotations

import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import laplace

import gamax
from gamax.config import LossName
from gamax.errors import UserError
from gamax.training.losses import LOSSES, multi_stage, weighted_sum
from gamax.training.sharding import make_mesh


def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    target = rng.random((3, 13, 14, 3))
    # Errors of very different size in the images of a batch tell a mean of logarithms from a logarithm of means.
    restored = target + rng.normal(size=target.shape) * np.array([0.3, 0.01, 1e-5])[:, None, None, None]
    return restored.astype(np.float32).astype(np.float64), target.astype(np.float32).astype(np.float64)


def laplacians(images: np.ndarray) -> np.ndarray:
    planes = [laplace(images[image, :, :, channel]) for image, channel in np.ndindex(len(images), images.shape[-1])]
    return np.stack(planes)[:, 1:-1, 1:-1]


def fourier(difference: np.ndarray) -> float:
    spectrum = np.fft.fft2(difference, axes=(1, 2))
    return np.mean([abs(spectrum.real), abs(spectrum.imag)])


EXPECTED = {
    "l1": lambda x, y: np.mean(abs(x - y)),
    "mse": lambda x, y: np.mean((x - y) ** 2),
    "charbonnier": lambda x, y: np.mean(np.sqrt((x - y) ** 2 + 1e-6)),
    "psnr": lambda x, y: np.mean([10 * np.log10(np.mean(image**2) + 1e-8) for image in x - y]),
    "edge": lambda x, y: np.mean(np.sqrt((laplacians(x) - laplacians(y)) ** 2 + 1e-6)),
    "frequency": lambda x, y: fourier(x - y),
    "ssim": lambda x, y: 1 - np.mean([gamax.ssim(*images, peak=1) for images in zip(x, y, strict=True)]),
}


def test_every_loss_has_its_name_in_the_configuration():
    assert set(LOSSES) == set(typing.get_args(LossName)) == set(EXPECTED)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("columns", [13, 14])
def test_it_equals_numpy(name, columns):
    restored, target = (images[:, :, :columns] for images in pair())
    result = jax.jit(LOSSES[name])(jnp.asarray(restored, jnp.float32), jnp.asarray(target, jnp.float32))
    assert result == pytest.approx(EXPECTED[name](restored, target), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "floor"),
    [("l1", 0), ("mse", 0), ("charbonnier", 1e-3), ("psnr", -80), ("edge", 1e-3), ("frequency", 0), ("ssim", 0)],
)
def test_equal_images_give_the_floor_and_a_finite_gradient(name, floor):
    target = jnp.full((2, 12, 12, 3), 0.5)
    value, gradient = jax.jit(jax.value_and_grad(LOSSES[name]))(target, target)
    assert value == pytest.approx(floor, rel=1e-6, abs=1e-6)
    assert jnp.isfinite(gradient).all()


def test_the_psnr_loss_is_minus_the_psnr():
    restored, target = jnp.full((1, 2, 2, 3), 0.6), jnp.full((1, 2, 2, 3), 0.5)
    # A difference of a tenth is 20 dB; the 1e-8 in it weigh 4e-6 dB, the float32 difference 1e-5.
    assert LOSSES["psnr"](restored, target) == pytest.approx(-20, abs=2e-5)


def test_a_weighted_sum_is_one():
    restored, target = (jnp.asarray(images, jnp.float32) for images in pair())
    total = weighted_sum({"edge": 0.05, "frequency": 0.1, "charbonnier": 1.0})(restored, target)
    expected = (
        0.05 * EXPECTED["edge"](*pair()) + 0.1 * EXPECTED["frequency"](*pair()) + EXPECTED["charbonnier"](*pair())
    )
    assert total == pytest.approx(expected, rel=1e-5)
    # One loss alone has the very same value.
    np.testing.assert_array_equal(weighted_sum({"psnr": 1.0})(restored, target), LOSSES["psnr"](restored, target))


def scales(count: int = 3) -> tuple[list[np.ndarray], np.ndarray]:
    """Outputs of full, half and quarter height and width, coarse to fine, and their target."""
    rng = np.random.default_rng(1)
    sizes = [(2, 48 >> level, 64 >> level, 3) for level in reversed(range(count))]
    return [rng.random(size, np.float32) for size in sizes], rng.random(sizes[-1], np.float32)


def block_means(target: np.ndarray, size: int) -> np.ndarray:
    result = np.empty((len(target), size, target.shape[2] * size // target.shape[1], 3))
    factor = target.shape[1] // size
    for row, column in np.ndindex(result.shape[1:3]):
        block = target[:, row * factor : (row + 1) * factor, column * factor : (column + 1) * factor]
        result[:, row, column] = block.astype(np.float64).mean((1, 2))
    return result


@pytest.mark.parametrize(("name", "weights"), [("psnr", None), ("charbonnier", [0.5, 2.0, 1.0])])
def test_several_scales_are_summed_against_means_of_blocks(name, weights):
    outputs, target = scales()
    total = jax.jit(lambda outputs, target: multi_stage(LOSSES[name], outputs, target, weights))(outputs, target)
    each = [EXPECTED[name](image.astype(np.float64), block_means(target, image.shape[1])) for image in outputs]
    assert total == pytest.approx(np.dot(weights or [1, 1, 1], each), rel=1e-5)


def test_a_weighted_sum_takes_the_stages_of_a_network():
    (coarse, middle, fine), target = scales()
    losses = {"edge": 0.05, "charbonnier": 1.0}
    step = jax.jit(jax.value_and_grad(weighted_sum(losses)))
    total, gradients = step((fine, coarse, middle, fine), target)
    each = [
        weight * EXPECTED[name](image.astype(np.float64), block_means(target, image.shape[1]))
        for name, weight in losses.items()
        for image in (fine, coarse, middle, fine)
    ]
    assert total == pytest.approx(sum(each), rel=1e-5)
    assert all(jnp.isfinite(gradient).all() and gradient.any() for gradient in gradients)
    np.testing.assert_array_equal(gradients[0], gradients[3])


def test_one_stage_is_the_image_alone():
    restored, target = (jnp.asarray(images, jnp.float32) for images in pair())
    np.testing.assert_array_equal(
        weighted_sum({"psnr": 1.0})([restored], target), weighted_sum({"psnr": 1.0})(restored, target)
    )


@pytest.mark.parametrize(
    "shape", [(2, 48, 64, 1), (1, 48, 64, 3), (2, 24, 64, 3), (2, 20, 32, 3), (2, 96, 128, 3), (2, 0, 64, 3)]
)
def test_outputs_that_are_no_whole_fraction_of_the_target_are_named(shape):
    target = jnp.zeros((2, 48, 64, 3))
    with pytest.raises(UserError, match=r"an output of shape \[.*\] cannot be compared with .* \[2, 48, 64, 3\]"):
        weighted_sum({"l1": 1.0})((target, jnp.zeros(shape)), target)


def test_stages_and_weights_are_counted():
    target = jnp.zeros((1, 4, 4, 3))
    with pytest.raises(UserError, match=r"1 weights were given for 2 stages"):
        multi_stage(LOSSES["l1"], [target, target], target, [1.0])
    with pytest.raises(UserError, match=r"returned no image"):
        weighted_sum({"l1": 1.0})([], target)


@pytest.mark.parametrize(("name", "side"), [("edge", 2), ("ssim", 10)])
def test_crops_that_are_too_small_are_named(name, side):
    images = jnp.zeros((1, side, 20, 3))
    with pytest.raises(UserError, match=f"the loss '{name}' needs crops of at least {side + 1} pixels a side"):
        LOSSES[name](images, images)


@pytest.mark.parametrize("name", ["frequency", "ssim", "edge"])
def test_a_divided_batch_is_not_gathered(name):
    mesh = make_mesh((8, 1, 1))
    placement = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    images = jax.ShapeDtypeStruct((8, 16, 16, 3), jnp.float32, sharding=placement)
    program = jax.jit(jax.grad(LOSSES[name])).lower(images, images).compile().as_text()
    assert "all-gather" not in program
    assert "all-to-all" not in program
