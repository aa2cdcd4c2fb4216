from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from gamax.cli_export import Export
from gamax.errors import UserError
from gamax.interop import export as exporting
from gamax.interop.export import (
    PLATFORMS,
    Signature,
    check_onnx,
    differences,
    find_signature,
    run_onnx,
    run_stablehlo,
    to_onnx,
    to_stablehlo,
)
from gamax.interop.weights import save_weights, sha256
from gamax.models import create_model

SMALL: dict[str, dict[str, Any]] = {
    "gama_ir_tiny": {"width": 4, "depth": 3, "levels": 1},
    "nafnet_sidd_w32": {"width": 4, "encoder_blocks": (1,), "middle_blocks": 1, "decoder_blocks": (1,)},
    "restormer": {"width": 4, "blocks": (1, 0, 0, 1), "refinement_blocks": 0, "heads": (1, 2, 2, 4)},
    "unet": {"width": 2},
    "dmphn_1_2_4": {"levels": (1, 2), "widths": (2, 2, 2)},
    "saphn": {"widths": (2, 2, 2), "levels": (1, 2), "blocks": 1, "kernel_size": 1, "max_offset": 1},
    "lir": {"width": 16, "encoder_blocks": (1, 0), "middle_blocks": 0, "decoder_blocks": (0, 0)},
    "swintormer": {"width": 8, "blocks": (2, 0, 0, 1), "refinement_blocks": 0, "window_size": 2, "heads": (1, 2, 2, 2)},
}
NAME = "gama_ir_tiny"
OF_ANY_SIZE = [name for name in SMALL if name != "swintormer"]
TO_ONNX = [name for name in SMALL if name != "saphn"]


@pytest.fixture(scope="module")
def network(random_params):
    def make(name: str, **options: Any) -> tuple[nn.Module, Any]:
        model = create_model(name, **SMALL[name], **options)
        params = random_params(model, (1, 64, 64, model.input_channels))
        # Small, so that noise stays an image through networks without norms.
        return model, jax.tree.map(lambda leaf: 0.3 * leaf, params)

    return make


@pytest.fixture
def weights(tmp_path: Path, network) -> Path:
    path = tmp_path / "weights.safetensors"
    save_weights(path, network(NAME)[1], NAME, SMALL[NAME])
    return path


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).random(shape, np.float32)


def restored_by(model: nn.Module, params: Any, images: np.ndarray) -> jax.Array:
    return jax.jit(model.apply)({"params": params}, images)


@pytest.mark.parametrize("name", OF_ANY_SIZE)
def test_a_stablehlo_file_for_any_size_gives_what_the_network_gives(name, network):
    model, params = network(name)
    signature = find_signature(model, params, None, None)
    # LIR pads to 128 pixels at least, which is another program.
    assert signature == Signature(None, None, 3, model.size_multiple, 160 if name == "lir" else model.size_multiple)
    content = to_stablehlo(model, params, signature)
    found = differences(partial(run_stablehlo, content), model, params, signature)
    assert len({shape[0] for shape in found}) == len({shape[1] for shape in found}) == 2
    assert max(found.values()) < 1e-6


@pytest.mark.parametrize(
    ("name", "options", "needed"),
    [
        ("restormer", {"local_window": 64}, "Restormer with these options .* add --size HEIGHTxWIDTH$"),
        ("swintormer", {}, "add --size HEIGHTxWIDTH and --batch NUMBER$"),
    ],
)
def test_other_networks_say_what_must_be_fixed_and_are_exported_then(name, options, needed, network):
    model, params = network(name, **options)
    with pytest.raises(UserError, match=needed):
        find_signature(model, params, None, None)
    signature = find_signature(model, params, (34, 77), 2)
    content = to_stablehlo(model, params, signature)
    assert differences(partial(run_stablehlo, content), model, params, signature)[2, 34, 77, 3] < 5e-6


def test_a_fixed_size_need_not_be_a_multiple_and_the_number_of_images_stays_open(network):
    model, params = network(NAME)
    signature = find_signature(model, params, (21, 13), None)
    content = to_stablehlo(model, params, signature)
    for batch in (1, 3):
        images = noise(batch, 21, 13, 3)
        np.testing.assert_allclose(run_stablehlo(content, images), restored_by(model, params, images), atol=1e-6)
    with pytest.raises(ValueError, match="shape"):
        run_stablehlo(content, noise(1, 22, 13, 3))


@pytest.mark.parametrize("name", [NAME, "nafnet_sidd_w32", "lir"])
def test_windows_are_exported_for_images_larger_than_they_are(name, network):
    window = 160 if name == "lir" else 6
    assert find_signature(*network(name, local_window=window), None, None).smallest == window + (
        32 if name == "lir" else 2
    )


