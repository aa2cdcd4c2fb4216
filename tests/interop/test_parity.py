"""Against PyTorch itself, at the published size: whole networks and every block in them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gamax.interop.parity import parity, torch_twin
from gamax.interop.torch_weights import to_torch
from gamax.models import abstract_params, create_model


def well_conditioned(name: str) -> Any:
    """Random parameters that keep the size of what passes through; nothing is zero."""
    rng = np.random.default_rng(0)

    def values(leaf: Any) -> np.ndarray:
        if len(leaf.shape) == 1:
            return rng.normal(0.5, 0.1, leaf.shape).astype(np.float32)
        return (rng.normal(0, 1, leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))).astype(np.float32)

    return jax.tree.map(values, abstract_params(create_model(name)))


@pytest.mark.parametrize(
    "name",
    [
        *("nafnet_sidd_w32", "nafnet_sidd_w64", "nafnet_gopro_w32", "nafnet_gopro_w64"),
        *("restormer", "restormer_denoising", "restormer_dual_pixel"),
    ],
)
def test_every_block_of_the_published_networks_agrees(name, torch):
    params = well_conditioned(name)
    twin = torch_twin(to_torch(name, params))
    rows = dict(parity(create_model(name), params, twin))
    assert rows.keys() == {*params, "output"}
    assert max(rows.values()) < 1e-4, max(rows.items(), key=lambda row: row[1])


def test_a_wrong_weight_is_seen_where_it_acts(torch):
    name = "nafnet_gopro_w32"
    params = well_conditioned(name)
    twin = torch_twin(to_torch(name, params))
    params["down_2"]["bias"][0] += 0.5
    rows = parity(create_model(name), params, twin)
    first = next(part for part, difference in rows if difference > 1e-4)
    assert first == "down_2"


def test_networks_that_spandrel_does_not_have_are_none(torch):
    assert torch_twin({"strange.weight": np.zeros((2, 2), np.float32)}) is None
    # Has names of another network, in other shapes.
    options = {"multipliers": (1, 2), "blocks": 1, "codes": 16}
    shapes = abstract_params(create_model("vq_f4", **options))
    autoencoder = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    assert torch_twin(to_torch("vq_f4", autoencoder, **options)) is None


def test_local_windows_and_loops_are_left_out_of_the_comparison(torch):
    name = "nafnet_gopro_w32"
    params = well_conditioned(name)
    model = create_model(name, local_window=32, scan=True, dtype=jnp.bfloat16)
    rows = dict(parity(model, params, torch_twin(to_torch(name, params)), size=48))
    assert rows.keys() == {*params, "output"}
    assert max(rows.values()) < 1e-4
