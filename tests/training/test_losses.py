from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gamax.training.losses import LOSSES


def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    target = rng.random((3, 4, 5, 3))
    # Errors of very different size in the images of a batch tell a mean of logarithms from a logarithm of means.
    return target + rng.normal(size=target.shape) * np.array([0.3, 0.01, 1e-5])[:, None, None, None], target


EXPECTED = {
    "l1": lambda d: np.mean(abs(d)),
    "mse": lambda d: np.mean(d**2),
    "charbonnier": lambda d: np.mean(np.sqrt(d**2 + 1e-6)),
    "psnr": lambda d: np.mean([10 * np.log10(np.mean(image**2) + 1e-8) for image in d]),
}


@pytest.mark.parametrize("name", LOSSES)
def test_it_equals_numpy(name):
    restored, target = pair()
    expected = EXPECTED[name](restored.astype(np.float32).astype(np.float64) - target.astype(np.float32))
    result = jax.jit(LOSSES[name])(jnp.asarray(restored, jnp.float32), jnp.asarray(target, jnp.float32))
    assert result == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("name", "floor"), [("l1", 0), ("mse", 0), ("charbonnier", 1e-3), ("psnr", -80)])
def test_equal_images_give_the_floor_and_a_finite_gradient(name, floor):
    target = jnp.full((2, 3, 3, 3), 0.5)
    value, gradient = jax.jit(jax.value_and_grad(LOSSES[name]))(target, target)
    assert value == pytest.approx(floor, rel=1e-6)
    assert jnp.isfinite(gradient).all()


def test_the_psnr_loss_is_minus_the_psnr():
    restored, target = jnp.full((1, 2, 2, 3), 0.6), jnp.full((1, 2, 2, 3), 0.5)
    # A difference of a tenth is 20 dB; the 1e-8 in it weigh 4e-6 dB, the float32 difference 1e-5.
    assert LOSSES["psnr"](restored, target) == pytest.approx(-20, abs=2e-5)