def test_windows_are_those_of_the_network(network, random_params):
    model, _ = network(NAME, local_window=130)
    params = random_params(model, (1, 16, 16, 3))
    signature = find_signature(model, params, None, 1)
    assert signature.smallest == 132
    content = to_stablehlo(model, params, signature)
    # The means of noise are the same everywhere.
    images = noise(1, 190, 196, 3) * np.linspace(0, 2, 196, dtype=np.float32)[:, None]
    restored = run_stablehlo(content, images)
    np.testing.assert_allclose(restored, restored_by(model, params, images), atol=1e-5)
    whole, _ = network(NAME)
    assert np.abs(restored - restored_by(whole, params, images)).max() > 1e-4
    with pytest.raises(ValueError, match="shapes"):
        run_stablehlo(content, noise(1, 130, 136, 3))


def test_one_stablehlo_file_serves_several_platforms_and_names_its_network(network):
    model, params = network(NAME)
    signature = Signature(2, None, 3, 2, 2)
    exported = export.deserialize(bytearray(to_stablehlo(model, params, signature, name=NAME)))
    assert exported.platforms == PLATFORMS
    assert exported.fun_name == NAME
    assert str(exported.in_avals[0].shape) == "(2, 2*rows, 2*columns, 3)"
    only = export.deserialize(bytearray(to_stablehlo(model, params, signature, ["tpu"])))
    assert only.platforms == ("tpu",)


def test_a_stablehlo_file_needs_nothing_but_jax(network, tmp_path):
    model, params = network(NAME)
    (tmp_path / "network").write_bytes(to_stablehlo(model, params, find_signature(model, params, None, None)))
    np.save(tmp_path / "images.npy", noise(1, 8, 6, 3))
    script = (
        "import sys, numpy; from jax import export\n"
        "network = export.deserialize(bytearray(open('network', 'rb').read()))\n"
        "numpy.save('restored.npy', network.call(numpy.load('images.npy')))\n"
        "assert not {'gamax', 'flax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    expected = restored_by(model, params, noise(1, 8, 6, 3))
    np.testing.assert_allclose(np.load(tmp_path / "restored.npy"), expected, atol=1e-6)


def primitives(program: Any) -> set[str]:
    names = set()
    for equation in program.eqns:
        names |= {equation.primitive.name}
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            names |= primitives(inner) if hasattr(inner, "eqns") else set()
    return names


def test_what_converters_do_not_know_is_taken_out_of_a_program(network):
    # The ReLU of this mixer has a gradient of its own in forward mode, the depth-wise convolution one in reverse mode.
    model, params = network(NAME, mixer="squeeze_excite")
    images = jnp.asarray(noise(1, 8, 6, 3))
    program = jax.make_jaxpr(lambda images: model.apply({"params": params}, images))(images)
    strange = {"platform_index", "cond", "custom_vjp_call", "custom_jvp_call", "jit"}
    assert strange <= primitives(program)

    def run(images: jax.Array) -> jax.Array:
        return exporting._run_everywhere(program, images)[0]

    assert not strange & primitives(jax.make_jaxpr(run)(images))
    np.testing.assert_allclose(jax.jit(run)(images), restored_by(model, params, images), atol=5e-6)


@pytest.mark.parametrize("name", TO_ONNX)
def test_an_onnx_file_gives_what_the_network_gives(name, network):
    pytest.importorskip("jax2onnx")
    model, params = network(name)
    signature = find_signature(model, params, (34, 45), 1)
    content = to_onnx(model, params, signature)
    assert differences(partial(run_onnx, content), model, params, signature)[1, 34, 45, 3] < 1e-5


@pytest.mark.parametrize("name", [name for name in OF_ANY_SIZE if name in TO_ONNX])
def test_an_onnx_file_for_any_size_gives_what_the_network_gives(name, network):
    pytest.importorskip("jax2onnx")
    model, params = network(name)
    signature = find_signature(model, params, None, None)
    found = differences(partial(run_onnx, to_onnx(model, params, signature)), model, params, signature)
    assert len({shape[1] for shape in found}) == 2
    assert max(found.values()) < 1e-5


def test_an_onnx_file_says_what_it_is_and_takes(network):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("jax2onnx")
    model, params = network(NAME)
    content = to_onnx(model, params, find_signature(model, params, None, None), NAME, {"model": NAME})
    read = onnx.load_model_from_string(content)
    onnx.checker.check_model(read)
    assert {entry.key: json.loads(entry.value) for entry in read.metadata_props} == {"gamax": {"model": NAME}}
    (taken,), (given,) = read.graph.input, read.graph.output
    assert (taken.name, given.name) == ("images", "restored")
    for value in (taken, given):
        sides = [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]
        assert sides == ["batch", "height", "width", 3]
    assert [entry.version for entry in read.opset_import] == [18]


def test_what_the_onnx_converter_cannot_take_is_said(network):
    pytest.importorskip("jax2onnx")
    model, params = network("restormer", local_window=64)
    with pytest.raises(UserError, match=r"cannot convert Restormer .*: fix --size and --batch, or export to stablehlo"):
        to_onnx(model, params, find_signature(model, params, (34, 77), None))


def test_onnx_is_refused_with_the_remedy(network, monkeypatch):
    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"jax2onnx and onnxruntime: pip install 'gamax\[onnx\]'"):
        check_onnx(network(NAME)[0])
    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda name: name)
    with pytest.raises(UserError, match="no convolution in bfloat16: export with --dtype float32"):
        check_onnx(network(NAME, dtype="bfloat16")[0])
    with pytest.raises(UserError, match=r"SAPHN takes pixels from places .*: export to stablehlo"):
        check_onnx(network("saphn")[0])


