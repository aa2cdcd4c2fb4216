"""Latent diffusion against PyTorch: the layout of the published checkpoints, and every network against diffusers."""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import sys
import types
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gamax.diffusion.autoencoder import Autoencoder
from gamax.diffusion.ddim import ddim_schedule, ddim_step, sampling_times, signal_powers
from gamax.diffusion.denoiser import Denoiser
from gamax.diffusion.latent_diffusion import LatentDiffusion
from gamax.errors import UserError
from gamax.interop.convert import convert_file
from gamax.interop.key_maps import find_key_map, key_map
from gamax.interop.parity import _make_torchvision_importable
from gamax.interop.torch_weights import export_tensors, import_tensors, torch_shapes
from gamax.interop.weights import load_weights
from gamax.models import VARIANTS, Variant, abstract_params, count_parameters, create_model

Shapes = dict[str, tuple[int, ...]]

AUTOENCODER = Autoencoder(width=128, multipliers=(1, 2), blocks=1, codes=16)
SMALL = LatentDiffusion(AUTOENCODER, Denoiser(width=128, multipliers=(1, 2), blocks=1, attention_factors=(2,)))


@pytest.fixture(scope="module")
def diffusers(torch) -> Any:
    """The PyTorch library, whose networks, schedulers and conversions are nobody's of ours."""
    if not importlib.util.find_spec("diffusers") and not os.environ.get("GAMAX_REQUIRE_ORACLES"):
        pytest.skip("without diffusers: install the extra 'torch'")
    _make_torchvision_importable(torch)
    return importlib.import_module("diffusers")


