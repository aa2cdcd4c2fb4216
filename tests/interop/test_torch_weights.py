"""State dicts: names, layouts, and every tensor used once."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

import gamax
from gamax.errors import UserError
from gamax.interop.key_maps import find_key_map
from gamax.interop.torch_weights import from_torch, to_torch
from gamax.models import VARIANTS, abstract_params, create_model

SMALL = {"width": 4, "encoder_blocks": (1, 2), "middle_blocks": 1, "decoder_blocks": (2, 1)}
NAME = "nafnet_sidd_w32"
CONVERTIBLE = [name for name in VARIANTS if find_key_map(create_model(name))]

TENSORS = {"nafnet_sidd_w32": 664, "restormer": 494, "restormer_denoising": 406, "restormer_dual_pixel": 495}
"""Numbers of tensors in the authors' files."""


def shaped_randomly(name: str) -> Any:
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32), abstract_params(create_model(name)))


@pytest.fixture(scope="module")
def params(random_params) -> Any:
    return random_params(create_model(NAME, **SMALL), (1, 8, 8, 3))


@pytest.fixture
def state_dict(params) -> dict[str, np.ndarray]:
    return to_torch(NAME, params, **SMALL)


# The wider twins have the same tensors, four times as large.
@pytest.mark.parametrize("name", [name for name in CONVERTIBLE if not name.endswith("_w64")])
def test_a_round_trip_is_exact_to_the_bit(name):
    params = shaped_randomly(name)
    state_dict = gamax.to_torch(name, params)
    assert len(state_dict) == len(jax.tree.leaves(params)) == TENSORS.get(name, len(state_dict))
    back = gamax.from_torch(name, state_dict)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    for returned, original in zip(jax.tree.leaves(back), jax.tree.leaves(params), strict=True):
        assert returned.dtype == original.dtype
        np.testing.assert_array_equal(returned, original)


def test_the_other_round_trip_is_exact_too(state_dict):
    # The names of the authors' decoder count from the bottom: two levels that differ show a mix-up.
    assert "decoders.0.1.conv1.weight" in state_dict
    assert state_dict["decoders.1.0.conv1.weight"].shape == (8, 4, 1, 1)
    again = to_torch(NAME, from_torch(NAME, state_dict, **SMALL), **SMALL)
    assert list(again) == list(state_dict)
    for name, value in again.items():
        np.testing.assert_array_equal(value, state_dict[name])


def test_tensors_of_pytorch_of_any_precision_are_taken(torch, state_dict):
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        tensors = {name: torch.from_numpy(value).to(dtype).requires_grad_() for name, value in state_dict.items()}
        params = from_torch(NAME, tensors, **SMALL)
        kernel = params["intro"]["kernel"]
        assert kernel.dtype == np.float32
        expected = tensors["intro.weight"].detach().float().numpy().transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(kernel, expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.pop("ending.bias"), r"first 'ending.bias' \(given None, network \(3,\)\)"),
        (lambda tensors: tensors.update(extra=np.zeros(2)), r"first 'extra' \(given \(2,\), network None\)"),
        (lambda tensors: tensors.update({"ending.bias": np.zeros((1, 3))}), r"given \(1, 3\), network \(3,\)"),
    ],
)
def test_every_tensor_is_accounted_for(change, words, state_dict):
    change(state_dict)
    with pytest.raises(UserError, match=words):
        from_torch(NAME, state_dict, **SMALL)


def test_parameters_of_another_network_are_refused(params):
    with pytest.raises(UserError, match=f"do not fit {NAME}: .* of another shape"):
        to_torch(NAME, params)


def test_networks_without_published_code_are_refused():
    for name in ("gama_ir_tiny", "plainnet_sidd_w32", "swintormer_prior_decoder", "vq_small", "ldm_small"):
        with pytest.raises(UserError, match="no published PyTorch code"):
            from_torch(name, {})
