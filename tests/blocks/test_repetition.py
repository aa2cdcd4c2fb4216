from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gamax.blocks import Conv, repeat


class Row(nn.Module):
    """Convolutions of two kinds that take turns."""

    count: int
    kinds: int = 1
    scan: bool = False
    remat: bool = False

    @nn.compact
    def __call__(self, x):
        makers = [partial(Conv, 3, 3), partial(Conv, 3, 3, depthwise=True)][: self.kinds]
        return repeat(
            self, makers if self.kinds > 1 else makers[0], self.count, x, "part", scan=self.scan, remat=self.remat
        )


def example() -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).random((1, 4, 5, 3)), jnp.float32)


@pytest.mark.parametrize(("count", "kinds"), [(0, 1), (1, 1), (3, 1), (2, 2), (5, 2)])
@pytest.mark.parametrize(("scan", "remat"), [(True, False), (False, True), (True, True)])
def test_the_result_and_its_gradients_stay_the_same(count, kinds, scan, remat, random_params):
    params = random_params(Row(count, kinds), (1, 4, 5, 3)) if count else {}
    assert list(params) == [f"part_{index}" for index in range(count)]

    def value_and_gradient(**options: bool):
        loss = lambda params: jnp.square(Row(count, kinds, **options).apply({"params": params}, example())).sum()  # noqa: E731
        return jax.jit(jax.value_and_grad(loss))(params)

    results = value_and_gradient(scan=scan, remat=remat)

    # Sums of few large numbers may be small: what is rounded is relative to the large ones.
    def close(a: jax.Array, b: jax.Array) -> None:
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * float(jnp.abs(b).max()))

    jax.tree.map(close, results, value_and_gradient())


@pytest.mark.parametrize(("kinds", "loops", "convolutions"), [(1, 1, 1), (2, 1, 2)])
def test_a_scan_traces_every_kind_of_block_once(kinds, loops, convolutions, random_params):
    params = random_params(Row(5, kinds), (1, 4, 5, 3))
    program = str(jax.make_jaxpr(Row(5, kinds, scan=True).apply)({"params": params}, example()))
    assert program.count("= scan[") == loops
    # What does not make a whole round follows the loop, and its equal convolution is written down once; a depth-wise
    # one stands there as that of other platforms.
    assert program.count("conv_general_dilated[") == convolutions
