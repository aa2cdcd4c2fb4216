from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gamax.cli_lab_studies import LabMemorise, command_line
from gamax.data.images import write_image
from gamax.errors import UserError
from gamax.lab import memorise as lab
from gamax.lab.memorise import MemoryNetwork, chessboard, load_image, matched_network, memorise, parameters_of

TINY: dict[str, Any] = {
    **{"images": ("chessboard", "photograph"), "mixers": ("none", "sca"), "size": 32, "squares": 4, "width": 2},
    **{"depth": 2, "kernel_size": 3, "padding": "zeros", "steps": 3, "learning_rate": 1e-3, "seeds": (0, 1)},
}


@pytest.mark.parametrize(
    ("hidden", "mixer", "expected"),
    [
        # The protocol's networks of width 20 have these numbers of parameters by hand.
        ((21, 21, 20, 20), "none", 33_125),
        ((20, 20, 20, 20), "squeeze_excite(reduction=4)", 33_303),
        ((21, 20, 20, 20), "gama", 33_352),
    ],
)
def test_the_networks_of_the_protocol_have_their_numbers_of_parameters(hidden, mixer, expected):
    assert parameters_of(MemoryNetwork(20, hidden, mixer)) == expected


@pytest.mark.parametrize("mixer", ["none", "squeeze_excite(reduction=4)", "gama", "sca", "non_local(subsample=8)"])
def test_numbers_of_parameters_are_matched_and_none_is_nearer(mixer):
    best = matched_network(3891, 6, 4, mixer)
    assert max(best.hidden) - min(best.hidden) <= 1
    totals = range(sum(best.hidden) - 2, sum(best.hidden) + 3)
    hidden = [tuple(total // 4 + (index < total % 4) for index in range(4)) for total in totals]
    distances = [abs(parameters_of(MemoryNetwork(6, widths, mixer)) - 3891) for widths in hidden]
    assert abs(parameters_of(best) - 3891) == min(distances) < 0.02 * 3891


def test_a_number_of_parameters_that_no_network_has_is_refused():
    with pytest.raises(UserError, match=r"mixer 'gama' has about 500 parameters .* change --width, --depth or --size"):
        matched_network(500, 4, 2, "gama")


@pytest.mark.parametrize("padding", ["zeros", "circular"])
def test_the_receptive_field_is_that_of_the_convolutions(padding):
    network = MemoryNetwork(2, (2, 2), padding=padding)
    noise = jax.random.uniform(jax.random.key(0), (1, 31, 31, 16))
    params = jax.tree.map(jnp.ones_like, network.init(jax.random.key(1), noise))
    sensitivity = jax.grad(lambda x: network.apply(params, x)[0, 15, 15].sum())(noise)
    seen = np.asarray(jnp.abs(sensitivity[0]).sum(-1)) > 0
    assert network.receptive_field == 13
    assert seen.any(0).sum() == seen.any(1).sum() == 13


def test_circular_convolutions_do_not_know_where_the_border_is():
    noise = jax.random.uniform(jax.random.key(0), (1, 16, 16, 16))
    moved = jnp.roll(noise, (5, 3), (1, 2))
    for padding, equal in (("circular", True), ("zeros", False)):
        network = MemoryNetwork(3, (4,), padding=padding)
        params = network.init(jax.random.key(1), noise)
        shifted_after = jnp.roll(network.apply(params, noise), (5, 3), (1, 2))
        np.testing.assert_equal(np.allclose(shifted_after, network.apply(params, moved), atol=1e-5), equal)


def test_the_chessboard_has_its_squares():
    board = chessboard(12, 3)
    assert board.shape == (12, 12, 3)
    blocks = board.reshape(3, 4, 3, 4, 3)
    np.testing.assert_array_equal(blocks, np.broadcast_to(blocks[:, :1, :, :1], blocks.shape))
    expected = np.float32([[0.1, 0.9, 0.1], [0.9, 0.1, 0.9], [0.1, 0.9, 0.1]])
    np.testing.assert_array_equal(blocks[:, 0, :, 0, 1], expected)


def test_a_file_is_cut_to_its_middle_square_and_scaled(tmp_path):
    image = np.zeros((40, 100, 3), np.uint8)
    image[:, 30:70] = 200
    write_image(tmp_path / "wide.png", image)
    loaded = load_image(str(tmp_path / "wide.png"), 20, 4)
    np.testing.assert_allclose(loaded, np.full((20, 20, 3), 200 / 255), atol=1e-3)
    with pytest.raises(UserError, match=r"wide\.png' has 100x40 pixels; choose a --size of at most 40"):
        load_image(str(tmp_path / "wide.png"), 64, 4)


def test_fitting_lowers_the_error_and_follows_from_the_seed():
    network, target = MemoryNetwork(4, (5, 5)), chessboard(16, 2)
    first, again, other = (memorise(network, target, 50, 1e-2, seed) for seed in (0, 0, 1))
    assert first == again
    assert first["psnr"] != other["psnr"]
    assert [step for step, _ in first["curve"]] == [25, 50]
    assert first["psnr"] > first["curve"][0][1] > 5


def test_the_study_reports_every_network_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    seen = []

    def counted(network: Any, target: Any, steps: Any, rate: Any, seed: int, update: Any) -> dict[str, Any]:
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append((network.mixer, seed))
        return memorise(network, target, steps, rate, seed, update)

    monkeypatch.setattr(lab, "memorise", counted)
    with pytest.raises(KeyboardInterrupt):
        lab.study(**TINY, folder=tmp_path, reproduce="")
    monkeypatch.setattr(lab, "memorise", lambda *args: memorise(*args))
    LabMemorise(**TINY, output=tmp_path).run()
    written = json.loads((tmp_path / "memorise.json").read_text())
    assert len(written["rows"]) == 8
    assert [line["psnr"]["count"] for line in written["summary"]] == [2] * 4
    trials = [json.loads(line)["trial"] for line in (tmp_path / "trials.jsonl").read_text().splitlines()]
    assert len(trials) == 8
    assert written["reproduce"] == command_line("memorise", LabMemorise(**TINY))
    assert "--mixers none sca --size 32" in written["reproduce"]
    assert (tmp_path / "memorise.md").read_text().count("| chessboard |") == 2
    for name in ("memorise_curves.png", "memorise_pictures.png"):
        assert (tmp_path / name).stat().st_size > 10_000


def test_the_verdict_compares_the_worst_seed_of_the_best_with_the_others():
    def line(mixer: str, low: float, mean: float, high: float) -> dict[str, Any]:
        return {"mixer": mixer, "psnr": {"low": low, "mean": mean, "high": high, "count": 3}}

    clear = lab._verdict([line("gama", 30, 31, 32), line("sca", 20, 25, 29), line("none", 10, 11, 12)])
    assert "gama is best by 6.00 dB, and its worst seed is above all seeds of the others" in clear
    assert "differ by 20.00 dB" in clear
    assert "is not above" in lab._verdict([line("gama", 28, 31, 32), line("sca", 20, 25, 29)])
    single = [{"mixer": mixer, "psnr": {"low": 1, "mean": 1, "high": 1, "count": 1}} for mixer in ("gama", "sca")]
    assert "one seed alone says nothing" in lab._verdict(single)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"steps": 0}, "memorise needs"),
        ({"squares": 33}, "at most as many as pixels"),
        ({"kernel_size": 4}, "odd kernel_size"),
        ({"mixers": ("gamma",)}, "unknown mixer 'gamma' .did you mean 'gama'"),
        ({"mixers": ("gama(kernel=3)",)}, "^the mixer gama has no option 'kernel' .did you mean 'kernel_size'"),
        ({"images": ("no.png",)}, "no.png"),
        ({"mixers": ("non_local(max_pixels=999)",)}, "raise max_pixels"),
    ],
)
def test_a_study_that_cannot_be_made_is_refused_before_any_training(tmp_path: Path, change, sentence):
    with pytest.raises(UserError, match=sentence):
        lab.study(**{**TINY, **change}, folder=tmp_path / "new", reproduce="")
    assert not (tmp_path / "new").exists()