def test_the_command_writes_a_file_that_it_has_tried(weights, network, capsys):
    Export(weights, "stablehlo").run()
    printed = capsys.readouterr().out
    assert "exporting gama_ir_tiny: images [batch, height, width, 3] float32 in [0, 1]" in printed
    assert "tried on noise [2, 64, 66, 3]" in printed
    assert "tried on noise [1, 68, 64, 3]" in printed
    model, params = network(NAME)
    images = noise(1, 6, 8, 3)
    restored = run_stablehlo(weights.with_name("weights.stablehlo").read_bytes(), images)
    np.testing.assert_allclose(restored, restored_by(model, params, images), atol=1e-6)
    Export(weights.parent, "stablehlo", size="5x7", batch=1, dtype="bfloat16", platforms=("tpu",)).run()
    assert "not tried: this machine has cpu, and the file is for tpu" in capsys.readouterr().out
    exported = export.deserialize(bytearray(weights.with_name("weights-5x7.stablehlo").read_bytes()))
    assert exported.in_avals[0].shape == (1, 5, 7, 3)


def test_the_command_writes_onnx_with_its_origin(weights):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("jax2onnx")
    Export(weights, "onnx", output=weights.with_name("deep") / "network.onnx", local_window=8, size="24x24").run()
    read = onnx.load(weights.with_name("deep") / "network.onnx")
    origin = json.loads(read.metadata_props[0].value)
    assert (origin["model"], origin["weights_sha256"], origin["local_window"]) == (NAME, sha256(weights), 8)
    assert origin["input"] == "images [batch, 24, 24, 3] float32 in [0, 1]"


@pytest.mark.parametrize(("language", "package"), [("stablehlo", "jax"), ("onnx", "jax2onnx")])
def test_the_code_on_the_page_runs(language, package, weights, network, monkeypatch):
    pytest.importorskip(package)
    Export(weights, language).run()
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
    (block,) = [
        block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if f"weights.{language}" in block
    ]
    monkeypatch.chdir(weights.parent)
    names: dict[str, Any] = {}
    exec(block, names)
    model, params = network(NAME)
    # The page pads to another multiple than this network's, over which its means then are.
    expected = restored_by(model, params, names["padded"][None])[0, :45, :62]
    np.testing.assert_allclose(names["restored"], np.clip(expected, 0, 1), atol=1e-5)


def test_a_file_that_differs_from_the_network_is_not_written(weights, monkeypatch):
    monkeypatch.setattr(exporting, "run_stablehlo", lambda content, images: images + np.nan)
    with pytest.raises(UserError, match=r"differs from the original by nan, more than 0\.0001, so it was not written"):
        Export(weights, "stablehlo").run()
    assert [path.name for path in weights.parent.iterdir()] == [weights.name]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "720"}, "'720' is not a size; write HEIGHTxWIDTH"),
        ({"size": "1x40"}, "'1x40' is not a size"),
        ({"batch": 0}, "--batch must be at least 1, not 0"),
        ({"platforms": ()}, "--platforms needs at least one"),
        ({"local_window": 1}, "local_window must be at least 2"),
    ],
)
def test_wrong_options_are_named_before_anything_is_written(options, message, weights):
    with pytest.raises(UserError, match=message):
        Export(weights, "stablehlo", **options).run()
    assert len(list(weights.parent.iterdir())) == 1
