"""What every named network can do, made tiny: one test each, parametrised over the table."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gamax.diffusion.autoencoder import Autoencoder
from gamax.diffusion.denoiser import Denoiser
from gamax.diffusion.latent_diffusion import LatentDiffusion
from gamax.models import VARIANTS, abstract_params, count_parameters, create_model
from gamax.models.dmphn import DMPHN
from gamax.models.gama_ir import GAMAIR
from gamax.models.lir import LIR
from gamax.models.nafnet import NAFNet
from gamax.models.restormer import Restormer
from gamax.models.saphn import SAPHN
from gamax.models.swintormer import Swintormer
from gamax.models.unet import UNet
from gamax.training.step import make_network_loss

SMALL: dict[type[nn.Module], dict[str, Any]] = {
    GAMAIR: {"width": 4, "depth": 4, "levels": 1, "blocks_per_level": 1},
    # Two equal blocks in a row, for loops over them.
    NAFNet: {"width": 4, "encoder_blocks": (2,), "middle_blocks": 1, "decoder_blocks": (1,)},
    Restormer: {"width": 4, "blocks": (2, 0, 0, 1), "refinement_blocks": 0, "heads": (1, 2, 2, 4)},
    UNet: {"width": 2},
    DMPHN: {"widths": (2, 4, 4)},
    SAPHN: {"widths": (2, 4, 4), "levels": (1, 2), "blocks": 1, "kernel_size": 1, "max_offset": 1, "descriptors": 2},
    LIR: {"width": 16, "encoder_blocks": (2, 0), "middle_blocks": 0, "decoder_blocks": (0, 0)},
    Swintormer: {"width": 8, "blocks": (4, 0, 0, 1), "refinement_blocks": 0, "window_size": 2, "heads": (1, 2, 2, 2)},
    Autoencoder: {"width": 8, "multipliers": (1, 1), "blocks": 1, "codes": 8},
}


def small(name: str, **options: Any) -> nn.Module:
    network, inner = VARIANTS[name].network, VARIANTS[name].options.get("network")
    if inner is not None:
        options = {"ratio": 0.1, **options}
    if network is LatentDiffusion:
        # No option changes its parts.
        unet = Denoiser(width=8, head_channels=8, multipliers=(1,), blocks=1, attention_factors=())
        model = create_model(name, steps=2, **options)
        return model.clone(first_stage=Autoencoder(**SMALL[Autoencoder]), unet=unet)
    return create_model(name, **SMALL[network if inner is None else type(inner)], **options)


def first_of_each(kind: Callable[[str], Any]) -> list[str]:
    """The first variant of each kind."""
    return list({kind(name): name for name in reversed(VARIANTS)}.values())[::-1]


DISTINCT = first_of_each(small)
"""All but those that are the same network once made tiny."""
TREES = [
    name
    for name in first_of_each(lambda name: jax.tree.structure(abstract_params(small(name))))
    if name not in ("saphn_attention", "saphn_sampling", "swintormer_prior_decoder")
]
"""All that differ in more than channels, but for three that take long to compile and have the parts of others."""
NETWORKS = first_of_each(lambda name: VARIANTS[name].network)


@pytest.fixture(scope="module")
def example(random_params) -> Callable[[str], tuple[Any, jax.Array]]:
    """Parameters of a small network in which nothing is zero, and two images whose sides nothing divides."""

    @cache
    def make(name: str) -> tuple[Any, jax.Array]:
        model = small(name)
        params = random_params(model, (1, 64, 64, model.input_channels))

        def moderate(path: Any, leaf: jax.Array) -> jax.Array:
            # Small, so that noise stays an image through networks without norms; no dead units behind a ReLU.
            return 0.3 * (jnp.abs(leaf) if path[-1].key == "bias" else leaf)

        params = jax.tree_util.tree_map_with_path(moderate, params)
        images = np.random.default_rng(0).random((2, 21, 13, model.input_channels), np.float32)
        return params, jnp.asarray(images)

    return make


def gradients(model: nn.Module, params: Any, images: jax.Array) -> tuple[jax.Array, Any]:
    """Of the training loss at the end of training."""
    targets, keys = jnp.full((*images.shape[:3], 3), 0.5), jax.random.split(jax.random.key(0), len(images))
    if isinstance(model, Autoencoder | LatentDiffusion):
        # They are trained with crops that need no padding, and to the encoder grey is nothing.
        images = targets = images[:, :20, :12]
    loss = make_network_loss(model, lambda restored, target: jnp.square(restored - target).mean())
    (value, _), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, images, targets, keys, jnp.float32(1))
    return value, grads


@pytest.fixture(scope="module")
def exact_gradients(example) -> Callable[[str], tuple[jax.Array, Any]]:
    """The loss and its gradients in float32, without options."""
    return cache(lambda name: gradients(small(name), *example(name)))


@pytest.mark.parametrize("name", VARIANTS)
def test_it_has_the_parameters_that_its_description_says(name):
    assert count_parameters(abstract_params(create_model(name))) == VARIANTS[name].parameters


@pytest.mark.parametrize("name", DISTINCT)
def test_images_of_any_size_keep_it_in_float32(name, example):
    params, images = example(name)
    model = small(name)
    # A donated input may become the output.
    restore = jax.jit(lambda params, images: model.apply({"params": params}, images), donate_argnums=1)
    for size in (images.shape[1:3], (1, 1)):
        inputs = jnp.array(images[:, : size[0], : size[1]])
        channels = 3 if model.input_channels % 3 == 0 else model.input_channels
        restored = restore(params, inputs)
        assert inputs.is_deleted() == (channels == model.input_channels)
        assert restored.shape == (2, *size, channels)
        assert restored.dtype == jnp.float32
        assert jnp.isfinite(restored).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_one_image_of_a_batch_does_not_touch_another(name, example):
    params, images = example(name)
    restore = jax.jit(lambda images: small(name).apply({"params": params}, images))
    changed = images.at[1].set(0.25)
    np.testing.assert_array_equal(restore(changed)[0], restore(images)[0])


@pytest.mark.parametrize("name", TREES)
def test_gradients_reach_every_parameter_and_bfloat16_is_near(name, example, exact_gradients):
    params, images = example(name)
    loss, exact = exact_gradients(name)
    frozen = getattr(small(name), "frozen_parts", ())
    trained = {part: tree for part, tree in exact.items() if part not in frozen}
    zero = [path for path, leaf in jax.tree_util.tree_leaves_with_path(trained) if not leaf.any()]
    assert zero == []
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(exact))
    rounded_loss, rounded = gradients(small(name, dtype=jnp.bfloat16), params, images)
    assert rounded_loss == pytest.approx(float(loss), rel=0.05)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(rounded))
    cosine = sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(rounded), strict=True))
    norms = [jnp.sqrt(sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(tree))) for tree in (exact, rounded)]
    assert cosine / (norms[0] * norms[1]) > 0.98


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (name, options)
        for name in TREES
        for options in [{option: True for option in ("scan", "remat") if hasattr(small(name), option)}]
        if options
    ],
    ids=str,
)
# tests/blocks/test_repetition.py has recomputation without loops.
def test_loops_and_recomputation_change_no_gradient(name, options, example, exact_gradients):
    params, images = example(name)
    loss, expected = exact_gradients(name)
    other_loss, other = gradients(small(name, **options), params, images)
    assert other_loss == pytest.approx(float(loss), rel=1e-5)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale, rtol=1e-3), other, expected)


def bridged_to_nnx(name: str, params: Any, images: jax.Array) -> nnx.Module:
    # Its own values, which `params` replace, would be computed one operation at a time.
    bridged = nnx.eval_shape(lambda: nnx.bridge.ToNNX(small(name)).lazy_init(images, rngs=jax.random.key(0)))
    state = nnx.state(bridged, nnx.Param)
    assert jax.tree.map(jnp.shape, nnx.to_pure_dict(state)) == jax.tree.map(jnp.shape, params)
    nnx.replace_by_pure_dict(state, params)
    nnx.update(bridged, state)
    return bridged


@pytest.mark.parametrize("name", TREES)
def test_the_bridge_to_nnx_takes_the_parameters(name, example):
    params, images = example(name)
    bridged = bridged_to_nnx(name, params, images)
    expected = jax.eval_shape(small(name).apply, {"params": params}, images)
    assert nnx.eval_shape(lambda network, images: network(images), bridged, images) == expected


# The plainest network, one with attention and one of several networks.
@pytest.mark.parametrize("name", ["gama_ir_tiny", "swintormer", "ldm_bsr"])
def test_the_bridge_to_nnx_gives_the_same_output(name, example):
    params, images = example(name)
    bridged = bridged_to_nnx(name, params, images)
    expected = jax.jit(small(name).apply)({"params": params}, images)
    np.testing.assert_array_equal(nnx.jit(lambda network, images: network(images))(bridged, images), expected)