def test_a_training_that_is_not_finite_is_a_row_that_says_so(tmp_path):
    options = {**TINY, "images": ("chessboard",), "mixers": ("none",), "learning_rate": 1e30, "steps": 5}
    report = lab.study(**options, folder=tmp_path, reproduce="")
    (line,) = report.record["summary"]
    assert (line["psnr"], line["not_finite"]) == (None, [0, 1])
    assert [row["PSNR, dB"] for rows in report.tables.values() for row in rows] == ["not finite"]
    assert "chessboard, plain: not finite for the seeds [0, 1]" in report.notes[-1]


def test_a_block_of_the_users_is_checked_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    head = "class {0}(nn.Module):\n    @nn.compact\n    def __call__(self, x):\n        return {1}\n\n"
    blocks = {"Half": "x[..., :1]", "Groups": "x + nn.GroupNorm(num_groups=4)(x)"}
    source = "".join(head.format(*block) for block in blocks.items())
    Path("own_memory_blocks.py").write_text(f"import flax.linen as nn\n\n{source}")
    for name, sentence in (
        ("Half", "own_memory_blocks:Half maps .* a mixer must keep the shape"),
        ("Groups", r"'own_memory_blocks:Groups' fails with \d+ channels \(ValueError: .*any number of channels"),
    ):
        with pytest.raises(UserError, match=sentence):
            lab.study(**{**TINY, "mixers": (f"own_memory_blocks:{name}",)}, folder=tmp_path / "new", reproduce="")
