from __future__ import annotations

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro

import gamax
from gamax.cli_lab import Lab
from gamax.data.images import to_float, write_image
from gamax.errors import UserError
from gamax.lab import explain, explain_pictures
from gamax.lab.explain import crop_window, explain_photo, module_figures, observe
from gamax.models import abstract_params

CHOSEN = np.array([[0, 17, 5]])
OFFSETS = np.random.default_rng(1).uniform(-1, 1, (1, 4, 6, 9, 2)).astype(np.float32)


class Sowing(nn.Module):
    """Brightens an image, then three of its pixels, and sows the maps of a module that has done nothing."""

    size_multiple: int = 4
    input_channels: int = 3

    @nn.compact
    def outputs(self, images):
        Maps(name="second")(images)
        Maps(name="first")(images)
        estimate = images + 0.1
        refined = estimate.reshape(1, -1, 3).at[0, CHOSEN[0]].add(-0.05).reshape(images.shape)
        self.sow("intermediates", "logits", images[..., 0])
        self.sow("intermediates", "chosen", jnp.asarray(CHOSEN))
        return [estimate, refined], images

    def __call__(self, images):
        return self.outputs(images)[0][-1]


class Maps(nn.Module):
    """Filters and even attention at half resolution."""

    @nn.compact
    def __call__(self, images):
        height, width = images.shape[1] // 2, images.shape[2] // 2
        Attention(name="attention")(height, width)
        self.sow("intermediates", "offsets", jnp.asarray(OFFSETS))
        self.sow("intermediates", "modulation", jnp.ones((1, height, width, 9)))
        self.sow("intermediates", "fusion", jnp.full((1, height, width, 1), 0.25))


class Attention(nn.Module):
    @nn.compact
    def __call__(self, height, width):
        self.sow("intermediates", "mask", jnp.ones((1, height, width, 1)))
        self.sow("intermediates", "key_map", jnp.full((1, height, width, 2), 1 / (height * width)))
        self.sow("intermediates", "query_map", jnp.full((1, height, width, 2), 0.5))


