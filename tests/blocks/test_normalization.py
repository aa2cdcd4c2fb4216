from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import oracles
import pytest

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
