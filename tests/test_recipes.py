"""The configurations in `configs/`: their schedules, their page in the documentation, and three steps of each."""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
import runpy
import subprocess
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import create_autospec

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gamax import config
from gamax.blocks import Conv
from gamax.config import DataConfig, Experiment, LoggingConfig, Stage, samples_seen, stages
from gamax.data.builders import find_builder
from gamax.data.datasets import PreparedDataset
from gamax.evaluation.protocols import find_protocol
from gamax.models import VARIANTS, create_model
from gamax.training import loop
from gamax.training.checkpoints import Checkpoints
from gamax.training.optimizer import make_schedule
from gamax.training.program import StepProgram, compile_step
from gamax.training.sharding import make_mesh
from gamax.training.state import TrainState, abstract_state

ROOT = Path(__file__).parents[1]
PATHS = {path.stem: path for path in sorted((ROOT / "configs").glob("*.py"))}
SHIPPED = tuple(name for name in PATHS if name.startswith("pretrained_"))
OWN = ("ldm_small", "paired", "quickstart", "vq_small", *SHIPPED)
"""Those that follow no paper."""
PAPERS = [name for name in PATHS if name not in OWN]


@functools.cache
def recipe(name: str) -> Experiment:
    experiment = config.load(PATHS[name])
    config.check(experiment)
    return experiment


def docstring(name: str) -> str:
    return " ".join(runpy.run_path(str(PATHS[name]))["__doc__"].split())


@pytest.mark.parametrize("name", PATHS)
def test_it_names_what_exists_and_says_how_to_run_it(name):
    experiment = recipe(name)
    create_model(experiment.model.name, **experiment.model.overrides)
    protocol = find_protocol(experiment.evaluation.protocol)
    assert ("noise" if experiment.data.degradations else "pairs") in protocol.inputs
    assert find_builder(experiment.data.dataset)
    # Whoever runs it says where the images are.
    assert experiment.data.source is None
    assert experiment.training.mesh == experiment.training.gradient_accumulation == "auto"
    text = docstring(name)
    assert f" Command: python train.py configs/{name}.py" in text
    labels = ["Command", "Result", "Time"] + ["Differs"] * (name in PAPERS)
    assert re.findall(r" ([A-Z][a-z]+):  ?", text) == labels
    assert ("not reproduced here yet" in text) == (name in PAPERS)


FIXTURES = {
    "nafnet_true_cosine_200k": [
        *("gama_ir_s_sidd", "gama_ir_s_gopro", "gama_ir_s_rain13k", "gama_ir_s_gaussian"),
        *("nafnet_sidd_w32", "nafnet_gopro_w32", "unet_sidd"),
    ],
    "nafnet_true_cosine_400k": [
        *("gama_ir_l_sidd", "gama_ir_l_gopro", "gama_ir_l_rain13k", "gama_ir_l_gaussian"),
        *("nafnet_sidd_w64", "nafnet_gopro_w64"),
    ],
    "restormer_300k": [
        *("restormer_sidd", "restormer_gopro", "restormer_rain13k", "restormer_gaussian_color", "restormer_dpdd"),
    ],
    "lir_derain_450k_450k": ["lir_rain13k", "lir_denoise"],
    "lir_dehaze_400k_350k": ["lir_dehaze", "lir_gopro"],
}
"""Learning rates recorded from the authors' code, and the recipes that they belong to."""


def learning_rates(name: str, steps: list[int]) -> np.ndarray:
    experiment = recipe(name)
    return np.asarray(make_schedule(experiment.optimizer, experiment.training.steps)(jnp.asarray(steps)))


@pytest.mark.parametrize(("fixture", "name"), [(fixture, name) for fixture in FIXTURES for name in FIXTURES[fixture]])
def test_the_learning_rates_are_those_of_the_authors(fixture, name, shared_folder):
    cases = json.loads((shared_folder / "fixtures" / "schedule" / "learning_rates.json").read_text())["cases"]
    (case,) = (item for item in cases if item["name"] == fixture)
    assert recipe(name).training.steps == case["steps"][-1]
    # Half a unit in the last place of a float32 cosine near -1.
    rounding = case["config"]["base_lr"] / 2 * 2**-24
    np.testing.assert_allclose(learning_rates(name, case["steps"]), case["lr"], rtol=1e-6, atol=rounding)


