from __future__ import annotations

import json
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gamax import create_model
from gamax.blocks import GAMA, MIXERS, SqueezeExcite, check_mixer_option, find_mixer, is_global, make_mixer
from gamax.blocks.mixers import TRUSTED_MODULES, import_path, samples_pixels
from gamax.config import load
from gamax.errors import UserError
from gamax.interop.weights import load_weights, save_weights
from gamax.models import abstract_params, count_parameters

BLOCK = """
import flax.linen as nn

class Doubling(nn.Module):
    times: float = 2.0

    @nn.compact
    def __call__(self, x):
        return x * self.times * self.param("scale", nn.initializers.ones, (x.shape[-1],))

ready = Doubling()
"""


@pytest.fixture
def own_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The import path of a block of the user's in the working folder, not imported yet."""
    (tmp_path / "own_test_blocks.py").write_text(BLOCK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_test_blocks", raising=False)
    return "own_test_blocks:Doubling"


def test_a_name_an_import_path_and_options_are_read(own_block):
    assert find_mixer("sca") == ("sca", MIXERS["sca"], {})
    assert find_mixer("none") == ("none", None, {})
    assert find_mixer("gama(kernel_size=5, axes=('height', 'width'))") == (
        "gama",
        GAMA,
        {"kernel_size": 5, "axes": ("height", "width")},
    )
    path, found, options = find_mixer(f"{own_block}(times=3.0)")
    assert (path, options) == (own_block, {"times": 3.0})
    assert found is not None
    assert float(found(**options).init_with_output(jax.random.key(0), jnp.ones((1, 1, 1, 1)))[0].item()) == 3
    assert str(Path.cwd()) not in sys.path


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("gamma", "unknown mixer 'gamma' .did you mean 'gama'.*my_blocks:MyBlock"),
        ("gama(kernel=5)", "the mixer gama has no option 'kernel' .did you mean 'kernel_size'"),
        ("gama(dtype='float16')", "has no option 'dtype'"),
        ("none(width=3)", "the mixer none has no option"),
        ("gama(5)", "not of the form"),
        ("gama(kernel_size=5", "not of the form"),
        ("gama(kernel_size=open('x'))", "not of the form"),
        ("gama(kernel_size=5)(2)", "not of the form"),
        ("no_such_module:Block", "cannot import the mixer 'no_such_module:Block' .ModuleNotFoundError"),
        ("math:Block", "cannot import the mixer 'math:Block' .AttributeError"),
        ("own_test_blocks:ready", "mixer must be a module class"),
    ],
)
def test_what_is_no_mixer_is_named_with_the_remedy(own_block, text, sentence):
    with pytest.raises(UserError, match=sentence):
        find_mixer(text)


def test_a_module_that_fails_when_it_is_imported_is_named(own_block):
    Path("own_failing_blocks.py").write_text("1 / 0")
    with pytest.raises(UserError, match=r"'own_failing_blocks:Block' \(ZeroDivisionError"):
        find_mixer("own_failing_blocks:Block")


def test_named_mixers_get_dtypes_and_window_and_imported_ones_decide_themselves(own_block):
    made = make_mixer("squeeze_excite(reduction=4)", 8, jnp.bfloat16, jnp.float32)
    assert made is not None
    assert made() == SqueezeExcite(4, 8, dtype=jnp.bfloat16)
    own = make_mixer(own_block, None, jnp.bfloat16, jnp.float32)
    assert own is not None
    assert {"times": own().times}.items() <= {"times": 2.0}.items()


def test_a_local_window_needs_a_mixer_that_has_one():
    check_mixer_option("gama(kernel_size=3)", 64, 2)
    with pytest.raises(UserError, match="local_window is for the mixers gama"):
        check_mixer_option("non_local(subsample=2)", 64, 2)


@pytest.mark.parametrize(
    ("mixer", "everywhere", "sampled"),
    [
        (None, False, False),
        ("none", False, False),
        ("gama(kernel_size=3)", True, False),
        ("pixel_dependent_filter(kernel_size=3)", False, True),
        ("my_blocks:MyBlock", True, True),
        (nn.Dense, True, True),
    ],
)
def test_what_an_unknown_mixer_does_is_taken_for_the_worst(mixer, everywhere, sampled):
    assert (is_global(mixer), samples_pixels(mixer)) == (everywhere, sampled)


