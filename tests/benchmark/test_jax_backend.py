from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gamax.benchmark.case import Case, device_name, images_and_targets, network, random_parameters
from gamax.benchmark.jax_backend import prepare
from gamax.evaluation.restorer import apply_network
from gamax.interop.torch_weights import to_torch

TINY = {"width": 2, "encoder_blocks": (1,), "middle_blocks": 0, "decoder_blocks": (0,)}
CASE = Case("nafnet_sidd_w32", 8, 16, overrides=TINY)


@pytest.fixture(scope="module")
def inferred():
    return prepare(CASE)


@pytest.fixture(scope="module")
def trained():
    return prepare(dataclasses.replace(CASE, task="train", batch=2))


def test_inference_is_the_network(inferred):
    model, (images, _) = network(CASE), images_and_targets(CASE)
    expected = apply_network(model, random_parameters(model), images)
    np.testing.assert_allclose(inferred.outputs["output"], expected, rtol=1e-4, atol=1e-4)
    other, _ = images_and_targets(CASE, 1)
    again = apply_network(model, random_parameters(model), other)
    np.testing.assert_allclose(inferred.call(3), again, rtol=1e-4, atol=1e-4)
    facts = inferred.facts
    assert facts["compile_cold_seconds"] > facts["compile_warm_seconds"] > 0
    assert facts["first_call_ms"] > 0
    assert facts["device"] == device_name()
    assert facts["flags"]["jax_default_matmul_precision"] == "highest"
    assert inferred.peak_memory()["program_bytes"] > images.nbytes


def test_bfloat16_rounds_what_is_computed_and_keeps_parameters(inferred):
    cache = jax.config.jax_compilation_cache_dir
    strict = inferred.outputs["output"]
    rounded = prepare(dataclasses.replace(CASE, precision="bf16")).outputs["output"]
    # The cache of the user is back.
    assert cache == jax.config.jax_compilation_cache_dir
    difference = np.abs(strict - rounded).max() / np.abs(strict).max()
    assert 1e-4 < difference < 0.1
    model = network(dataclasses.replace(CASE, precision="bf16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(random_parameters(model))} == {np.dtype(np.float32)}


def test_a_training_step_has_the_gradient_of_its_loss(trained):
    case = dataclasses.replace(CASE, task="train", batch=2)
    model = network(case)
    images, targets = images_and_targets(case)

    def loss(params):
        return jnp.abs(model.apply({"params": params}, jnp.asarray(images)) - targets).mean()

    value, gradient = jax.jit(jax.value_and_grad(loss))(random_parameters(model))
    assert trained.outputs["loss"] == pytest.approx(float(value), rel=1e-5)
    expected = to_torch(case.model, gradient, **TINY)
    assert set(trained.outputs) == {"output", "loss", *(f"gradient/{name}" for name in expected)}
    for name, array in expected.items():
        found = trained.outputs[f"gradient/{name}"]
        assert found.shape == array.shape
        assert np.linalg.norm(found - array) <= 1e-4 * np.linalg.norm(array)


def test_a_training_step_trains(trained):
    losses = [float(trained.call(0)) for _ in range(20)]
    assert losses[-1] < losses[0]