SWINTORMER = ("swintormer_dpdd", "swintormer_dpdd_dual")


@pytest.mark.parametrize("name", SWINTORMER)
def test_the_learning_rates_of_swintormer_are_those_of_its_options(name):
    falling = [12_000, 12_001, 222_000, 432_000, 642_000, 851_999, 852_000]
    expected = [1e-5 + (3e-4 - 1e-5) * (1 + math.cos(math.pi * (step - 12_000) / 840_000)) / 2 for step in falling]
    np.testing.assert_allclose(learning_rates(name, [0, 11_999, *falling]), [3e-4, 3e-4, *expected], 1e-6)
    assert recipe(name).training.steps == falling[-1]


def test_the_learning_rate_of_saphn_is_halved_every_200000_steps():
    steps = [0, 199_999, 200_001, 399_999, 400_001, 800_001, 999_999]
    halved = [0, 0, 1, 1, 2, 4, 4]
    np.testing.assert_allclose(learning_rates("saphn_gopro", steps), [1e-4 / 2**times for times in halved], 1e-6)
    assert recipe("saphn_gopro").training.steps == 1_000_000


def test_every_recipe_of_a_paper_has_its_schedule_checked():
    assert sorted([*itertools.chain(*FIXTURES.values()), "saphn_gopro", *SWINTORMER]) == PAPERS


def test_the_stages_are_those_of_the_authors():
    eight = [(128, 92_000, 8), (160, 64_000, 5), (192, 48_000, 4), (256, 36_000, 2), (320, 36_000, 1), (384, 24_000, 1)]
    for name in FIXTURES["restormer_300k"]:
        assert steps_of(recipe(name)) == [(patch, steps, 8 * each) for patch, steps, each in eight]
    for name, gpus in {"lir_gopro": 4, "lir_denoise": 2, "lir_rain13k": 2, "lir_dehaze": 1}.items():
        thirds = [(patch, 250_000, gpus * each) for patch, each in ((128, 16), (160, 8), (256, 4))]
        assert steps_of(recipe(name)) == thirds


def steps_of(experiment: Experiment) -> list[tuple[int, int, int]]:
    """Patch size, steps and batch size of every stage."""
    parts = stages(experiment)
    ends = [*(stage.first_step for stage in parts[1:]), experiment.training.steps]
    return [
        (stage.patch_size, end - stage.first_step, stage.batch_size) for stage, end in zip(parts, ends, strict=True)
    ]


