from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import gamax
from gamax.blocks import SimplifiedChannelAttention
from gamax.errors import UserError
from gamax.interop.weights import WEIGHTS_NAME, find_weights, load_weights, save_weights, sha256
from gamax.models import create_model

NAME, OVERRIDES = "gama_ir_tiny", {"width": 4, "depth": 3, "levels": 1, "mixer": "sca"}


@pytest.fixture(scope="module")
def params(random_params):
    return random_params(create_model(NAME, **OVERRIDES), (1, 8, 8, 3))


@pytest.fixture
def run(tmp_path: Path, params) -> Path:
    save_weights(tmp_path / WEIGHTS_NAME, params, NAME, OVERRIDES)
    return tmp_path


@pytest.mark.parametrize("inside", ["", WEIGHTS_NAME])
def test_every_bit_and_the_network_survive_the_disk(inside, run, params):
    model, loaded = load_weights(run / inside)
    assert model == create_model(NAME, **OVERRIDES)
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    for restored, original in zip(jax.tree.leaves(loaded), jax.tree.leaves(params), strict=True):
        assert restored.dtype == original.dtype
        assert np.asarray(restored).tobytes() == np.asarray(original).tobytes()


def test_options_of_several_numbers_survive_the_disk(tmp_path, random_params):
    name, options = "nafnet_sidd_w32", {"width": 2, "encoder_blocks": (1, 0), "middle_blocks": 0}
    model = create_model(name, **options, decoder_blocks=(0, 0))
    params = random_params(model, (1, 8, 8, 3))
    save_weights(tmp_path / "nafnet.safetensors", params, name, {**options, "decoder_blocks": [0, 0]})
    loaded, _ = load_weights(tmp_path / "nafnet.safetensors")
    assert loaded == model


def test_bfloat16_parameters_survive_the_disk(tmp_path, params):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    save_weights(tmp_path / "half.safetensors", half, NAME, OVERRIDES)
    _, loaded = load_weights(tmp_path / "half.safetensors")
    for restored, original in zip(jax.tree.leaves(loaded), jax.tree.leaves(half), strict=True):
        assert restored.dtype == jnp.bfloat16
        assert bool((restored == original).all())


def test_parameters_stored_with_half_the_bits_come_back_as_float32(tmp_path, params):
    save_weights(path := tmp_path / "half.safetensors", params, NAME, OVERRIDES, stored_as="float16")
    save_weights(tmp_path / "whole.safetensors", params, NAME, OVERRIDES)
    saved = (tmp_path / "whole.safetensors").stat().st_size - path.stat().st_size
    assert saved > 0.45 * sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert load_file(path)["intro/kernel"].dtype == np.float16
    _, loaded = load_weights(path)
    for restored, original in zip(jax.tree.leaves(loaded), jax.tree.leaves(params), strict=True):
        assert restored.dtype == jnp.float32
        np.testing.assert_array_equal(restored, np.asarray(original).astype(np.float16).astype(np.float32))


def test_parameters_beyond_float16_are_refused(tmp_path, params):
    large = jax.tree.map(lambda leaf: leaf * 1e6, params)
    with pytest.raises(UserError, match="beyond the range of float16"):
        save_weights(tmp_path / "large.safetensors", large, NAME, OVERRIDES, stored_as="float16")
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_plain_safetensors_with_readable_names(run, params):
    tensors = load_file(run / WEIGHTS_NAME)
    np.testing.assert_array_equal(tensors["intro/kernel"], params["intro"]["kernel"])
    np.testing.assert_array_equal(
        tensors["bottom_0/mixing/weight/bias"], params["bottom_0"]["mixing"]["weight"]["bias"]
    )
    assert len(tensors) == len(jax.tree.leaves(params))


def test_the_digest_is_that_of_the_file_and_of_the_values_alone(tmp_path, params):
    digests = [save_weights(tmp_path / name, params, NAME, OVERRIDES) for name in ("a.safetensors", "b.safetensors")]
    content = (tmp_path / "a.safetensors").read_bytes()
    assert digests == [hashlib.sha256(content).hexdigest()] * 2 == [sha256(tmp_path / "a.safetensors")] * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_fields_of_the_network_can_be_changed_when_loading(run):
    model, _ = load_weights(run, dtype=jnp.bfloat16)
    assert model.dtype == jnp.bfloat16
    assert model.width == OVERRIDES["width"]