def test_a_network_takes_mixers_with_options_and_blocks_of_the_users(own_block):
    def parameters(mixer: str) -> int:
        return count_parameters(abstract_params(create_model("gama_ir_tiny", mixer=mixer)))

    blocks, without = 8, parameters("none")
    assert parameters("gama(kernel_size=3)") - without == blocks * 27
    assert parameters("gama(axes=('height',))") - without == blocks * 49
    # Width 16 at full resolution, doubled at each of 3 halvings, with two blocks on each level and two at the bottom.
    assert parameters(own_block) - without == 2 * (16 + 32 + 64 + 128)


def test_weights_import_only_modules_that_the_user_has_named(own_block, tmp_path, monkeypatch):
    overrides = {"width": 2, "depth": 3, "levels": 1, "mixer": own_block}
    network = create_model("gama_ir_tiny", **overrides)
    params = network.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    save_weights(tmp_path / "own.safetensors", params, "gama_ir_tiny", overrides)
    with pytest.raises(UserError, match=f"set {TRUSTED_MODULES}=own_test_blocks"):
        load_weights(tmp_path / "own.safetensors")
    load_weights(tmp_path / "own.safetensors", mixer=own_block)
    monkeypatch.delitem(sys.modules, "own_test_blocks")
    with pytest.raises(UserError, match=f"needs the block '{own_block}'.*set {TRUSTED_MODULES}=own_test_blocks"):
        load_weights(tmp_path / "own.safetensors")
    assert "own_test_blocks" not in sys.modules
    monkeypatch.setenv(TRUSTED_MODULES, "other,own_test_blocks")
    load_weights(tmp_path / "own.safetensors")


def test_an_import_path_has_a_module_and_a_name():
    assert import_path("my_blocks.nested:Block(width=2)") == ("my_blocks.nested", "Block")
    assert [import_path(mixer) for mixer in ("gama", "gama(axes=('a:b',))", None, GAMA)] == [(None, "")] * 4


@pytest.mark.parametrize(
    "mixer",
    [
        "os:system(command='touch ran')",
        "pathlib:Path.touch",
        "gamax.blocks.mixers:find_mixer(text='own_test_blocks:Doubling')",
        "builtins:open(file='ran',mode='w')",
        "gamax.models.gama_ir:GAMAIR(mixer=\"os:system(command='touch ran')\")",
        "gamax.models.nafnet:NAFNet(mixer='own_test_blocks\\x3aDoubling')",
    ],
)
def test_weights_import_and_call_nothing(own_block, tmp_path, mixer):
    from safetensors.numpy import save_file

    description = {"model": "gama_ir_tiny", "overrides": {"mixer": mixer}, "dtype": "float32"}
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "evil.safetensors", {"gamax": json.dumps(description)})
    with pytest.raises(UserError, match=r"needs the block .*gamax runs no code because a file says so"):
        load_weights(tmp_path / "evil.safetensors")
    resolved = {"model": {"name": "gama_ir_tiny", "overrides": {"mixer": mixer}}}
    (tmp_path / "config.json").write_text(json.dumps(resolved))
    with pytest.raises(UserError, match=r"config\.json' needs the block .*gamax runs no code"):
        load(tmp_path / "config.json")
    assert not Path("ran").exists()
    assert "own_test_blocks" not in sys.modules


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("gama(kernel_size='x')", "'kernel_size' of the mixer gama must be a whole number of at least 1, not 'x'"),
        ("gama(kernel_size=-3)", "must be a whole number of at least 1, not -3"),
        ("gama(kernel_size=5.0)", "must be a whole number of at least 1, not 5.0"),
        ("gama(window=0)", "must be a whole number of at least 1, not 0"),
        ("gama(axes='height')", "'axes' of the mixer gama must be several values in brackets"),
        ("gama(combine='times')", "must be one of add, multiply, not 'times'"),
        ("squeeze_excite(reduction=0)", "must be a whole number of at least 1, not 0"),
        ("gama(**{'kernel_size': 3})", "not of the form"),
    ],
)
def test_values_that_an_option_cannot_have_are_named(text, sentence):
    with pytest.raises(UserError, match=sentence):
        find_mixer(text)
    assert find_mixer("gama(window=None)")[2] == {"window": None}


def test_two_windows_are_refused():
    with pytest.raises(UserError, match="two answers to one question"):
        create_model("gama_ir_tiny", mixer="gama(window=8)", local_window=64)
