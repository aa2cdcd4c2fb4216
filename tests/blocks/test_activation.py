from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gamax.blocks.activation import gelu


@pytest.mark.parametrize(("dtype", "rtol"), [(jnp.float32, 0), (jnp.bfloat16, 2**-8)])
def test_gelu_and_its_gradient_are_exact_up_to_rounding(dtype, rtol):
    x = jnp.linspace(-9, 9, 181).astype(dtype)
    exact = np.asarray(x, np.float64)
    phi = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in exact])
    density = np.exp(-0.5 * exact**2) / math.sqrt(2 * math.pi)
    value, gradient = jax.vmap(jax.value_and_grad(gelu))(x)
    assert value.dtype == gradient.dtype == dtype
    np.testing.assert_allclose(np.asarray(value, np.float64), exact * phi, rtol=rtol, atol=1e-6)
    np.testing.assert_allclose(np.asarray(gradient, np.float64), phi + exact * density, rtol=rtol, atol=1e-6)
