from __future__ import annotations

import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import official
import pytest
from flax.traverse_util import flatten_dict

from gamax.benchmark.cost import model_multiply_adds
from gamax.blocks.adaptive_attention import EAABlock
from gamax.blocks.attention import SqueezeExcite
from gamax.errors import UserError
from gamax.interop.key_maps import key_map
from gamax.models import abstract_params, count_parameters
from gamax.models.lir import LIR

ONE_EACH = {"width": 16, "encoder_blocks": (1, 1), "middle_blocks": 1, "decoder_blocks": (1, 1)}


@pytest.fixture(scope="module")
def published() -> Any:
    return abstract_params(LIR())


def test_it_reproduces_the_official_network(shared_folder):
    config, tensors = official.load(shared_folder / "fixtures/lir/lir_dim16.safetensors")
    full, half = config["right_blk_num"]
    model = LIR(config["dim"], tuple(config["left_blk_num"]), config["bottom_blk_num"], (half, full))
    official.check(model, tensors, 3e-4)


def test_every_part_has_its_published_parameters(published):
    parts: dict[str, int] = {}
    for name, params in published.items():
        stage = re.sub(r"^((?:encoder|decoder)_\d|middle)_\d+$", r"\1", name)
        parts[stage] = parts.get(stage, 0) + count_parameters(params)
    assert parts == {
        "head": 1_297,
        "encoder_0": 1_295_709,
        "down_0": 5_184,
        "encoder_1": 1_416_669,
        "down_1": 5_184,
        "middle": 1_194_765,
        "up_1": 82_944,
        "fuse": 41_473,
        "decoder_1": 1_416_669,
        "up_0": 82_944,
        "decoder_0": 1_727_612,
        "feature_degradation": 36_864,
        "image_degradation": 2_304,
        "tail": 1_297,
    }
    assert count_parameters(published) == 7_310_915


def test_the_state_dict_has_its_tensors_and_fixed_kernels_are_ignored(published):
    names = key_map(LIR())
    ours = {names.torch_name(path) for path in flatten_dict(published, sep="/")}
    assert len(ours) == 2_540
    filters = [name.removesuffix(".alpha") for name in ours if re.search(r"stage\d\.0\.alpha$", name)]
    kinds = ("Sobel_x", "Laplation", "Edge", "Roberts_x", "Roberts_y", "Sobel_xy", "Sobel_yx")
    fixed = {f"{name}.{kind}" for name in filters for kind in kinds}
    assert len(ours | fixed) == 2_988
    assert {name for name in ours | fixed if re.search(names.ignored, name)} == fixed


@pytest.mark.parametrize(("size", "giga"), [(192, 35.66), (256, 63.39)])
def test_the_published_network_has_its_multiply_adds(size, giga, published):
    # Blocks, and channels filtered in each, as a multiple of 48 channels times the pixels of the block.
    pixels = 7 * size**2 + 6 * (size // 2) ** 2 + 3 * (size // 4) ** 2
    filtered = 48 * pixels * (1 / 4 + 2 / 16 + 2 / 4)
    # The published count has the blur as a convolution of 15x15 taps; shifts and adds do not count.
    blur = 225 * filtered
    counted = model_multiply_adds(LIR(), published, size, size)
    assert (counted + blur) / 1e9 == pytest.approx(giga, abs=0.006)


def test_a_window_halves_with_the_resolution_and_sides_are_padded():
    model, calls = LIR(**ONE_EACH, local_window=384), []

    def record(call: Any, arguments: Any, options: Any, context: Any) -> Any:
        if isinstance(context.module, SqueezeExcite | EAABlock) and context.method_name == "__call__":
            calls.append((type(context.module), arguments[0].shape[1:3], context.module.window))
        return call(*arguments, **options)

    # From below the smallest size up, and from between two multiples.
    with nn.intercept_methods(record):
        jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 96, 144, 3), jnp.float32))
    blocks = [sides for module, sides, _ in calls if module is EAABlock]
    assert blocks == [(128, 160), (64, 80), (32, 40), (64, 80), (128, 160)]
    assert len(calls) == 5 * 6
    assert all(window * 128 == 384 * sides[0] for _, sides, window in calls)


def test_a_window_that_covers_the_image_changes_nothing():
    options = {"width": 16, "encoder_blocks": (0, 1), "middle_blocks": 0, "decoder_blocks": (0, 0)}
    params = abstract_params(LIR(**options))
    images = jax.ShapeDtypeStruct((1, 128, 160, 3), jnp.float32)

    def program(window: int | None) -> str:
        return str(jax.make_jaxpr(LIR(**options, local_window=window).apply)({"params": params}, images))

    assert program(160) == program(None) != program(144)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"encoder_blocks": (1, 1, 1)}, "two levels: encoder_blocks and decoder_blocks need two numbers"),
        ({"decoder_blocks": ()}, "need two numbers"),
        ({"middle_blocks": -1}, "must not be negative"),
        ({"width": 40}, "a width that 16 divides"),
        ({"width": 0}, "a width that 16 divides"),
        ({"local_window": 15}, "local_window must be at least 16, not 15"),
    ],
)
def test_what_cannot_be_built_is_named(options, words):
    with pytest.raises(UserError, match=words):
        LIR(**options)
