"""Options of networks that wrap another one; those of every other network are tested with it."""

from __future__ import annotations

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
import pytest
from jax.typing import DTypeLike

from gamax.errors import UserError
from gamax.models import VARIANTS, Variant, create_model
from gamax.models.nafnet import NAFNet


class Twice(nn.Module):
    """Applies a network as often as it is told."""

    network: nn.Module
    width: int = 7
    stages: int = 2
    policy: Literal["learned", "uniform"] = "learned"
    dtype: DTypeLike = jnp.float32

    def __call__(self, images: Any) -> Any:
        for _ in range(self.stages):
            images = self.network(images)
        return images


@pytest.fixture(autouse=True)
def variant(monkeypatch):
    inner = NAFNet(4, (1, 1), 1, (1, 1))
    options = {"network": inner, "stages": 3}
    monkeypatch.setitem(VARIANTS, "twice", Variant(Twice, options, "0000.00000", "reconstruction", "a test", 0))


def test_each_network_takes_the_options_that_are_its_own():
    assert create_model("twice") == Twice(NAFNet(4, (1, 1), 1, (1, 1)), stages=3)
    model = create_model("twice", stages=1, policy="uniform", encoder_blocks=(2,), decoder_blocks=[0], mixer="gama")
    assert model == Twice(NAFNet(4, (2,), 1, (0,), mixer="gama"), stages=1, policy="uniform")
    # What both have is the wrapper's, but for the dtypes.
    model = create_model("twice", width=9, dtype="bfloat16", param_dtype=jnp.bfloat16)
    assert (model.width, model.network.width) == (9, 4)
    assert {model.dtype, model.network.dtype, model.network.param_dtype} == {jnp.dtype(jnp.bfloat16)}
    assert create_model("twice").network.dtype == jnp.float32


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stagse": 1}, r"twice has no option 'stagse' \(did you mean 'stages'\?\)"),
        ({"encoder_block": (1,)}, r"twice has no option 'encoder_block' \(did you mean 'encoder_blocks'\?\)"),
        ({"network": "gama_ir_tiny"}, "twice has no option 'network'"),
        ({"policy": "learnd"}, r"unknown policy 'learnd' \(did you mean 'learned'\?\)"),
        ({"policy": ["learned"]}, r"unknown policy"),
        ({"stages": 1.5}, "option 'stages' of twice must be of type int, not 1.5"),
        ({"middle_blocks": "1"}, "option 'middle_blocks' of twice must be of type int"),
        ({"encoder_blocks": "1;2"}, "option 'encoder_blocks' of twice must be several whole numbers such as 1,2"),
        ({"mixer": "gamma"}, "did you mean 'gama'"),
    ],
)
def test_what_neither_network_takes_is_named(options, words):
    with pytest.raises(UserError, match=words):
        create_model("twice", **options)
