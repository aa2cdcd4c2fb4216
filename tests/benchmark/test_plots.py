from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gamax.benchmark import plots
from gamax.errors import UserError
from gamax.interop.weights import save_weights
from gamax.models import VARIANTS

BACKENDS = ("jax", "torch-eager")


def row(model: str, backend: str, number: int = 1, **others: Any) -> dict[str, Any]:
    """A row of which every figure differs."""
    return {
        **{"model": model, "backend": backend, "overrides": {}, "height": 100 * number, "width": 100, "batch": 2},
        **{"latency_ms_median": 10.0 * number, "latency_ms_p10": 9.0 * number, "latency_ms_p90": 12.0 * number},
        **{"multiply_adds": number * 10**9, "parameters": number * 10**6, "activations": number * 10**7},
        **{"peak_memory_bytes": number * 10**8, "peak_memory_method": "weighed", "depth": number},
        **{"program_bytes": number * 10**7},
        **{"device": "a processor, 2 cores", "precision": "fp32-strict"},
        "versions": {"jax": "1.2"} if backend == "jax" else {"torch": "3.4"},
        **others,
    }


ROWS = [
    row(model, backend, number)
    for number, model in enumerate(("gama_ir_tiny", "nafnet_sidd_w32", "restormer_denoising"), 1)
    for backend in BACKENDS
]


def png(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return image.size


def series(axes: Any) -> dict[str, list[tuple[float, float]]]:
    handles, labels = axes.get_legend_handles_labels()
    lines = [handle[0] if isinstance(handle, tuple) else handle for handle in handles]
    return {
        label: list(zip(*map(list, line.get_data()), strict=True)) for label, line in zip(labels, lines, strict=True)
    }


@pytest.mark.parametrize(
    ("draw", "x_label", "y_label", "points"),
    [
        (plots.latency_against_multiply_adds, "multiply-adds, G", "latency, ms", [(1, 10), (2, 20), (3, 30)]),
        (plots.memory_against_parameters, "parameters, millions", "peak memory, MB", [(1, 100), (2, 200), (3, 300)]),
    ],
    ids=["latency", "memory"],
)
def test_every_backend_is_a_series_of_all_networks(draw, x_label, y_label, points, tmp_path):
    figure = draw(ROWS, tmp_path / "plot.png")
    assert min(png(tmp_path / "plot.png")) > 500
    (axes,) = figure.axes
    assert axes.get_xlabel() == x_label
    assert axes.get_ylabel().startswith(y_label)
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert series(axes) == dict.fromkeys(BACKENDS, points)
    assert {text.get_text() for text in axes.texts} == {row["model"] for row in ROWS}
    for said in ("a processor, 2 cores", "fp32-strict", "jax 1.2", "torch 3.4"):
        assert said in figure.get_suptitle()


def test_pixels_are_those_of_one_image_and_so_is_the_latency(tmp_path):
    rows = [row("unet", "jax", number) for number in (3, 1, 2)]
    (axes,) = plots.scaling_with_pixels(rows, tmp_path / "plot.png").axes
    assert series(axes) == {"unet": [(0.01, 5), (0.02, 10), (0.03, 15)]}
    (axes,) = plots.scaling_with_pixels([*rows, row("unet", "torch-eager")], tmp_path / "plot.png").axes
    assert list(series(axes)) == ["unet, jax", "unet, torch-eager"]


def test_published_psnr_is_told_from_measured(tmp_path):
    weights = tmp_path / "weights.safetensors"
    result = {
        **{"protocol": "sidd-srgb", "protocol_details": {"scores": ["psnr"]}, "inference": {}, "per_image": [{}]},
        **{"psnr": 31.5, "weights": str(weights), "weights_sha256": evaluated(weights)},
    }
    (tmp_path / "result.json").write_text(json.dumps(result))
    figure = plots.latency_against_psnr(ROWS, tmp_path / "plot.png", [tmp_path / "result.json"])
    png(tmp_path / "plot.png")
    (axes,) = figure.axes
    stated = [(20, 39.9672), (30, 40.02)]
    expected = {}
    for backend in BACKENDS:
        expected |= {f"{backend}: sidd-srgb": [(10, 31.5)], f"{backend}: SIDD, published by its authors": stated}
    assert series(axes) == expected
    fills = [line.get_fillstyle() for line in axes.lines]
    assert fills == ["full", "none"] * len(BACKENDS)
    assert axes.get_yscale() == "linear"

    # Other protocols have other numbers.
    (tmp_path / "other.json").write_text(json.dumps({**result, "protocol": "gauss-color-25"}))
    (axes,) = plots.latency_against_psnr(ROWS, tmp_path / "plot.png", [tmp_path / "other.json"]).axes
    assert list(series(axes)) == [f"{backend}: gauss-color-25" for backend in BACKENDS]
    with pytest.raises(UserError, match=r"different protocols \(gauss-color-25, sidd-srgb\)"):
        plots.latency_against_psnr(ROWS, tmp_path / "no.png", [tmp_path / "result.json", tmp_path / "other.json"])
    weights.write_bytes(weights.read_bytes() + b"\0")
    with pytest.raises(UserError, match=r"weights\.safetensors' are not those of"):
        plots.latency_against_psnr(ROWS, tmp_path / "no.png", [tmp_path / "result.json"])
    assert not (tmp_path / "no.png").exists()


def evaluated(path: Path) -> str:
    import jax
    import jax.numpy as jnp

    from gamax.models import abstract_params, create_model

    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract_params(create_model("gama_ir_tiny")))
    return save_weights(path, params, "gama_ir_tiny", {})


def test_published_numbers_stand_in_the_table_of_networks():
    for name, value in plots.PUBLISHED_SIDD.items():
        published = VARIANTS[name].published
        assert f"SIDD {value}" in published.replace("40.2970", "40.297")
        assert "unconfirmed" not in published


def test_networks_without_a_number_are_not_drawn(tmp_path):
    (axes,) = plots.latency_against_psnr(ROWS, tmp_path / "plot.png").axes
    assert {text.get_text() for text in axes.texts} == {"nafnet_sidd_w32", "restormer_denoising"}
    # A changed network is not the published one.
    changed = [{**one, "overrides": {"width": 16}} for one in ROWS]
    with pytest.raises(UserError, match="no row has a PSNR to draw; give result files"):
        plots.latency_against_psnr(changed, tmp_path / "no.png")
    with pytest.raises(UserError, match="no rows to draw"):
        plots.latency_against_multiply_adds([], tmp_path / "no.png")


def test_panels_of_the_studies(tmp_path):
    rows = [row("unet", "jax", number, family="ab"[number % 2], along=number) for number in range(1, 6)]
    pairs = [("multiply_adds", "latency_ms_median"), ("parameters", "program_bytes")]
    axes = plots.correlation_scatter(rows, tmp_path / "plot.png", pairs).axes
    assert [panel.get_xlabel() for panel in axes] == ["multiply-adds, G", "parameters, millions"]
    assert series(axes[1]) == {"b (3)": [(1, 10), (3, 30), (5, 50)], "a (2)": [(2, 20), (4, 40)]}

    axes = plots.scaling_panels({"width": rows[:3], "batch": rows[3:]}, tmp_path / "plot.png").axes
    # Row by row.
    assert [panel.get_xlabel() for panel in axes] == ["width", "batch"] * 2
    assert [panel.get_ylabel() for panel in axes[2:]] == ["memory of the program, MB"] * 2
    assert series(axes[0]) == {"unet": [(1, 10), (2, 20), (3, 30)]}
    assert series(axes[3]) == {"unet": [(4, 40), (5, 50)]}
