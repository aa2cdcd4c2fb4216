from __future__ import annotations

import os
import runpy
import shutil
import signal
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import jax
import numpy as np
import pytest

from gamax.config import DataConfig, EvaluationConfig, Experiment, LoggingConfig, ModelConfig, TrainingConfig, stages
from gamax.data.datasets import PreparedDataset
from gamax.errors import StoppedError, UserError
from gamax.interop.weights import save_weights, sha256
from gamax.models import create_model
from gamax.models.nafnet import NAFNet
from gamax.training import loop
from gamax.training.checkpoints import Checkpoints
from gamax.training.initialization import begin_with, check_initial_weights, read_initial_weights
from gamax.training.program import StepProgram, compile_step
from gamax.training.sharding import make_mesh
from gamax.training.state import abstract_state, initial_state

NAME = "nafnet_sidd_w32"
TINY = {"width": 4, "encoder_blocks": (1,), "middle_blocks": 0, "decoder_blocks": (1,)}
CROPS = {"input": (3, np.uint8), "target": (3, np.uint8)}


def experiment(**sources: Path | str) -> Experiment:
    return Experiment(
        model=ModelConfig(NAME, TINY),
        data=DataConfig(dataset="paired_folder", patch_size=8, augment=False),
        training=TrainingConfig(
            steps=4,
            batch_size=2,
            loss="l1",
            ema_decay=0.5,
            gradient_accumulation=1,
            initial_weights={part: str(source) for part, source in sources.items()},
        ),
        evaluation=EvaluationConfig(every=2),
        logging=LoggingConfig(every=1, tensorboard=False),
    )


MODEL = create_model(NAME, **TINY)
SHAPES = abstract_state(MODEL, experiment()).params


@pytest.fixture(scope="module")
def runs(tmp_path_factory, random_params) -> tuple[Path, dict[str, Any]]:
    """A folder of the runs `a` and `b`, of the same network, and `wide`; and the parameters of the first two."""
    folder, params = tmp_path_factory.mktemp("runs"), {}
    for seed, (run, options) in enumerate({"a": TINY, "b": TINY, "wide": {**TINY, "width": 6}}.items()):
        params[run] = random_params(create_model(NAME, **options), (1, 16, 16, 3), seed)
        (folder / run).mkdir()
        save_weights(folder / run / "weights.safetensors", params[run], NAME, options)
    return folder, params


def assert_equal(actual: Any, desired: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, actual, desired)


def test_all_parameters_and_their_average_come_from_a_run(runs):
    folder, params = runs
    random = initial_state(MODEL, experiment())
    state = begin_with(random, read_initial_weights({"all": f"{folder}/a"}, SHAPES))
    assert_equal(state.params, params["a"])
    assert_equal(state.ema_params, params["a"])
    assert_equal(state.opt_state, random.opt_state)
    # A step donates both.
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((state.params, state.ema_params))]
    assert len(set(pointers)) == len(pointers)


def test_parts_come_from_parts_of_others_and_win_over_all(runs):
    folder, params = runs
    random = initial_state(MODEL, experiment())
    one = begin_with(random, read_initial_weights({"intro": f"{folder}/b:intro"}, SHAPES))
    assert_equal(one.params, {**random.params, "intro": params["b"]["intro"]})
    sources = {"intro": f"{folder}/b/weights.safetensors:intro", "all": f"{folder}/a"}
    both = begin_with(random, read_initial_weights(sources, SHAPES))
    assert_equal(both.params, {**params["a"], "intro": params["b"]["intro"]})


def test_a_colon_may_be_in_the_name_of_a_folder(runs, tmp_path):
    folder, params = runs
    shutil.copytree(folder / "a", tmp_path / "x:y")
    assert_equal(read_initial_weights({"all": f"{tmp_path}/x:y"}, SHAPES), params["a"])


@pytest.mark.parametrize(
    ("part", "source", "message"),
    [
        ("intra", "a:intro", r"names no part of the network: 'intra' \(did you mean 'intro'\?\)"),
        ("intro", "a:intra", r"a' has no part 'intra' \(did you mean 'intro'\?\)"),
        ("intro", "nowhere", "no weights at .*nowhere"),
        ("all", "wide", r"wide' does not fit: \d+ of \d+ arrays differ, first '.*' \(given \(.*\), network \(.*\)\)"),
        ("intro", "wide:intro", r"2 of 2 arrays differ, first 'intro/bias' \(given \(6,\), network \(4,\)\)"),
        ("intro", "a", r"first 'intro/bias' \(given None, network \(4,\)\); give .* or RUN:PART"),
    ],
)
def test_what_does_not_fit_is_named(part, source, message, runs):
    with pytest.raises(UserError, match=message):
        read_initial_weights({part: f"{runs[0]}/{source}"}, SHAPES)