def test_the_package_restores_from_a_run_folder(run, params):
    restorer = gamax.Restorer.from_weights(run)
    image = np.random.default_rng(0).random((9, 8, 3), np.float32)
    expected = gamax.Restorer(create_model(NAME, **OVERRIDES), params)(image)
    np.testing.assert_array_equal(restorer(image), expected)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        # The first of the arrays in alphabetical order.
        ({"width": 6}, r"of 62 arrays differ, first 'bottom_0/channel_expand/bias' \(given \(16,\), network \(24,\)\)"),
        ({"mixer": None}, r"6 of 56 arrays differ, first 'bottom_0/mixing/weight/bias' \(given \(8,\), network None\)"),
        ({"depth": 4}, r"18 of 80 arrays differ, first 'bottom_1/channel_expand/bias' \(given None, network \(16,\)\)"),
    ],
)
def test_a_file_for_another_network_names_the_first_array_that_differs(overrides, message, run):
    with pytest.raises(UserError, match=rf"does not fit {NAME}: .*{message}"):
        load_weights(run, **overrides)


def test_parameters_that_lack_an_array_are_not_saved(tmp_path, params):
    lacking = {name: value for name, value in params.items() if name != "intro"}
    with pytest.raises(UserError, match=r"2 of 62 arrays differ, first 'intro/bias' \(given None"):
        save_weights(tmp_path / "part.safetensors", lacking, NAME, OVERRIDES)
    assert not list(tmp_path.iterdir())


def test_a_mixer_that_has_no_name_cannot_be_saved(tmp_path, params):
    with pytest.raises(UserError, match="JSON cannot hold"):
        save_weights(tmp_path / "own.safetensors", params, NAME, {**OVERRIDES, "mixer": SimplifiedChannelAttention})
    assert not list(tmp_path.iterdir())


def file_with_metadata(path: Path, metadata: dict[str, str] | None) -> None:
    save_file({"kernel": np.ones((3, 3), np.float32)}, path, metadata=metadata)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: file_with_metadata(path, None), "not written by gamax"),
        (lambda path: file_with_metadata(path, {"format": "pt"}), "not written by gamax"),
        (lambda path: file_with_metadata(path, {"gamax": "no JSON"}), "not written by gamax"),
        (lambda path: file_with_metadata(path, {"gamax": "[1]"}), "not written by gamax"),
        (lambda path: file_with_metadata(path, {"gamax": '{"model": "gama_ir_z", "overrides": {}}'}), "gama_ir_z"),
        (lambda path: path.write_text("these are not weights, whatever the name says"), "not a complete safetensors"),
        (lambda path: path.write_bytes(b""), "not a complete safetensors"),
        (lambda path: path.write_bytes(struct.pack("<Q", 2**40)), "not a complete safetensors"),
    ],
    ids=["foreign", "torch", "no JSON", "a list", "unknown model", "text", "empty", "header too long"],
)
def test_other_files_are_told_apart(write, message, tmp_path):
    path = tmp_path / "other.safetensors"
    write(path)
    with pytest.raises(UserError, match=message) as error:
        load_weights(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kept", [4, 100, 0.5, -1])
def test_a_file_that_is_cut_short_is_told_apart(kept, run):
    path = run / WEIGHTS_NAME
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept) if kept == 0.5 else kept])
    with pytest.raises(UserError, match=r"not a complete safetensors file.*copy or download it again"):
        load_weights(path)


def test_missing_files_and_unfinished_runs_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no weights at .*nowhere"):
        find_weights(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no weights.safetensors: the run is not finished"):
        find_weights(tmp_path)


def test_an_interrupted_save_leaves_the_old_file(run, params, monkeypatch):
    before = (run / WEIGHTS_NAME).read_bytes()
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save_weights(run / WEIGHTS_NAME, jax.tree.map(jnp.zeros_like, params), NAME, OVERRIDES)
    assert (run / WEIGHTS_NAME).read_bytes() == before


@pytest.mark.parametrize("key", ["kernel", "nested"])
def test_numpy_parameters_are_saved_like_jax_ones(key, tmp_path, params):
    as_numpy = jax.tree.map(np.asarray, params)
    digests = {save_weights(tmp_path / f"{key}{i}", tree, NAME, OVERRIDES) for i, tree in enumerate((params, as_numpy))}
    assert len(digests) == 1
