from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import official
import pytest
from jax.typing import DTypeLike

from gamax.benchmark.cost import multiply_adds
from gamax.blocks import Conv, pad_to_multiple
from gamax.blocks.resampling import pixel_shuffle, pixel_unshuffle
from gamax.config import DataConfig, Experiment, TrainingConfig
from gamax.errors import UserError
from gamax.interop.key_maps import key_map
from gamax.interop.torch_weights import torch_shapes
from gamax.models import abstract_params, count_parameters, create_model
from gamax.models.swintormer import Swintormer
from gamax.training.state import initial_state
from gamax.training.step import make_train_step

SMALL = {"width": 8, "blocks": (0, 0, 0, 2), "refinement_blocks": 0, "window_size": 2}


def shapes(model: Swintormer, size: int = 256) -> tuple[Any, jax.ShapeDtypeStruct]:
    images = jax.ShapeDtypeStruct((1, size, size, model.input_channels), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)["params"], images


def test_it_reproduces_the_official_network(shared_folder):
    config, tensors = official.load(shared_folder / "fixtures/swintormer/swintormer_dim16.safetensors")
    model = Swintormer(
        width=config["dim"],
        blocks=tuple(config["num_blocks"]),
        refinement_blocks=config["num_refinement_blocks"],
        heads=tuple(config["heads"]),
        expansion=config["ffn_expansion_factor"],
        window_size=config["window_size"],
        dual_pixel=config["inp_channels"] == 6,
    )
    official.check(model, tensors, 1e-4)


def test_the_published_network_has_its_parameters_part_by_part():
    params, _ = shapes(Swintormer(dual_pixel=True))
    parts: dict[str, int] = {}
    for name, value in params.items():
        # Blocks have two numbers, `encoder_0_1`, or follow a word.
        row = name.rsplit("_", 1)[0] if name.count("_") == 2 or name.startswith(("bottom", "refinement")) else name
        parts[row] = parts.get(row, 0) + count_parameters(value)
    assert parts == {
        "embed": 10_368,
        "encoder_0": 62_082,
        "encoder_1": 463_368,
        "encoder_2": 2_704_536,
        "bottom": 14_268_480,
        "decoder_2": 2_704_536,
        "decoder_1": 463_368,
        "decoder_0": 230_658,
        "refinement": 461_316,
        "down_0": 10_368,
        "down_1": 41_472,
        "down_2": 165_888,
        "up_2": 2_654_208,
        "up_1": 663_552,
        "up_0": 165_888,
        "reduce_2": 73_728,
        "reduce_1": 18_432,
        "skip": 4_608,
        "output": 10_368,
    }
    assert sum(parts.values()) == 25_177_224


@pytest.mark.parametrize(
    ("dual_pixel", "prior", "channels", "parameters"),
    [(False, False, 3, 25_172_040), (False, True, 6, 25_177_224), (True, True, 9, 25_182_408)],
)
def test_other_inputs_change_the_first_convolution_alone(dual_pixel, prior, channels, parameters):
    model = Swintormer(dual_pixel=dual_pixel, prior=prior)
    params, _ = shapes(model)
    assert model.input_channels == channels
    assert params["embed"]["kernel"].shape == (3, 3, 4 * channels, 48)
    assert count_parameters(params) == parameters


@pytest.mark.parametrize(
    ("size", "window_size", "expected"), [(256, 16, 33.15), (128, 8, 7.46)], ids=["release", "half-the-window"]
)
def test_it_has_the_multiply_adds_of_the_release(size, window_size, expected):
    model = Swintormer(dual_pixel=True, window_size=window_size)
    params, images = shapes(model, size)
    count = multiply_adds(lambda params, images: model.apply({"params": params}, images), params, images)
    assert count / 1e9 == pytest.approx(expected, abs=0.006)


def test_the_state_dict_has_the_documented_tensors():
    model = Swintormer(dual_pixel=True)
    tensors = torch_shapes(shapes(model)[0], key_map(model))
    assert len(tensors) == 479
    expected = {
        "patch_embed.proj2.weight": (48, 24, 3, 3),
        "encoder_level1.0.attn.qkv.weight": (144, 48, 1, 1),
        "encoder_level2.3.attn.qkv_dwconv.weight": (288, 1, 3, 3),
        "encoder_level3.5.norm1.body.bias": (192,),
        "latent.7.attn.logit_scale": (8, 1, 1),
        "latent.0.attn.cpb_mlp.0.weight": (512, 2),
        "latent.0.attn.cpb_mlp.0.bias": (512,),
        "latent.0.attn.cpb_mlp.2.weight": (8, 512),
        "decoder_level3.0.attn.project_out.weight": (192, 192, 1, 1),
        "decoder_level2.0.ffn.project_in.weight": (510, 96, 1, 1),
        "decoder_level1.1.ffn.project_out.weight": (96, 255, 1, 1),
        "refinement.3.norm2.body.weight": (96,),
        "down3_4.body.0.weight": (96, 192, 3, 3),
        "up2_1.body.0.weight": (192, 96, 3, 3),
        "reduce_chan_level3.weight": (192, 384, 1, 1),
        "skip_conv.weight": (96, 48, 1, 1),
        "output.0.weight": (12, 96, 3, 3),
    }
    assert {name: tensors.get(name) for name in expected} == expected


def test_the_residual_is_that_of_the_first_view(random_params):
    model = Swintormer(**SMALL, dual_pixel=True, prior=True)
    params = random_params(model, (1, 32, 32, 9))
    params["output"]["kernel"] *= 0
    x = jnp.asarray(np.random.default_rng(0).random((1, 20, 32, 9)), jnp.float32)
    np.testing.assert_array_equal(jax.jit(model.apply)({"params": params}, x), x[..., :3])


