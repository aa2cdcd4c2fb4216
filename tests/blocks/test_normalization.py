from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax import lax

from gamax.blocks import LayerNorm


def affine(channels: int) -> dict[str, jnp.ndarray]:
    rng = np.random.default_rng(7)
    return {name: jnp.asarray(rng.normal(1, 0.3, channels), jnp.float32) for name in ("scale", "bias")}


@pytest.mark.parametrize(
    ("mean", "deviation", "tolerance"),
    [
        (0, 1, 1e-5),
        (0, 1e-3, 1e-5),  # variance 1e-6: as large as epsilon
        # 24 additions, each rounding a sum of up to 24,000 to 1e-3, leave the mean good to 1e-3, a hundredth of the
        # deviation. E[x^2] - E[x]^2 in float32 is good to 0.06 only, six times the variance.
        (1000, 0.1, 2e-2),
    ],
)
def test_it_equals_numpy(mean, deviation, tolerance):
    x = np.random.default_rng(0).normal(mean, deviation, (2, 3, 5, 24)).astype(np.float32)
    result = LayerNorm().apply({"params": affine(24)}, jnp.asarray(x))
    np.testing.assert_allclose(result, oracles.layer_norm(x.astype(np.float64), affine(24)), atol=tolerance)


def test_a_constant_pixel_gives_the_bias():
    result = LayerNorm().apply({"params": affine(8)}, jnp.full((1, 2, 2, 8), 0.7))
    # 0.7 less the float32 mean of eight times 0.7, magnified by 1 / sqrt(epsilon) = 1000.
    np.testing.assert_allclose(result, jnp.broadcast_to(affine(8)["bias"], (1, 2, 2, 8)), atol=2e-4)


def test_bfloat16_has_float32_statistics():
    x = jnp.asarray(np.random.default_rng(0).normal(20, 1, (1, 4, 4, 256)), jnp.bfloat16)
    result = LayerNorm(dtype=jnp.bfloat16).apply({"params": affine(256)}, x)
    assert result.dtype == jnp.bfloat16
    expected = oracles.layer_norm(np.asarray(x, np.float64), affine(256))
    # The rounding of the result alone: half a unit in the last of 8 bits. Statistics in bfloat16 are off by 2 %.
    np.testing.assert_allclose(np.asarray(result, np.float64), expected, rtol=1.01 * 2**-8, atol=1e-4)


@pytest.mark.parametrize("formulation", ["chosen for this device", "as on accelerators"])
@pytest.mark.parametrize("bias_free", [False, True])
@pytest.mark.parametrize(("mean", "deviation"), [(0, 1), (10, 1), (0, 1e-3), (0.5, 0)])
def test_gradients_equal_differences_in_float64(mean, deviation, bias_free, formulation, monkeypatch):
    if formulation == "as on accelerators":
        monkeypatch.setattr(lax, "platform_dependent", lambda *arguments, default, **_: default(*arguments))
    rng = np.random.default_rng(0)
    x, grad = rng.normal(mean, deviation, (1, 2, 2, 6)), rng.normal(size=(1, 2, 2, 6))
    scale, bias = rng.normal(1, 0.3, (2, 6))

    def norm(x: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        inverse_deviation = 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        return x * inverse_deviation * scale if bias_free else centred * inverse_deviation * scale + bias

    def differences(which: int) -> np.ndarray:
        arguments, step = [x, scale, bias], 1e-6
        gradient = np.zeros(arguments[which].shape)
        for place in np.ndindex(gradient.shape):
            ends = []
            for sign in (1, -1):
                moved = arguments[which].copy()
                moved[place] += sign * step
                ends.append((norm(*arguments[:which], moved, *arguments[which + 1 :]) * grad).sum())
            gradient[place] = (ends[0] - ends[1]) / (2 * step)
        return gradient

    names = ("scale",) if bias_free else ("scale", "bias")
    params = {name: jnp.asarray(value, jnp.float32) for name, value in zip(names, (scale, bias), strict=False)}
    result, pull_back = jax.vjp(
        lambda params, x: LayerNorm(bias_free=bias_free).apply({"params": params}, x),
        params,
        jnp.asarray(x, jnp.float32),
    )
    ours, ours_x = pull_back(jnp.asarray(grad, jnp.float32))
    # Without any deviation, 1 / sqrt(epsilon) magnifies the rounding of the mean a thousand times.
    tolerance = 1e-3 if deviation == 0 else 2e-5
    for value, expected in (
        (result, norm(x, scale, bias)),
        (ours_x, differences(0)),
        *((ours[name], differences(1 + index)) for index, name in enumerate(names)),
    ):
        np.testing.assert_allclose(value, expected, atol=tolerance * max(abs(expected).max(), 1))