def test_a_network_that_does_not_train_a_part_must_be_given_it(runs):
    class WithTrainedIntro(NAFNet):
        frozen_parts: ClassVar[tuple[str, ...]] = ("intro",)

    model = WithTrainedIntro(**TINY)
    message = f"{NAME} needs the intro of another run, as this one does not train it: add .* intro=RUN"
    ending = experiment(ending=f"{runs[0]}/a:ending")
    frozen = replace(ending, training=replace(ending.training, frozen=("intro",)))
    for chosen, configuration in ((model, ending), (NAFNet(**TINY), frozen)):
        with pytest.raises(UserError, match=message):
            check_initial_weights(chosen, configuration, SHAPES)
    for sources in ({"intro": f"{runs[0]}/a:intro"}, {"all": f"{runs[0]}/a"}):
        check_initial_weights(model, experiment(**sources), SHAPES)


def test_train_refuses_before_anything_is_written(runs, tmp_path):
    main = runpy.run_path(str(Path(__file__).parents[2] / "train.py"))["main"]
    configuration = str(Path(__file__).parents[2] / "configs/quickstart.py")
    folders = ["--logging.run-dir", f"{tmp_path}/run", "--data.prepared-dir", f"{tmp_path}/prepared"]
    with pytest.raises(UserError, match="a' does not fit"):
        main([configuration, *folders, "--training.initial-weights", f"all={runs[0]}/a"])
    assert list(tmp_path.iterdir()) == []


@cache
def program() -> StepProgram:
    (stage,), mesh = stages(experiment()), make_mesh((1, 1, 1), jax.devices()[:1])
    return compile_step(MODEL, experiment(), stage, mesh, abstract_state(MODEL, experiment()), CROPS)


def train(chosen: Experiment, run_dir: Path, evaluate: Any = lambda: None) -> loop.Trained:
    rng = np.random.default_rng(0)
    pairs = [{name: rng.integers(0, 256, (9, 10, 3), np.uint8) for name in CROPS} for _ in range(3)]
    examples = [{"name": str(index), **pair} for index, pair in enumerate(pairs)]
    dataset = PreparedDataset(Path("nowhere"), {"train": examples}, "random", {"train": 3}, {"train": None})
    step = program()

    def score(params: Any) -> Any:
        evaluate()
        return SimpleNamespace(mean=lambda metric: 30.0, means=lambda: {"psnr": 30.0}, worst=[])

    run_dir.mkdir(exist_ok=True)
    with Checkpoints(run_dir / "checkpoints", kept=1, kept_every=None) as checkpoints:
        return loop.train(
            chosen, MODEL, dataset, {step.stage: step.mesh}, lambda _: step, run_dir, checkpoints, score, lambda _: None
        )


def test_a_run_that_goes_on_does_not_need_them(runs, tmp_path, monkeypatch):
    # There are no images to draw.
    monkeypatch.setattr(loop, "save_comparison", lambda path, rows: None)
    monkeypatch.setattr(loop.MetricsLog, "picture", lambda *arguments: None)
    source = shutil.copytree(runs[0] / "a", tmp_path / "source")
    chosen = experiment(all=source)
    given = sha256(source / "weights.safetensors")
    whole = train(chosen, tmp_path / "whole")
    with pytest.raises(StoppedError, match="saved after step 2 of 4"):
        train(chosen, tmp_path / "cut", lambda: os.kill(os.getpid(), signal.SIGTERM))
    shutil.rmtree(source)
    rest = train(chosen, tmp_path / "cut")
    assert_equal(rest.params, whole.params)
    assert rest.initial_weights == whole.initial_weights == {"all": given}
    with pytest.raises(UserError, match=r"no weights at .*source"):
        train(chosen, tmp_path / "anew")
    random = train(replace(chosen, training=replace(chosen.training, initial_weights={})), tmp_path / "random")
    assert random.initial_weights == {}
    assert not np.array_equal(random.params["intro"]["kernel"], whole.params["intro"]["kernel"])