class Plain(nn.Module):
    size_multiple: int = 4
    input_channels: int = 3

    @nn.compact
    def __call__(self, images):
        return images


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Weights, of a network that `load` gives, a photograph of 8 rows and 12 columns, and its target."""
    rng = np.random.default_rng(0)
    paths = {name: tmp_path / f"{name}.png" for name in ("photo", "target")}
    for path in paths.values():
        write_image(path, rng.integers(0, 200, (8, 12, 3), np.uint8))
    (tmp_path / "weights").write_bytes(b"of a network")

    def load(model):
        monkeypatch.setattr(explain, "load_weights", lambda path: (model, {}))
        return tmp_path / "weights", paths["photo"], paths["target"]

    return load


def test_the_figures_are_those_of_the_maps(files):
    weights, photo, target = files(Sowing())
    record, written = explain_photo(weights, photo, target=target)
    folder = photo.with_name("photo_explained")
    assert (
        sorted(path.name for path in folder.iterdir())
        == sorted([*explain.PICTURE_NAMES, "explain.json"])
        == sorted(path.name for path in written)
    )
    assert json.loads((folder / "explain.json").read_text()) == record

    image, sharp = (to_float(gamax.data.images.read_image(path)) for path in (photo, target))
    restored = image + np.float32(0.1)
    restored.reshape(-1, 3)[CHOSEN[0]] -= np.float32(0.05)
    assert record["psnr"]["input"] == gamax.psnr(image, sharp, 1.0)
    assert record["psnr"]["outputs"] == pytest.approx(
        [gamax.psnr(image + 0.1, sharp, 1.0), gamax.psnr(restored, sharp, 1.0)], abs=1e-4
    )
    (stage,) = record["stages"]
    assert (stage["samples"], stage["share"]) == (3, 3 / 96)
    assert stage["psnr_after"] == record["psnr"]["outputs"][1]
    at_samples = [values.reshape(-1, 1, 3)[CHOSEN[0]] for values in (restored, sharp)]
    assert stage["psnr_at_samples_after"] == pytest.approx(gamax.psnr(*at_samples, 1.0), abs=1e-4)
    assert record["error"]["restored"]["at_samples"] == pytest.approx(np.abs(at_samples[0] - at_samples[1]).mean())

    # In the order in which they ran, with the attention inside.
    assert list(record["modules"]) == ["second", "first"]
    lengths = np.hypot(OFFSETS[..., 0], OFFSETS[..., 1])
    assert record["modules"]["first"] == pytest.approx(
        {
            **{"fusion": 0.25, "mask": 1, "attention_entropy": np.log(24), "attention_coverage": 1},
            **{"mean_offset": lengths.mean(), "largest_offset": lengths.max(), "modulation_spread": 0},
        },
        rel=1e-5,
        abs=1e-6,
    )


def test_attention_is_weighed_by_how_much_it_is_read():
    """One key map sees a single position, one the half of 24; the first is read three times as much."""
    key_map = np.zeros((1, 4, 6, 2), np.float32)
    key_map[:, 1, 2, 0] = 1
    key_map[:, :2, :, 1] = 1 / 12
    maps = {"mask": np.ones((1, 4, 6, 1)), "key_map": key_map, "query_map": np.full((1, 4, 6, 2), [0.75, 0.25])}
    found = module_figures(maps)
    assert found["attention_entropy"] == pytest.approx(np.log(12) / 4)
    assert found["attention_coverage"] == pytest.approx((0.75 * 1 + 0.25 * 12) / 24)


def test_the_taps_are_drawn_where_the_filter_samples():
    seen = observe(Sowing(), {}, np.full((8, 12, 3), 0.5, np.float32))
    place = (5, 2)
    figure = explain_pictures.filters_figure(
        {"first": seen.modules["first"]}, np.zeros((8, 12, 3), np.float32), [place]
    )
    _, taps = figure.axes[1].collections
    taps_down, taps_right = np.divmod(np.arange(9), 3)
    # Pixel (2, 1) of the features; each stands for 2x2 of the image, so the middle of pixel i is at 2 i + 0.5.
    down = 2 * (2 + taps_down - 1 + OFFSETS[0, 2, 1, :, 0]) + 0.5
    right = 2 * (1 + taps_right - 1 + OFFSETS[0, 2, 1, :, 1]) + 0.5
    # The panel is a crop around the place: 2 x (1 tap + 1 of offset + 1 to spare) pixels to each side.
    np.testing.assert_allclose(taps.get_offsets(), np.stack([right - 2 + 6, down - 5 + 6], -1), atol=1e-5)


def test_the_chosen_pixels_are_drawn_over_the_photograph():
    image = np.full((8, 12, 3), 0.5, np.float32)
    figure = explain_pictures.samples_figure(observe(Sowing(), {}, image), image)
    shown = figure.axes[0].images[0].get_array()
    coloured = np.ptp(shown, axis=-1) > 0.1
    np.testing.assert_array_equal(np.flatnonzero(coloured), np.sort(CHOSEN[0]))


def test_patches_of_an_image_are_counted_but_not_drawn():
    seen = observe(Sowing(), {}, np.full((8, 12, 3), 0.5, np.float32))
    halves = {name: np.concatenate([maps, maps]) for name, maps in seen.modules["first"].items()}
    image = np.zeros((8, 12, 3), np.float32)
    seen = explain.Seen(seen.outputs, {"halves": halves}, [], [])
    assert list(explain_pictures.draw(seen, image, None, (4, 6), one_place=False)) == ["levels.png"]
    assert explain.figures(seen, image, None)["modules"]["halves"]["fusion"] == 0.25


@pytest.mark.parametrize(
    ("point", "largest", "rows", "columns"),
    [
        ((50, 100), 512, (2, 98), (4, 196)),
        ((50, 100), 40, (34, 66), (84, 116)),
        ((0, 199), 40, (0, 32), (168, 200)),
    ],
)
def test_the_crop_holds_the_point(point, largest, rows, columns):
    window = crop_window((100, 200), point, largest, 32 if largest == 40 else 96)
    assert [(part.start, part.stop) for part in window] == [rows, columns]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"at": (8, 0)}, "--at 8,0 is outside '.*photo.png', which has 8 rows and 12 columns"),
        ({"size": 3}, "--size must be at least 4, of which this network needs multiples, not 3"),
        ({"model": Plain()}, "is a Plain with nothing to explain; take SAPHN, a network with adaptive sampling"),
        ({"model": Sowing(input_channels=1)}, "takes 1 channel"),
        ({"model": Sowing(size_multiple=16)}, "has 12x8 pixels; this network needs sides of at least 16"),
        ({"photo": "missing.png"}, "no image '.*missing.png'"),
        ({"target": "small.png"}, "small.png' has 4x4 pixels and '.*photo.png' has 12x8"),
        ({"output": "finished"}, "finished.explain.json' exists already; choose another --output or add --overwrite"),
    ],
)
def test_what_does_not_fit_is_one_sentence(files, tmp_path, options, sentence):
    weights, photo, _ = files(options.pop("model", Sowing()))
    write_image(tmp_path / "small.png", np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "finished").mkdir()
    (tmp_path / "finished" / "explain.json").touch()
    options = {key: tmp_path / value if isinstance(value, str) else value for key, value in options.items()}
    with pytest.raises(UserError, match=sentence):
        explain_photo(weights, options.pop("photo", photo), **options)
    assert not (tmp_path / "photo_explained").exists()


def test_the_command(tmp_path, capsys):
    """Of a real network, once more over what an earlier run with a target has left."""
    options = {"width": 4, "depth": 3, "levels": 1, "blocks_per_level": 1, "mixer": "content_aware"}
    params = jax.tree.map(
        lambda leaf: jnp.full(leaf.shape, 0.1), abstract_params(gamax.create_model("gama_ir_s", **options))
    )
    gamax.save_weights(tmp_path / "weights.safetensors", params, "gama_ir_s", options)
    # One pixel more than the network has a use for.
    write_image(tmp_path / "gray.png", np.random.default_rng(0).integers(0, 2**16, (17, 20, 1), np.uint16))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "error.png").touch()
    arguments = [str(tmp_path / "weights.safetensors"), str(tmp_path / "gray.png"), "-o", str(tmp_path / "out")]
    tyro.cli(Lab, args=["explain", *arguments, "--at", "3,4", "--overwrite"], config=(tyro.conf.OmitArgPrefixes,)).run()
    printed = capsys.readouterr().out
    assert "has 20x17 pixels: shown are 20x16 of them from row 0 and column 0, multiples of 2" in printed
    assert "no --target" in printed
    names = {"attention.png", "filters.png", "levels.png", "explain.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    record = json.loads((tmp_path / "out" / "explain.json").read_text())
    assert list(record["modules"]) == [f"{name}/mixing" for name in ("encoder_0_0", "bottom_0", "decoder_0_0")]