def random_tree(abstract: Any) -> Any:
    """Parameters that keep the size of what passes through; nothing is zero."""
    rng = np.random.default_rng(0)

    def values(path: Any, leaf: Any) -> jax.Array:
        mean = 1 if path[-1].key == "scale" else 0
        deviation = 1 / math.sqrt(math.prod(leaf.shape[:-1])) if path[-1].key == "kernel" else 0.2
        return jnp.asarray(rng.normal(mean, deviation, leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(values, abstract)


@pytest.fixture(scope="module")
def params() -> Any:
    return random_tree(abstract_params(SMALL))


# The published layout, module by module as CompVis' code builds it.


def conv(name: str, inputs: int, outputs: int, side: int = 3) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (outputs, inputs, side, side)
    yield f"{name}.bias", (outputs,)


def linear(name: str, inputs: int, outputs: int, *sides: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (outputs, inputs, *sides)
    yield f"{name}.bias", (outputs,)


def norm(name: str, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (channels,)
    yield f"{name}.bias", (channels,)


def published_unet(width: int, multipliers: tuple[int, ...], blocks: int, factors: tuple[int, ...]) -> Shapes:
    """As its constructor does it: lists of modules that grow, and a stack of the channels that went past."""
    shapes: Shapes = {}
    embedding = 4 * width

    def block(name: str, inputs: int, outputs: int) -> None:
        shapes.update(norm(f"{name}.in_layers.0", inputs))
        shapes.update(conv(f"{name}.in_layers.2", inputs, outputs))
        shapes.update(linear(f"{name}.emb_layers.1", embedding, outputs))
        shapes.update(norm(f"{name}.out_layers.0", outputs))
        shapes.update(conv(f"{name}.out_layers.3", outputs, outputs))
        if inputs != outputs:
            shapes.update(conv(f"{name}.skip_connection", inputs, outputs, 1))

    def attention(name: str, channels: int) -> None:
        shapes.update(norm(f"{name}.norm", channels))
        shapes.update(linear(f"{name}.qkv", channels, 3 * channels, 1))
        shapes.update(linear(f"{name}.proj_out", channels, channels, 1))

    shapes.update(linear("time_embed.0", width, embedding))
    shapes.update(linear("time_embed.2", embedding, embedding))
    shapes.update(conv("input_blocks.0.0", 6, width))
    channels, factor, passed = width, 1, [width]
    for multiplier in multipliers:
        for _ in range(blocks):
            block(f"input_blocks.{len(passed)}.0", channels, multiplier * width)
            channels = multiplier * width
            if factor in factors:
                attention(f"input_blocks.{len(passed)}.1", channels)
            passed.append(channels)
        if factor < 2 ** (len(multipliers) - 1):
            shapes.update(conv(f"input_blocks.{len(passed)}.0.op", channels, channels))
            passed.append(channels)
            factor *= 2
    block("middle_block.0", channels, channels)
    attention("middle_block.1", channels)
    block("middle_block.2", channels, channels)
    number = 0
    for multiplier in reversed(multipliers):
        for index in range(blocks + 1):
            block(f"output_blocks.{number}.0", channels + passed.pop(), multiplier * width)
            channels, parts = multiplier * width, 1
            if factor in factors:
                attention(f"output_blocks.{number}.1", channels)
                parts = 2
            if index == blocks and factor > 1:
                shapes.update(conv(f"output_blocks.{number}.{parts}.conv", channels, channels))
                factor //= 2
            number += 1
    shapes.update(norm("out.0", channels))
    shapes.update(conv("out.2", channels, 3))
    return shapes


def published_autoencoder(width: int, multipliers: tuple[int, ...], blocks: int, codes: int) -> Shapes:
    shapes: Shapes = {}

    def block(name: str, inputs: int, outputs: int) -> None:
        shapes.update(norm(f"{name}.norm1", inputs))
        shapes.update(conv(f"{name}.conv1", inputs, outputs))
        shapes.update(norm(f"{name}.norm2", outputs))
        shapes.update(conv(f"{name}.conv2", outputs, outputs))
        if inputs != outputs:
            shapes.update(conv(f"{name}.nin_shortcut", inputs, outputs, 1))

    def middle(part: str, channels: int) -> None:
        block(f"{part}.mid.block_1", channels, channels)
        shapes.update(norm(f"{part}.mid.attn_1.norm", channels))
        for name in ("q", "k", "v", "proj_out"):
            shapes.update(conv(f"{part}.mid.attn_1.{name}", channels, channels, 1))
        block(f"{part}.mid.block_2", channels, channels)

    last = len(multipliers) - 1
    shapes.update(conv("encoder.conv_in", 3, width))
    channels = width
    for level, multiplier in enumerate(multipliers):
        for index in range(blocks):
            block(f"encoder.down.{level}.block.{index}", channels, multiplier * width)
            channels = multiplier * width
        if level < last:
            shapes.update(conv(f"encoder.down.{level}.downsample.conv", channels, channels))
    middle("encoder", channels)
    shapes.update(norm("encoder.norm_out", channels))
    shapes.update(conv("encoder.conv_out", channels, 3))
    shapes.update(conv("decoder.conv_in", 3, channels))
    middle("decoder", channels)
    for level in range(last, -1, -1):
        for index in range(blocks + 1):
            block(f"decoder.up.{level}.block.{index}", channels, multipliers[level] * width)
            channels = multipliers[level] * width
        if level > 0:
            shapes.update(conv(f"decoder.up.{level}.upsample.conv", channels, channels))
    shapes.update(norm("decoder.norm_out", channels))
    shapes.update(conv("decoder.conv_out", channels, 3))
    shapes["quantize.embedding.weight"] = (codes, 3)
    shapes.update(conv("quant_conv", 3, 3, 1))
    shapes.update(conv("post_quant_conv", 3, 3, 1))
    return shapes


def published(unet: Shapes, autoencoder: Shapes) -> Shapes:
    """What a checkpoint of both holds, but for averages, the schedule and counters."""
    return {
        **{f"model.diffusion_model.{name}": shape for name, shape in unet.items()},
        **{f"first_stage_model.{name}": shape for name, shape in autoencoder.items()},
    }


def test_the_layout_of_the_published_checkpoints_is_that_of_our_networks():
    unet = published_unet(160, (1, 2, 2, 4), 2, (8,))
    autoencoder = published_autoencoder(128, (1, 2, 4), 2, 8192)
    assert sum(map(math.prod, unet.values())) == 113_622_563
    assert sum(map(math.prod, autoencoder.values())) == 55_322_782
    for name, expected in (("vq_f4", autoencoder), ("ldm_bsr", published(unet, autoencoder))):
        model = create_model(name)
        assert torch_shapes(abstract_params(model), key_map(model)) == expected


@pytest.mark.parametrize("factors", [(), (1,), (2, 4), (1, 2, 4)])
def test_attention_on_any_level_shifts_the_names_as_published(factors):
    unet = Denoiser(width=128, multipliers=(1, 2, 3), blocks=1, attention_factors=factors)
    model = LatentDiffusion(AUTOENCODER, unet)
    expected = published(published_unet(128, (1, 2, 3), 1, factors), published_autoencoder(128, (1, 2), 1, 16))
    assert torch_shapes(abstract_params(model), key_map(model)) == expected


@pytest.mark.parametrize(
    "model",
    [
        Autoencoder(width=64, multipliers=(2, 4)),
        Autoencoder(width=32),
        LatentDiffusion(Autoencoder(width=32), SMALL.unet),
        LatentDiffusion(AUTOENCODER, Denoiser(width=64, multipliers=(2, 4))),
    ],
    ids=["first layer", "autoencoder", "first stage", "denoiser"],
)
def test_where_norms_have_other_groups_than_published_nothing_is_converted(model):
    assert find_key_map(model) is None


def schedule(steps: int, end: float) -> np.ndarray:
    return np.cumprod(1 - np.square(np.linspace(math.sqrt(0.0015), math.sqrt(end), steps))).astype(np.float32)


def checkpoint(tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """The tensors as averages in a checkpoint of the published form; the others are 1 larger."""
    content: dict[str, Any] = {}
    for name, value in tensors.items():
        if name.startswith("model."):
            content[name] = value + 1
            content["model_ema." + "".join(name.split(".")[1:])] = value
        else:
            content[name] = value
    names = "betas alphas_cumprod alphas_cumprod_prev sqrt_alphas_cumprod sqrt_one_minus_alphas_cumprod "
    names += "log_one_minus_alphas_cumprod sqrt_recip_alphas_cumprod sqrt_recipm1_alphas_cumprod posterior_variance "
    names += "posterior_log_variance_clipped posterior_mean_coef1 posterior_mean_coef2 lvlb_weights"
    content.update({name: np.zeros(1000, np.float32) for name in names.split()})
    content["alphas_cumprod"] = schedule(1000, 0.0155)
    content["model_ema.decay"] = np.array(0.9999, np.float32)
    content["model_ema.num_updates"] = np.array(170_000, np.int32)
    return content


@pytest.fixture(scope="module")
def tensors(params) -> dict[str, np.ndarray]:
    return export_tensors(params, key_map(SMALL))


def test_averaged_weights_are_taken_where_a_checkpoint_holds_them(params, tensors, capsys):
    names = key_map(SMALL)
    assert "model_ema.diffusion_modelinput_blocks00weight" in checkpoint(tensors)
    for content, said in ((checkpoint(tensors), "taking the averaged weights\n"), (tensors, "")):
        taken = import_tensors(abstract_params(SMALL), names, content, "the module")
        jax.tree.map(np.testing.assert_array_equal, taken, params)
        assert capsys.readouterr().out == said


BIAS = "model.diffusion_model.out.2.bias"
AVERAGE = "model_ema.diffusion_modelout2bias"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content.pop(AVERAGE), f"'{BIAS}' has no average among the tensors"),
        (lambda content: content.pop(BIAS), rf"first '{BIAS}' \(given None"),
        (lambda content: content.update({"model.extra": np.zeros(2)}), "'model.extra' has no average"),
        (lambda content: content.update({"model_ema.extra": np.zeros(2)}), r"1 are .* first 'model_ema.extra' \(given"),
        (lambda content: content.update(extra=np.zeros(2)), r"1 are .* first 'extra' \(given"),
        (
            lambda content: content.update(alphas_cumprod=schedule(1000, 0.0156)),
            "noise schedule 'alphas_cumprod' is not",
        ),
        (
            lambda content: content.update(alphas_cumprod=schedule(500, 0.0155)),
            "noise schedule 'alphas_cumprod' is not",
        ),
    ],
    ids=["no average", "average alone", "extra", "extra average", "neither", "schedule", "fewer steps"],
)
def test_a_checkpoint_of_which_not_all_can_be_used_is_refused(change, words, tensors):
    content = checkpoint(tensors)
    change(content)
    with pytest.raises(UserError, match=words):
        import_tensors(abstract_params(SMALL), key_map(SMALL), content, "the module")


def test_a_file_of_the_published_form_is_converted_and_back(torch, tmp_path, monkeypatch):
    # The class that PyTorch Lightning has as a key; opening the file must not need it.
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    unet = Denoiser(width=128, multipliers=(1,), blocks=1, attention_factors=())
    model = LatentDiffusion(Autoencoder(width=128, multipliers=(1,), blocks=1, codes=16), unet)
    params = random_tree(abstract_params(model))
    options = {"first_stage": model.first_stage, "unet": unet}
    named = Variant(LatentDiffusion, options, "2112.10752", "reconstruction", "this test", count_parameters(params))
    monkeypatch.setitem(VARIANTS, "ldm_wide", named)
    tensors = export_tensors(params, key_map(model))
    content = {name: torch.from_numpy(np.array(value)) for name, value in checkpoint(tensors).items()}
    callbacks = {module.ModelCheckpoint: {"monitor": "val/loss_simple_ema"}}
    torch.save({"global_step": 3, "callbacks": callbacks, "state_dict": content}, tmp_path / "model.ckpt")
    monkeypatch.delitem(sys.modules, module.__name__)

    with pytest.raises(UserError, match="they fit ldm_wide"):
        convert_file(tmp_path / "model.ckpt", tmp_path / "ours.safetensors", "ldm_bsr")
    convert_file(tmp_path / "model.ckpt", tmp_path / "ours.safetensors", "ldm_wide")
    loaded_model, loaded = load_weights(tmp_path / "ours.safetensors")
    assert loaded_model == model
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    convert_file(tmp_path / "ours.safetensors", tmp_path / "back.ckpt")
    back = torch.load(tmp_path / "back.ckpt", weights_only=True)["params"]
    assert back.keys() == tensors.keys()
    for name, value in back.items():
        np.testing.assert_array_equal(value.numpy(), tensors[name])


# The same numbers through diffusers.


def diffusers_unet(diffusers: Any, unet: Denoiser, tensors: dict[str, np.ndarray]) -> Any:
    """The network of diffusers, in float64, with the tensors under the names that its conversion gives them."""
    torch = importlib.import_module("torch")
    convert = importlib.import_module("diffusers.loaders.single_file_utils").convert_ldm_unet_checkpoint
    attends = [2**level in unet.attention_factors for level in range(len(unet.multipliers))]
    twin = diffusers.UNet2DModel(
        in_channels=6,
        block_out_channels=[unet.width * multiplier for multiplier in unet.multipliers],
        layers_per_block=unet.blocks,
        attention_head_dim=unet.head_channels,
        down_block_types=["AttnDownBlock2D" if attention else "DownBlock2D" for attention in attends],
        up_block_types=["AttnUpBlock2D" if attention else "UpBlock2D" for attention in reversed(attends)],
    )
    content = {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}
    state_dict = {}
    for name, value in convert(content, {"layers_per_block": unet.blocks}).items():
        if ".qkv." in name:
            # What is left to do: head by head queries, keys and values.
            apart = value.reshape(-1, 3, unet.head_channels, *value.shape[1:2]).unbind(1)
            for letter, part in zip("qkv", apart, strict=True):
                state_dict[name.replace("qkv", f"to_{letter}")] = part.flatten(0, 1)
        elif "attentions" in name:
            renamed = name.replace("proj_out", "to_out.0").replace(".norm.", ".group_norm.")
            state_dict[renamed] = value[..., 0] if value.ndim == 3 else value
        else:
            state_dict[name] = value
    twin.load_state_dict(state_dict)
    return twin.double().eval()


def relative_difference(result: Any, expected: Any) -> float:
    """To a `[B, C, H, W]` tensor of PyTorch, in units of its largest number."""
    expected = expected.detach().numpy().transpose(0, 2, 3, 1)
    return float(abs(np.asarray(result) - expected).max() / abs(expected).max())


@pytest.mark.parametrize(
    "unet",
    [
        Denoiser(width=128, multipliers=(1, 2), blocks=1, attention_factors=(2,)),
        Denoiser(width=128, multipliers=(1, 1, 2), blocks=2, attention_factors=(1, 4)),
    ],
    ids=["small", "two blocks"],
)
def test_the_denoiser_equals_diffusers(unet, diffusers):
    torch = importlib.import_module("torch")
    rng = np.random.default_rng(1)
    x, times = rng.normal(size=(2, 12, 8, 6)).astype(np.float32), np.array([1, 951])
    params = random_tree(jax.eval_shape(unet.init, jax.random.key(0), x, times)["params"])
    tensors = export_tensors({"denoiser": params}, key_map(LatentDiffusion(AUTOENCODER, unet)))
    twin = diffusers_unet(diffusers, unet, tensors)
    with torch.no_grad():
        expected = twin(torch.from_numpy(x).double().permute(0, 3, 1, 2), torch.from_numpy(times)).sample
    # Diffusers embeds times in float32 in any case.
    assert relative_difference(jax.jit(unet.apply)({"params": params}, x, times), expected) < 5e-6


def diffusers_autoencoder(diffusers: Any, model: Autoencoder, tensors: dict[str, np.ndarray]) -> Any:
    torch = importlib.import_module("torch")
    convert = importlib.import_module("diffusers.loaders.single_file_utils").convert_ldm_vae_checkpoint
    levels = len(model.multipliers)
    config = {"down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels}
    twin = diffusers.VQModel(
        block_out_channels=[model.width * multiplier for multiplier in model.multipliers],
        layers_per_block=model.blocks,
        num_vq_embeddings=model.codes,
        **config,
    )
    state_dict = convert({name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}, config)
    # For autoencoders with other bottlenecks; of this one it leaves the codes behind.
    state_dict["quantize.embedding.weight"] = torch.from_numpy(np.array(tensors["quantize.embedding.weight"]))
    twin.load_state_dict(state_dict)
    return twin.double().eval()


@pytest.mark.parametrize(
    "model", [AUTOENCODER, Autoencoder(width=128, multipliers=(1, 2, 2), blocks=2, codes=32)], ids=["f2", "f4"]
)
def test_the_autoencoder_equals_diffusers(model, diffusers):
    torch = importlib.import_module("torch")
    images = np.random.default_rng(1).random((2, 12, 8, 3), np.float32)
    params = random_tree(abstract_params(model))
    twin = diffusers_autoencoder(diffusers, model, export_tensors(params, key_map(model)))

    def run(method: Any, *inputs: Any) -> Any:
        return jax.jit(lambda params, *inputs: model.apply({"params": params}, *inputs, method=method))(params, *inputs)

    latents = run("encode", images)
    with torch.no_grad():
        theirs = twin.encode(2 * torch.from_numpy(images).double().permute(0, 3, 1, 2) - 1).latents
        assert relative_difference(latents, theirs) < 5e-6
        _, numbers = run(lambda module, latents: module.quantizer(latents), latents)
        assert len(np.unique(numbers)) > 3
        np.testing.assert_array_equal(numbers.ravel(), twin.quantize(theirs)[2][2])
        assert relative_difference(run("decode", latents), (twin.decode(theirs).sample + 1) / 2) < 5e-6


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_schedule_and_steps_equal_diffusers(eta, diffusers):
    torch = importlib.import_module("torch")
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.0015,
        beta_end=0.0155,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
    )
    # Theirs are products in float32.
    np.testing.assert_allclose(scheduler.alphas_cumprod, signal_powers(), rtol=2e-5)
    scheduler.set_timesteps(20)
    assert scheduler.timesteps.tolist() == sampling_times(20)
    rng = np.random.default_rng(0)
    latents, predicted, fresh = rng.normal(size=(3, 1, 4, 4, 3)).astype(np.float32)
    for time, signal, next_signal in zip(*ddim_schedule(20), strict=True):
        expected = scheduler.step(
            torch.from_numpy(predicted),
            int(time),
            torch.from_numpy(latents),
            eta=eta,
            variance_noise=torch.from_numpy(fresh) if eta else None,
        ).prev_sample
        result = ddim_step(*map(jnp.asarray, (latents, predicted, fresh, signal, next_signal)), eta)
        np.testing.assert_allclose(result, expected, atol=1e-4 * abs(expected.numpy()).max())
