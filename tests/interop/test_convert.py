"""Weight files in and out: `gamax convert`, and what it refuses."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gamax.errors import UserError
from gamax.interop.convert import convert_file
from gamax.interop.torch_files import read_state_dict
from gamax.interop.torch_weights import to_torch
from gamax.interop.weights import load_weights, save_weights
from gamax.models import abstract_params, create_model

NAME = "nafnet_sidd_w32"
SMALL = {"width": 4, "middle_blocks": 1}


@pytest.fixture(scope="module")
def params(random_params) -> Any:
    return random_params(create_model(NAME, **SMALL), (1, 16, 16, 3))


@pytest.fixture(scope="module")
def state_dict(params) -> dict[str, np.ndarray]:
    return to_torch(NAME, params, **SMALL)


@pytest.fixture
def source(tmp_path, state_dict) -> Path:
    save_file(state_dict, tmp_path / "theirs.safetensors")
    return tmp_path / "theirs.safetensors"


def equal(left: Any, right: Any) -> bool:
    return jax.tree.structure(left) == jax.tree.structure(right) and all(
        np.array_equal(a, b) for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    )


def test_safetensors_go_both_ways_without_pytorch(source, tmp_path, params, state_dict):
    ours, back = tmp_path / "made" / "ours.safetensors", tmp_path / "back.safetensors"
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from gamax.interop.convert import convert_file\n"
        f"convert_file(Path({str(source)!r}), Path({str(ours)!r}), {NAME!r}, {SMALL!r})\n"
        f"convert_file(Path({str(ours)!r}), Path({str(back)!r}))\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    model, loaded = load_weights(ours)
    assert model == create_model(NAME, **SMALL)
    assert equal(loaded, params)
    returned = load_file(back)
    assert returned.keys() == state_dict.keys()
    assert all(np.array_equal(returned[name], value) for name, value in state_dict.items())


@pytest.mark.parametrize("wrapper", [None, "params", "params_ema", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_pytorch_files_go_both_ways(wrapper, prefix, torch, tmp_path, params, state_dict):
    tensors = {prefix + name: torch.from_numpy(value) for name, value in state_dict.items()}
    torch.save({wrapper: tensors, "iteration": 3} if wrapper else tensors, tmp_path / "theirs.pth")
    ours, back = tmp_path / "ours.safetensors", tmp_path / "back.pth"
    assert equal(convert_file(tmp_path / "theirs.pth", ours, NAME, SMALL).params, params)
    convert_file(ours, back)
    returned = torch.load(back, weights_only=True)["params"]
    assert returned.keys() == state_dict.keys()
    assert all(np.array_equal(returned[name].numpy(), value) for name, value in state_dict.items())


def test_of_two_state_dicts_the_weights_as_trained_are_taken_unless_another_is_named(torch, tmp_path, state_dict):
    raw = {name: torch.from_numpy(value) for name, value in state_dict.items()}
    average = {name: value + 1 for name, value in raw.items()}
    torch.save({"params_ema": average, "params": raw}, tmp_path / "both.pth")
    for wrapper, expected in ((None, raw), ("params", raw), ("params_ema", average)):
        converted = convert_file(tmp_path / "both.pth", tmp_path / "o.safetensors", NAME, SMALL, wrapper)
        np.testing.assert_array_equal(converted.state_dict["intro.bias"], expected["intro.bias"].numpy())
    torch.save({"net_g": raw}, tmp_path / "own.pth")
    converted = convert_file(tmp_path / "own.pth", tmp_path / "o.safetensors", NAME, SMALL, "net_g")
    np.testing.assert_array_equal(converted.state_dict["intro.bias"], raw["intro.bias"].numpy())
    with pytest.raises(UserError, match="has no state dict 'model'; it has params_ema, params"):
        convert_file(tmp_path / "both.pth", tmp_path / "o.safetensors", NAME, SMALL, "model")


class Attack:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


def pickled(path: Path, mark: Path, torch: Any) -> None:
    path.write_bytes(pickle.dumps(Attack(mark)))


def saved(path: Path, mark: Path, torch: Any) -> None:
    torch.save({"params": {"intro.weight": torch.zeros(1)}, "hook": Attack(mark)}, path)


def truncated(path: Path, mark: Path, torch: Any) -> None:
    torch.save({"intro.weight": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])


BAD_PICKLES = {
    "a pickle with code": (pickled, "was not opened"),
    "a file with code beside tensors": (saved, "asks for 'posix.system', which could run code"),
    "truncated": (truncated, "no complete PyTorch file"),
    "text": (lambda path, mark, torch: path.write_text("weights"), "no complete PyTorch file"),
    "empty": (lambda path, mark, torch: path.touch(), "no complete PyTorch file"),
    "numbers for names": (lambda path, mark, torch: torch.save({1: torch.zeros(1)}, path), "'1' is no named tensor"),
    "a sparse tensor": (
        lambda path, mark, torch: torch.save({"a": torch.eye(2).to_sparse()}, path),
        "'a' in .* is sparse, quantised or without values",
    ),
    "whole numbers": (
        lambda path, mark, torch: torch.save({"a": torch.arange(3)}, path),
        "'a' in .* holds int64 numbers",
    ),
    "a number": (lambda path, mark, torch: torch.save(3, path), "no state dict but a int"),
    "a list": (lambda path, mark, torch: torch.save([torch.zeros(2)], path), "no state dict but a list"),
    "no tensors": (lambda path, mark, torch: torch.save({}, path), "there is no tensor in it"),
    "numbers": (lambda path, mark, torch: torch.save({"a": torch.zeros(1), "b": 2}, path), "'b' is no named tensor"),
}


@pytest.mark.parametrize("case", BAD_PICKLES)
def test_nothing_in_a_bad_pickle_is_executed(case, torch, tmp_path):
    make, words = BAD_PICKLES[case]
    source, mark = tmp_path / "bad.pth", tmp_path / "executed"
    make(source, mark, torch)
    with pytest.raises(UserError, match=words):
        convert_file(source, tmp_path / "new" / "o.safetensors", NAME, SMALL)
    assert set(tmp_path.iterdir()) == {source}


def test_a_file_cut_anywhere_is_a_user_error(torch, tmp_path, state_dict):
    # The released files of DMPHN have this older format.
    whole, cut = tmp_path / "whole.pkl", tmp_path / "cut.pkl"
    tensors = {name: torch.from_numpy(value) for name, value in list(state_dict.items())[:3]}
    torch.save(tensors, whole, _use_new_zipfile_serialization=False)
    content = whole.read_bytes()
    assert sorted(read_state_dict(whole)) == sorted(tensors)
    for kept in [*range(0, 200), *range(200, len(content) - 1, 97)]:
        cut.write_bytes(content[:kept])
        with pytest.raises(UserError):
            read_state_dict(cut)


def other_width(source: Path) -> None:
    shapes = abstract_params(create_model("nafnet_sidd_w64"))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    save_file(to_torch("nafnet_sidd_w64", zeros), source)


def eight_bit_floats(source: Path) -> None:
    header = b'{"a":{"dtype":"F8_E8M0","shape":[1],"data_offsets":[0,1]}}'
    source.write_bytes(len(header).to_bytes(8, "little") + header + b"x")


BAD_SOURCES = {
    "another width": (other_width, r"of another shape, first .*; they fit nafnet_sidd_w64"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:5000]), "not a complete safetensors file"),
    "missing": (Path.unlink, "no weights at"),
    "a type that JAX lacks": (eight_bit_floats, "of types that JAX has"),
    "other tensors": (lambda path: save_file({"a": np.zeros(3)}, path), r"first 'intro|first 'decoder"),
}


@pytest.mark.parametrize("case", BAD_SOURCES)
def test_a_source_that_does_not_fit_leaves_nothing(case, source):
    make, words = BAD_SOURCES[case]
    make(source)
    before = set(source.parent.iterdir())
    with pytest.raises(UserError, match=words):
        convert_file(source, source.parent / "new" / "o.safetensors", "nafnet_sidd_w32")
    assert set(source.parent.iterdir()) == before


def test_what_cannot_be_converted_is_named(source, tmp_path, params):
    ours = tmp_path / "ours.safetensors"
    save_weights(ours, params, NAME, SMALL)
    for arguments, words in [
        ((source, ours), "does not say which network it is for: name it with --model"),
        ((source, tmp_path / "o.pth", NAME), "must be a .safetensors file"),
        ((source, tmp_path / "o.safetensors", "gama_ir_s"), "no published PyTorch code"),
        ((source, tmp_path / "o.safetensors", "nafnet"), "unknown model 'nafnet'"),
        ((tmp_path / "x.onnx", tmp_path / "o.safetensors", NAME), "no weights at"),
        ((ours, tmp_path / "o.npz"), "must be a .pth or"),
        ((ours, tmp_path / "o.pth", "restormer"), f"holds weights of {NAME}, not of restormer"),
        ((ours, tmp_path / "o.pth", NAME, {"width": 99}), "leave out overrides and wrapper"),
        ((ours, ours), "would replace its own source"),
        ((source, tmp_path / "o.safetensors", NAME, {"dtype": "foo"}), "must be a type such as bfloat16, not 'foo'"),
        ((source, tmp_path / "o.safetensors", NAME, {"name": "x"}), "has no option 'name'"),
    ]:
        with pytest.raises(UserError, match=words):
            convert_file(*arguments)
    assert not (tmp_path / "o.pth").exists()


def test_pytorch_files_name_the_extra_where_pytorch_is_missing(monkeypatch, tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"anything")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"needs PyTorch: pip install 'gamax\[torch\]'"):
        convert_file(tmp_path / "weights.pth", tmp_path / "o.safetensors", NAME)


def test_a_folder_of_parts_is_one_state_dict(tmp_path, torch):
    for part in ("encoder_lv1", "decoder_lv1"):
        torch.save({"layer1.weight": torch.zeros(2)}, tmp_path / f"{part}.pkl")
    assert sorted(read_state_dict(tmp_path)) == ["decoder_lv1.layer1.weight", "encoder_lv1.layer1.weight"]
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"holds no \.pth"):
        read_state_dict(tmp_path / "none")


def test_bfloat16_weights_of_ours_and_run_folders_become_float32_tensors(torch, tmp_path, params):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    (tmp_path / "run").mkdir()
    save_weights(tmp_path / "run" / "weights.safetensors", half, NAME, SMALL)
    for output in ("o.pth", "o.safetensors"):
        convert_file(tmp_path / "run", tmp_path / output)
        tensors = read_state_dict(tmp_path / output)
        np.testing.assert_array_equal(tensors["intro.bias"], np.asarray(half["intro"]["bias"], np.float32))


@pytest.mark.parametrize(
    "description",
    [
        '{"model": ["x"], "overrides": {}}',
        '{"model": null, "overrides": {}}',
        f'{{"model": "{NAME}", "overrides": {{"name": "x"}}}}',
        f'{{"model": "{NAME}", "overrides": {{}}, "dtype": "o"}}',
        "[]",
    ],
)
def test_strange_descriptions_are_user_errors(description, tmp_path, state_dict):
    save_file(state_dict, tmp_path / "strange.safetensors", metadata={"gamax": description})
    with pytest.raises(UserError):
        convert_file(tmp_path / "strange.safetensors", tmp_path / "o.safetensors")