def table() -> str:
    """The table of the documentation, from the configurations."""
    rows = [
        ("recipe", "network", "dataset", "steps", "batch x crop", "crops seen", "loss", "result of the authors"),
        ("---", "---", "---", "---:", "---", "---:", "---", "---"),
    ]
    for name in PAPERS:
        experiment = recipe(name)
        steps = experiment.training.steps
        result = re.search(r"Result: (?:published )?(.*); not reproduced here yet", docstring(name))
        assert result is not None
        rows.append(
            (
                f"[{name}](../configs/{name}.py)",
                experiment.model.name,
                experiment.data.dataset,
                f"{steps:,}",
                ", ".join(f"{stage.batch_size} x {stage.patch_size}" for stage in stages(experiment)),
                f"{samples_seen(experiment, steps) / 1e6:.1f} M",
                experiment.training.loss,
                result[1],
            )
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def test_the_page_has_the_table_of_the_recipes():
    assert table() in (ROOT / "docs" / "recipes.md").read_text(), f"put this table into docs/recipes.md:\n{table()}"


PAGES = {name: (ROOT / "docs" / name).read_text() for name in ("recipes.md", "launch.md")}


@pytest.mark.parametrize("page", PAGES)
def test_the_pages_name_flags_and_configurations_that_exist(page):
    flags = re.findall(r"--((?:model|data|optimizer|training|evaluation|logging|distributed)\.[\w.-]+)", PAGES[page])
    assert flags
    for flag in flags:
        group, *field = flag.replace("-", "_").split(".")
        assert field[0] in {item.name for item in fields(getattr(Experiment(), group))}, flag
    assert set(re.findall(r"configs/(\w+)\.py", PAGES[page])) <= set(PATHS)


@pytest.mark.parametrize(("codes", "last"), [([75, 75, 0], 0), ([75, 2, 0], 2), ([130, 0], 130)])
def test_the_loop_of_the_page_starts_again_after_75_alone(codes, last, tmp_path):
    (loop_of_page,) = re.findall(r"```bash\n(until .*?)```", PAGES["launch.md"], flags=re.DOTALL)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nread code rest < codes\necho "$rest" > codes\nexit "$code"\n')
    python.chmod(0o755)
    (tmp_path / "codes").write_text(" ".join(map(str, codes)) + "\n")
    assert subprocess.run(["bash", "-c", loop_of_page], cwd=tmp_path, check=False).returncode == last
    left = (tmp_path / "codes").read_text().split()
    assert left == list(map(str, codes[codes.index(last) + 1 :]))


NETWORKS: dict[str, dict[str, Any]] = {
    "gama_ir_s_gopro": {"width": 4, "depth": 3, "levels": 1, "blocks_per_level": 1},
    "nafnet_gopro_w32": {"width": 4, "encoder_blocks": (0,), "middle_blocks": 1, "decoder_blocks": (0,)},
    "restormer_gopro": {"width": 2, "blocks": (0, 0, 0, 0), "refinement_blocks": 1, "heads": (1, 1, 1, 1)},
    "unet_sidd": {"width": 1},
    "lir_gopro": {"width": 16, "encoder_blocks": (0, 0), "middle_blocks": 0, "decoder_blocks": (0, 0)},
    "saphn_gopro": {"widths": (4, 4, 4), "levels": (1,), "blocks": 1, "branches": "none", "start": 0.0},
    "swintormer_dpdd": {
        "width": 2,
        "blocks": (0, 0, 0, 0),
        "refinement_blocks": 1,
        "window_size": 2,
        "heads": (1, 1, 1, 1),
    },
}
"""One recipe of each network is trained with it, as small as its fields allow; the others with one convolution."""
SIDE = 32
"""Of the crops of the first stage, in pixels."""


class StandIn(Conv):
    """In place of a network that takes long to compile."""

    input_channels: ClassVar[int] = 3


class TwoViews(Conv):
    """The same for two views of one scene."""

    input_channels: ClassVar[int] = 6


def miniature(name: str) -> tuple[nn.Module, Experiment]:
    """The recipe with a tiny network and two small crops a step, three steps, the last two of the second stage."""
    experiment = recipe(name)
    chosen = experiment.model
    model = create_model(chosen.name, **chosen.overrides, **NETWORKS[name]) if name in NETWORKS else StandIn(3, 3)
    if experiment.data.dataset == "dpdd_dual":
        model = TwoViews(3, 3)
    periods = tuple(replace(item, steps=index + 1) for index, item in enumerate(experiment.optimizer.periods))
    return model, replace(
        experiment,
        data=replace(experiment.data, patch_size=SIDE, loader_threads=1),
        optimizer=replace(experiment.optimizer, periods=periods),
        training=replace(
            experiment.training,
            steps=3,
            batch_size=2,
            progressive=tuple(Stage(1, 5 * SIDE // 4, 1) for _ in experiment.training.progressive[:1]),
            # Those of the whole network, which it may start from, do not fit.
            initial_weights={},
            gradient_accumulation=1,
        ),
        evaluation=replace(experiment.evaluation, every=0),
        logging=LoggingConfig(every=1, tensorboard=False),
    )


def computation(name: str) -> str:
    """Everything that the miniature of a recipe computes with."""
    model, experiment = miniature(name)
    data = replace(experiment.data, dataset="", cut_size=512, cut_stride=384, encoding="png")
    training = replace(experiment.training, checkpoint_every=1)
    return repr((model, data, experiment.optimizer, training, layout(experiment.data)))


def layout(data: DataConfig) -> tuple[dict[str, int], type[np.unsignedinteger]]:
    """The channels of the images of a dataset by name, and the type of its pixels."""
    inputs = {} if data.degradations else {"input": 6 if data.dataset == "dpdd_dual" else 3}
    return {"target": 3, **inputs}, np.uint16 if data.dataset.startswith("dpdd") else np.uint8


DISTINCT = sorted({computation(name): name for name in reversed(PATHS)}.values())
"""All but those that are the same computation once made small."""


def images(data: DataConfig) -> PreparedDataset:
    """A stand-in for the dataset, of four random images."""
    channels, dtype = layout(data)
    rng = np.random.default_rng(0)

    def image(depth: int) -> np.ndarray:
        return rng.integers(0, np.iinfo(dtype).max, (44, 48, depth), dtype, True)

    examples = [{"name": str(index), **{name: image(depth) for name, depth in channels.items()}} for index in range(4)]
    return PreparedDataset(Path("nowhere"), {"train": examples}, "random", {"train": 4}, {"train": None})


def programs(model: nn.Module, experiment: Experiment) -> tuple[dict[Stage, Any], Callable[[Stage], StepProgram]]:
    """The steps of the loop on one device, compiled in a hurry."""
    meshes = dict.fromkeys(stages(experiment), make_mesh((1, 1, 1), jax.devices()[:1]))
    channels, dtype = layout(experiment.data)
    crops = {name: (depth, dtype) for name, depth in channels.items()}

    @functools.cache
    def program(stage: Stage) -> StepProgram:
        return compile_step(
            model,
            experiment,
            stage,
            meshes[stage],
            abstract_state(model, experiment),
            crops,
            compiler_options={"xla_backend_optimization_level": 0},
        )

    return meshes, program


def test_every_network_of_a_paper_is_trained():
    assert set(NETWORKS) <= set(DISTINCT)
    assert {network_of(name) for name in NETWORKS} == {network_of(name) for name in PAPERS}


def network_of(name: str) -> type[nn.Module]:
    return VARIANTS[recipe(name).model.name].network


def state_of_numpy(model: nn.Module, experiment: Experiment) -> TrainState:
    """The state before the first step; to compile the initialisers of the networks would take longest."""
    rng = np.random.default_rng(0)
    abstract = abstract_state(model, experiment)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(leaf.dtype), abstract.params)
    opt_state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract.opt_state)
    average = None if abstract.ema_params is None else {part: params[part] for part in abstract.ema_params}
    return TrainState(np.int32(0), params, average, opt_state, jax.random.key(0), np.int32(0), np.int32(0))


@pytest.mark.parametrize("name", DISTINCT)
def test_three_steps_change_the_network(name, tmp_path, monkeypatch):
    """The real loop on random images.

    To keep it short, recipes that are equal once made small (`computation`) are trained once, and only one of each
    family with its network (`NETWORKS`): the data, loss, optimizer and stages are those of each.
    """
    monkeypatch.setattr(loop, "initial_state", state_of_numpy)
    model, experiment = miniature(name)
    meshes, program_of = programs(model, experiment)
    checkpoints = create_autospec(Checkpoints, instance=True)
    checkpoints.restore.return_value = None
    trained = loop.train(
        experiment,
        model,
        images(experiment.data),
        meshes,
        program_of,
        tmp_path,
        checkpoints,
        evaluate_params=pytest.fail,
        save_best=pytest.fail,
    )
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    seen = [2, 3, 4] if experiment.training.progressive else [2, 4, 6]
    assert [record["samples"] for record in records] == seen
    assert all(math.isfinite(record["loss"]) and record["gradient_norm"] > 0 for record in records)
    assert trained.skipped == 0
    assert [call.args[0] for call in checkpoints.save.call_args_list] == [3]
    before = state_of_numpy(model, experiment).params
    assert not any(jax.tree.leaves(jax.tree.map(np.array_equal, before, trained.params)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trained.params))
