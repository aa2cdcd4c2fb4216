from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gamax import hosts
from gamax.config import DistributedConfig
from gamax.errors import UserError
from gamax.training.sharding import batch_sharding, make_mesh, state_sharding


def test_one_process_joins_nothing_and_is_the_first():
    hosts.join(DistributedConfig())
    assert (jax.process_count(), hosts.is_first()) == (1, True)
    hosts.wait_for_all("nobody")
    assert hosts.gather_records([{"psnr": 30.0}]) == [{"psnr": 30.0}]


@pytest.mark.parametrize(
    "given", [{"num_processes": 2}, {"coordinator_address": "a:1"}, {"process_id": 0, "num_processes": 2}]
)
def test_incomplete_addresses_are_refused(given):
    with pytest.raises(UserError, match="several processes need all of"):
        hosts.join(DistributedConfig(**given))


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2), (1, 1, 8)])
def test_a_process_with_all_devices_holds_the_whole_batch(shape):
    sharding = batch_sharding(make_mesh(shape))
    rows = hosts.local_rows(sharding, 16)
    assert rows == list(range(16))
    images = np.random.default_rng(0).integers(0, 256, (16, 4, 4, 3), np.uint8)
    placed = hosts.global_batch({"target": images}, sharding, 16, rows)["target"]
    assert placed.sharding == sharding
    np.testing.assert_array_equal(placed, images)


def test_divided_arrays_are_fetched_whole():
    mesh = make_mesh((2, 4, 1))
    params = {"kernel": jnp.arange(2.0**16).reshape(256, 256), "bias": jnp.ones(3)}
    placed = hosts.place(params, state_sharding(mesh, params))
    assert not placed["kernel"].is_fully_replicated
    fetched = hosts.fetch(placed)
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(fetched))
    jax.tree.map(np.testing.assert_array_equal, fetched, params)
