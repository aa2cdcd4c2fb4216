from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gamax.benchmark import jax_backend, memory
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
    memory.reset_peak()
    inferred.call(0)
    peak = inferred.peak_memory()
    assert peak["program_bytes"] > images.nbytes
    if "right before" in peak["peak_memory_method"]:
        # What compilers leave is tens of megabytes.
        assert images.nbytes < peak["peak_memory_bytes"] < 6e6


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


@pytest.mark.parametrize(("precision", "words"), [("fp32-strict", "HIGHEST"), ("tf32", "HIGH")])
def test_the_program_itself_names_the_precision(precision, words, monkeypatch):
    class LoweredError(Exception):
        pass

    def only_lower(lower):
        raise LoweredError(lower().as_text())

    monkeypatch.setattr(jax_backend, "_compile", only_lower)
    with pytest.raises(LoweredError) as lowered:
        prepare(dataclasses.replace(CASE, precision=precision))
    assert f"precision = [{words}, {words}]" in str(lowered.value) or f"#stablehlo<precision {words}>" in str(
        lowered.value
    )


def test_a_training_step_has_the_gradient_of_its_loss(trained):
    case = dataclasses.replace(CASE, task="train", batch=2)
    model = network(case)
    images, targets = images_and_targets(case)

    def loss(params):
        return jnp.abs(model.apply({"params": params}, jnp.asarray(images)) - targets).mean()

    value, gradient = jax.jit(jax.value_and_grad(loss))(random_parameters(model))
    assert trained.outputs["loss"] == pytest.approx(float(value), rel=1e-5)
    expected = to_torch(case.model, gradient, **TINY)
    assert set(trained.outputs) == {"output", "loss", "loss_after_update", *(f"gradient/{name}" for name in expected)}
    for name, array in expected.items():
        found = trained.outputs[f"gradient/{name}"]
        assert found.shape == array.shape
        assert np.linalg.norm(found - array) <= 1e-4 * np.linalg.norm(array)


def test_a_training_step_trains(trained):
    # An optimizer that does nothing leaves the very same loss.
    assert trained.outputs["loss_after_update"] < trained.outputs["loss"] * (1 - 1e-5)
    losses = [float(trained.call(0)) for _ in range(20)]
    assert losses[-1] < losses[0]
