"""PyTorch prepared for timing: the same outputs as ours, and facts that say what was measured."""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gamax.benchmark import memory
from gamax.benchmark.case import Case, device_name, images_and_targets, network, random_parameters
from gamax.benchmark.torch_networks import torch_names
from gamax.errors import UserError
from gamax.interop.torch_weights import export_tensors

TINY: dict[str, Any] = {"width": 4, "levels": 1, "depth": 3}


def tiny_case(**fields: Any) -> Case:
    return Case("gama_ir_tiny", 20, 24, **{"backend": "torch-eager", "batch": 2, "overrides": TINY, **fields})


def check_output(case: Case, output: np.ndarray, bound: float) -> None:
    model = network(tiny_case())
    images, _ = images_and_targets(case)
    expected = jax.jit(model.apply)({"params": random_parameters(model)}, jnp.asarray(images))
    change = np.asarray(expected) - images
    assert output.shape == images.shape
    assert output.dtype == np.float32
    assert np.abs(output - expected).max() < bound * np.abs(change).max()


@pytest.mark.parametrize("backend", ["torch-eager", "torch-eager-channels-last"])
def test_inference_gives_our_output_and_says_what_it_measured(backend, torch):
    from gamax.benchmark.torch_backend import prepare

    case = tiny_case(backend=backend)
    prepared = prepare(case)
    assert prepared.outputs.keys() == {"output"}
    check_output(case, prepared.outputs["output"], 1e-4)
    memory.reset_peak()
    for number in range(3):
        prepared.call(number)
    facts = prepared.facts
    assert (facts["compile_cold_seconds"], facts["compile_warm_seconds"]) == (None, None)
    assert facts["first_call_ms"] > 0
    assert facts["device"] == device_name(torch.cuda.get_device_name() if torch.cuda.is_available() else None)
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["threads"] == torch.get_num_threads()
    assert facts["memory_format"] == ("contiguous_format" if backend == "torch-eager" else "channels_last")
    assert (facts["flags"]["cudnn.allow_tf32"], facts["flags"]["float32_matmul_precision"]) == (False, "highest")
    peak = prepared.peak_memory()
    assert peak["peak_memory_bytes"] > 0
    if "right before" in peak["peak_memory_method"]:
        assert peak["peak_memory_bytes"] < 4e6


def test_a_training_step_has_our_loss_and_gradients(torch):
    from gamax.benchmark.torch_backend import prepare

    case = tiny_case(task="train", backend="torch-eager-channels-last")
    prepared = prepare(case)
    model = network(case)
    params = random_parameters(model)
    images, targets = images_and_targets(case)

    def mean_difference(params: Any) -> jax.Array:
        return jnp.mean(jnp.abs(model.apply({"params": params}, jnp.asarray(images)) - targets))

    gradients = export_tensors(jax.jit(jax.grad(mean_difference))(params), torch_names(model))
    assert prepared.outputs.keys() == {
        "output",
        "loss",
        "loss_after_update",
        *(f"gradient/{name}" for name in gradients),
    }
    check_output(case, prepared.outputs["output"], 1e-4)
    # In float64: how a program adds up in float32 shows in the sixth digit.
    loss = np.abs(prepared.outputs["output"].astype(np.float64) - targets).mean()
    assert float(prepared.outputs["loss"]) == pytest.approx(loss, rel=1e-6)
    for name, gradient in gradients.items():
        theirs = prepared.outputs[f"gradient/{name}"]
        assert theirs.shape == gradient.shape
        assert np.linalg.norm(theirs - gradient) < 1e-3 * np.linalg.norm(gradient), name
    # An optimizer that does nothing leaves the very same loss.
    assert prepared.outputs["loss_after_update"] < prepared.outputs["loss"] * (1 - 1e-5)
    prepared.call(0)


def test_bfloat16_rounds_products_alone(torch):
    from gamax.benchmark.torch_backend import prepare

    case = tiny_case(precision="bf16")
    prepared = prepare(case)
    assert prepared.facts["autocast"] == "bfloat16"
    check_output(case, prepared.outputs["output"], 0.05)


def test_a_size_that_the_authors_code_cannot_take_is_named(torch):
    from gamax.benchmark.torch_backend import prepare

    with pytest.raises(UserError, match="Restormer in PyTorch takes sides that 8 divides, not 64x60"):
        prepare(Case("restormer", 64, 60, backend="torch-eager"))


def test_a_network_that_cannot_be_compiled_says_why(torch, monkeypatch):
    from gamax.benchmark.torch_backend import prepare

    def without_compiler(*_: Any, **__: Any) -> Any:
        raise torch._inductor.exc.InvalidCxxCompiler

    monkeypatch.setattr(torch._inductor.cpp_builder, "get_cpp_compiler", without_compiler)
    before = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    with pytest.raises(UserError, match=r"torch\.compile cannot compile this network here: .*C\+\+"):
        prepare(tiny_case(backend="torch-compile"))
    assert os.environ.get("TORCHINDUCTOR_CACHE_DIR") == before


@pytest.mark.slow
@pytest.mark.parametrize("task", ["infer", "train"])
def test_a_compiled_network_gives_the_same_and_its_cache_helps(task, torch):
    from gamax.benchmark.torch_backend import prepare

    case = tiny_case(backend="torch-compile", task=task)
    prepared = prepare(case)
    eager = prepare(tiny_case(task=task))
    check_output(case, prepared.outputs["output"], 1e-4)
    assert prepared.outputs.keys() == eager.outputs.keys()
    for name, value in eager.outputs.items():
        assert np.linalg.norm(prepared.outputs[name] - value) < 1e-3 * np.linalg.norm(value), name
    assert prepared.facts["compile_mode"] == "default"
    assert prepared.facts["compile_cold_seconds"] > prepared.facts["compile_warm_seconds"] > 0
