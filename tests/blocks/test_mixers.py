from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from gamax.models import abstract_params, create_model

SAPHN = ["efficient_attention", "pixel_dependent_filter", "content_aware"]


@pytest.mark.parametrize("mixer", SAPHN)
def test_the_blocks_of_saphn_learn_in_the_slot_of_nafnet(mixer, random_params):
    options = {"width": 4, "encoder_blocks": (1,), "middle_blocks": 0, "decoder_blocks": (0,)}
    model = create_model("nafnet_sidd_w32", **options, mixer=mixer, dtype=jnp.bfloat16)
    params = random_params(model, (1, 8, 8, 3))
    x = jax.random.uniform(jax.random.key(0), (1, 7, 6, 3))

    @jax.jit
    @jax.grad
    def gradients(params):
        return jnp.square(model.apply({"params": params}, x) - 0.5).mean()

    for leaf in jax.tree.leaves(gradients(params)["encoder_0_0"]["mixing"]):
        assert leaf.dtype == jnp.float32
        assert jnp.isfinite(leaf).all()
        assert leaf.any()


@pytest.mark.parametrize("mixer", SAPHN)
def test_they_have_the_same_parameters_in_the_slot_of_gama_ir(mixer):
    gama_ir = create_model("gama_ir_tiny", width=4, depth=3, levels=1, blocks_per_level=1, mixer=mixer)
    nafnet = create_model("nafnet_sidd_w32", width=4, encoder_blocks=1, middle_blocks=0, decoder_blocks=0, mixer=mixer)
    slots = [abstract_params(model)["encoder_0_0"]["mixing"] for model in (gama_ir, nafnet)]
    assert slots[0] == slots[1]
