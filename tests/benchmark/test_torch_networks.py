"""The PyTorch networks compute what ours do: outputs, gradients, every block, and multiply-adds."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gamax.benchmark.case import random_parameters
from gamax.benchmark.cost import model_multiply_adds
from gamax.benchmark.torch_networks import make_compilable, torch_names, torch_network
from gamax.errors import UserError
from gamax.interop.parity import parity
from gamax.interop.torch_weights import export_tensors
from gamax.models import abstract_params, create_model

NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "gama": ("gama_ir_tiny", {"width": 8, "levels": 2, "depth": 5}),
    "squeeze": ("gama_ir_tiny", {"width": 32, "levels": 1, "depth": 3, "mixer": "squeeze_excite"}),
    "dense": ("gama_ir_tiny", {"width": 8, "levels": 1, "depth": 3, "mixer": "sca", "spatial_conv": "dense"}),
    "unet": ("unet", {"width": 4}),
    "lir": ("lir", {"width": 16, "encoder_blocks": (1, 0), "middle_blocks": 0, "decoder_blocks": (0, 0)}),
    "nafnet": ("nafnet_sidd_w32", {"width": 8, "encoder_blocks": (1,), "middle_blocks": 2, "decoder_blocks": (1,)}),
    "restormer": ("restormer", {"width": 8, "blocks": (1, 1, 1, 1), "refinement_blocks": 1}),
}
LARGE = ("lir", "restormer")
"""Whose gradients take half a minute to compile."""
PLAIN = {"width": 4, "levels": 1, "blocks_per_level": 2, "depth": 6, "mixer": "none"}
HEIGHT, WIDTH = 40, 56


def network_and_parameters(name: str) -> tuple[Any, Any]:
    variant, options = NETWORKS[name]
    model = create_model(variant, **options)

    def kept_alive(path: Any, leaf: np.ndarray) -> np.ndarray:
        # A single hidden unit of a channel attention that its ReLU cuts off would have no gradient to compare.
        return leaf + 1 if jax.tree_util.keystr(path, simple=True, separator="/").endswith("squeeze/bias") else leaf

    return model, jax.tree_util.tree_map_with_path(kept_alive, random_parameters(model))


def worst(ours: Any, theirs: Any) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(ours).max())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else []) for name in NETWORKS]
)
def test_outputs_and_gradients_agree_in_both_memory_formats(name, torch):
    model, params = network_and_parameters(name)
    images, weights = np.random.default_rng(0).random((2, 2, HEIGHT, WIDTH, 3), np.float32) - 0.5

    def weighted_sum(params: Any) -> tuple[jax.Array, jax.Array]:
        output = model.apply({"params": params}, jnp.asarray(images))
        return jnp.vdot(output, weights), output

    gradients, output = jax.jit(jax.grad(weighted_sum, has_aux=True))(params)
    gradients = export_tensors(gradients, torch_names(model))
    change = np.asarray(output) - images
    for layout in (torch.contiguous_format, torch.channels_last):
        twin = torch_network(model, params).to(memory_format=layout)
        assert not twin.training
        inputs = torch.from_numpy(images.transpose(0, 3, 1, 2)).contiguous(memory_format=layout)
        theirs = twin(inputs)
        (theirs * torch.from_numpy(weights.transpose(0, 3, 1, 2))).sum().backward()
        assert worst(change, theirs.detach().numpy().transpose(0, 2, 3, 1) - images) < 1e-4
        assert {each for each, _ in twin.named_parameters()} == gradients.keys()
        for each, parameter in twin.named_parameters():
            difference = parameter.grad.numpy() - gradients[each]
            assert np.linalg.norm(difference) < 1e-3 * np.linalg.norm(gradients[each]), each
        with torch.inference_mode():
            assert worst(change, twin(inputs).numpy().transpose(0, 2, 3, 1) - images) < 1e-4


@pytest.mark.parametrize("name", ["gama", "unet", "lir"])
def test_every_block_agrees(name, torch):
    model, params = network_and_parameters(name)
    rows = dict(parity(model, params, torch_network(model, params), 48, torch_names(model)))
    assert rows.keys() == {*params, "output"}
    assert max(rows.values()) < 1e-4, max(rows.items(), key=lambda row: row[1])


@pytest.mark.parametrize("kernel", ["channel_kernel", "height_kernel", "width_kernel"])
def test_a_transposed_kernel_is_seen_where_it_acts(kernel, torch):
    model, params = network_and_parameters("gama")
    twin = torch_network(model, params)
    with torch.no_grad():
        weight = getattr(twin.bottom_0.mixing, kernel)
        weight.copy_(weight.T.clone())
    rows = parity(model, params, twin, 48, torch_names(model))
    assert next(part for part, difference in rows if difference > 1e-4) == "bottom_0"
    assert rows[-1][1] > 1e-4


@pytest.mark.parametrize(("name", "options"), [*NETWORKS.values(), ("gama_ir_tiny", PLAIN)], ids=[*NETWORKS, "plain"])
def test_multiply_adds_are_those_of_our_counter(name, options, torch):
    from torch.utils.flop_counter import FlopCounterMode

    model = create_model(name, **options)
    twin = torch_network(model, random_parameters(model))
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        twin(torch.zeros(1, 3, 128, 160))
    # Ours blurs by shifting and adding, which does not count.
    blurs = [sum(counts.values()) for part, counts in counter.get_flop_counts().items() if part.endswith(".blur")]
    assert counter.get_total_flops() - sum(blurs) == 2 * model_multiply_adds(model, abstract_params(model), 128, 160)


@pytest.mark.parametrize("name", NETWORKS)
def test_under_autocast_the_images_are_not_rounded(name, torch):
    model, params = network_and_parameters(name)
    twin = torch_network(model, jax.tree.map(np.zeros_like, params))
    images = torch.rand(1, 3, HEIGHT, WIDTH)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        restored = twin(images)
    assert restored.dtype == torch.float32
    assert torch.equal(restored, images)


def test_the_norm_that_compiles_is_the_same_function(torch):
    model, params = network_and_parameters("nafnet")
    plain, compilable = torch_network(model, params), torch_network(model, params)
    make_compilable(compilable)
    assert "LayerNorm2d" not in {type(part).__name__ for part in compilable.modules()}
    assert compilable.state_dict().keys() == plain.state_dict().keys()
    images = torch.rand(1, 3, HEIGHT, WIDTH)
    expected = plain(images)
    result = compilable(images)
    expected.sum().backward()
    result.sum().backward()
    assert torch.allclose(result, expected, atol=1e-5)
    for ours, theirs in zip(compilable.parameters(), plain.parameters(), strict=True):
        assert torch.linalg.norm(ours.grad - theirs.grad) < 1e-4 * torch.linalg.norm(theirs.grad)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        (
            "dmphn_1_2_4",
            {},
            "DMPHN has no counterpart in PyTorch; these have one: GAMAIR, LIR, UNet, NAFNet, Restormer",
        ),
        ("gama_ir_tiny", {"local_window": 64}, "GAMAIR in PyTorch has no option 'local_window'; leave it at None"),
        ("gama_ir_tiny", {"mixer": "non_local"}, "takes the mixer gama, squeeze_excite, sca or none, not 'non_local'"),
        ("unet", {"remat": True}, "UNet in PyTorch has no option 'remat'"),
        ("baseline_sidd_w32", {}, "NAFNet in PyTorch has no option 'block'; leave it at 'naf'"),
    ],
)
def test_what_has_no_counterpart_is_named(name, options, words, torch):
    model = create_model(name, **options)
    with pytest.raises(UserError, match=words):
        torch_network(model, abstract_params(model))