class Enlarge(nn.Module):
    """Stands in for a decoder: four times the sides, every pixel for itself."""

    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, latents: Any) -> Any:
        return pixel_shuffle(Conv(48, 1)(latents), 4)


def test_the_prior_may_be_decoded_square_by_square(random_params):
    model = Swintormer(**SMALL, prior=True, prior_decoder=Enlarge())
    params = random_params(model, (1, 32, 32, 6))
    assert set(params) - set(random_params(Swintormer(**SMALL, prior=True), (1, 32, 32, 6))) == {"prior_decoder"}
    assert params["embed"]["kernel"].shape == (3, 3, 24 + 192, 8)
    latents = jnp.asarray(np.random.default_rng(0).random((2, 64, 96, 3)), jnp.float32)
    whole: Any = Enlarge().apply({"params": params["prior_decoder"]}, latents)
    decoded: Any = model.apply({"params": params}, latents, method="_decoded")
    np.testing.assert_allclose(decoded, pixel_unshuffle(whole, 8), atol=1e-6)


@pytest.mark.parametrize("frozen", [(), ("prior_decoder",)])
def test_the_decoder_of_the_prior_is_trained_unless_it_is_frozen(frozen):
    # `remat` computes the decoder again for its gradient.
    options = {**SMALL, "blocks": (0, 0, 0, 0), "prior": True, "remat": True}
    model = Swintormer(**options, prior_decoder=Enlarge())
    data = DataConfig(dataset="paired_folder", patch_size=32, augment=False)
    experiment = Experiment(data=data, training=TrainingConfig(steps=2, loss="mse", frozen=frozen))
    rng = np.random.default_rng(0)
    batch = {
        name: rng.integers(0, 256, (1, 32, 32, channels), np.uint8)
        for name, channels in {"input": 6, "target": 3}.items()
    }
    before = initial_state(model, experiment)
    after, metrics = jax.jit(make_train_step(model, experiment))(before, batch)
    assert np.isfinite(metrics["loss"])
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), after.params, before.params)
    assert all(jax.tree.leaves(changed["embed"]))
    assert set(jax.tree.leaves(changed["prior_decoder"])) == {not frozen}


def test_the_decoder_of_the_prior_is_that_of_an_autoencoder():
    model = create_model("swintormer_prior_decoder", **SMALL, dtype=jnp.bfloat16)
    decoder = jax.tree.map(lambda leaf: leaf.shape, abstract_params(create_model("vq_small"))["decoder"])
    assert jax.tree.map(lambda leaf: leaf.shape, shapes(model, 32)[0]["prior_decoder"]) == decoder
    assert model.prior_decoder.dtype == jnp.bfloat16
    with pytest.raises(UserError, match="swintormer has no option 'prior_decoder'"):
        create_model("swintormer", prior_decoder=Enlarge())


def test_images_are_padded_by_reflection_and_cropped_back(random_params):
    model = Swintormer(**SMALL)
    params = random_params(model, (1, 32, 32, 3))
    x = jnp.asarray(np.random.default_rng(0).random((2, 21, 40, 3)), jnp.float32)
    padded = pad_to_multiple(x, 32)
    assert padded.shape == (2, 32, 64, 3)
    expected = jax.jit(model.apply)({"params": params}, padded)[:, :21, :40]
    np.testing.assert_allclose(jax.jit(model.apply)({"params": params}, x), expected, atol=1e-5)


def test_the_last_convolution_starts_as_pytorch_has_it():
    model = Swintormer(width=8, blocks=(0, 0, 0, 0), refinement_blocks=0, window_size=2)
    params = jax.jit(model.lazy_init)(jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))["params"]
    assert np.std(params["embed"]["kernel"]) == pytest.approx(0.02, rel=0.1)
    bound = 1 / np.sqrt(9 * 16)
    assert np.abs(params["output"]["kernel"]).max() == pytest.approx(bound, rel=0.02)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"blocks": (1, 2, 3)}, "four levels"),
        ({"heads": (1, 2)}, "four levels"),
        ({"refinement_blocks": -1}, "must not be negative"),
        ({"heads": (0, 1, 1, 1)}, "be at least 1"),
        ({"heads": (1, 2, 4, 7)}, "half its heads divide on every level"),
        ({"width": 48, "heads": (1, 2, 4, 144)}, "half its heads divide on every level"),
        ({"width": 3, "heads": (1, 1, 1, 1)}, "even width"),
        ({"expansion": 0.01}, "leave a hidden channel"),
        ({"expansion": float("nan")}, "leave a hidden channel"),
        ({"window_size": 7}, "even and at least 2"),
        ({"window_size": 0}, "even and at least 2"),
        ({"prior_decoder": Enlarge()}, "decodes its prior: set prior=True"),
    ],
)
def test_what_cannot_be_built_is_named(options, words):
    with pytest.raises(UserError, match=words):
        Swintormer(**options)


@pytest.mark.parametrize(("dual_pixel", "prior", "channels"), [(False, False, 6), (True, False, 3), (True, True, 6)])
def test_images_of_another_number_of_channels_are_refused(dual_pixel, prior, channels):
    model = Swintormer(**SMALL, dual_pixel=dual_pixel, prior=prior)
    with pytest.raises(UserError, match=rf"takes images of {model.input_channels} channels .*, not {channels}"):
        jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, channels), jnp.float32))
