from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from gamax.config import (
    CosinePeriod,
    DataConfig,
    EvaluationConfig,
    Experiment,
    LoggingConfig,
    ModelConfig,
    OptimizerConfig,
    Stage,
    TrainingConfig,
    check,
    from_dict,
    load,
    parse,
    to_dict,
)
from gamax.data.degradations import GaussianNoise, MotionBlur
from gamax.errors import USER_ERROR_EXIT_CODE, UserError
from gamax.training.run_folder import check_run, open_run

NOISY = DataConfig(degradations=(GaussianNoise((5.0, 50.0)),))
BLURRED = DataConfig(degradations=(MotionBlur(), GaussianNoise((1.0, 2.0))), mixup=0.5)
FULL = Experiment(
    model=ModelConfig(
        "gama_ir_s", {"width": 8, "mixer": "sca", "ratio": 0.5, "flag": True, "widths": (8, 16)}, "bfloat16"
    ),
    data=NOISY,
    optimizer=OptimizerConfig(gradient_clip=None, warmup_steps=3),
    training=TrainingConfig(steps=7, mesh=(2, -1, 1), ema_decay=0.5),
    evaluation=EvaluationConfig(data="somewhere"),
    logging=LoggingConfig(run_dir="runs/x", tensorboard=False),
)
TEXTS = {"ratios": "0.5,1", "open": "1,"}
PAIRED = Experiment(data=DataConfig(dataset="paired_folder", source="pairs"))


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    """A Python configuration file of an experiment that passes every check."""
    return write(tmp_path, "Experiment(data=NOISY, training=TrainingConfig(steps=50))")


def write(folder: Path, expression: str) -> Path:
    path = folder / "mine.py"
    imports = "from gamax.config import *\nfrom gamax.data.degradations import *\n"
    noisy = "NOISY = DataConfig(degradations=(GaussianNoise((25.0, 25.0)),))"
    path.write_text(f"{imports}\n{noisy}\nexperiment = {expression}\n")
    return path


@pytest.mark.parametrize("experiment", [Experiment(), FULL, PAIRED, Experiment(data=BLURRED)])
def test_an_experiment_survives_dictionaries_and_json(experiment):
    values = to_dict(experiment)
    assert from_dict(values) == experiment
    assert from_dict(json.loads(json.dumps(values))) == experiment
    assert json.loads(json.dumps(values)) == values


def test_an_experiment_that_is_a_dictionary_names_every_field():
    values = to_dict(Experiment())
    for group in dataclasses.fields(Experiment):
        names = {field.name for field in dataclasses.fields(getattr(Experiment(), group.name))}
        assert set(values[group.name]) == names


def test_an_integer_is_taken_for_a_float_and_only_that():
    noise = {"kind": "gaussian_noise", "sigma": [5, 6.5]}
    experiment = from_dict({"optimizer": {"learning_rate": 1}, "data": {"degradations": [noise]}})
    assert isinstance(experiment.optimizer.learning_rate, float)
    assert experiment.data.degradations == (GaussianNoise((5.0, 6.5)),)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimiser": {}}, r"unknown configuration field 'optimiser' \(did you mean 'optimizer'\?\)"),
        ({"training": {"stpes": 5}}, r"unknown configuration field 'training.stpes' \(did you mean 'training.steps'"),
        (
            {"data": {"degradations": [{"kind": "gaussian_noise", "sigam": [1, 2]}]}},
            "did you mean 'data.degradations.0.sigma'",
        ),
        ({"data": {"degradations": [{"kind": "gaussian"}]}}, "'data.degradations.0.kind' .* 'gaussian_noise'"),
        ({"data": {"degradations": [{"sigma": [1, 2]}]}}, "'data.degradations.0.kind'"),
        ({"data": {"degradations": [3]}}, "'data.degradations.0'"),
        ({"data": {"degradations": {"kind": "gaussian_noise"}}}, "'data.degradations'"),
        ({"training": 5}, r"'training'.*not 5"),
        ([1, 2], "the whole file"),
        ({"training": {"steps": "5"}}, r"'training.steps' must be int, not '5'"),
        ({"training": {"steps": 5.5}}, r"'training.steps' must be int, not 5.5"),
        ({"training": {"steps": True}}, r"'training.steps' must be int, not True"),
        ({"training": {"steps": None}}, r"'training.steps' must be int, not None"),
        ({"data": {"augment": 1}}, r"'data.augment' must be bool, not 1"),
        ({"optimizer": {"beta1": "high"}}, r"'optimizer.beta1' must be float, not 'high'"),
        ({"data": {"source": 5}}, r"'data.source' must be str or None"),
        ({"optimizer": {"gradient_clip": "off"}}, r"'optimizer.gradient_clip' must be float or None"),
        (
            {"model": {"overrides": {"width": None}}},
            r"'model.overrides.width' must be .*a list, each item int, not None",
        ),
        ({"model": {"overrides": {"widths": [1, 2.5]}}}, r"'model.overrides.widths.1' must be int, not 2.5"),
        # What could be written instead.
        ({"training": {"loss": "l3"}}, r"'training.loss' must be .*l1.*charbonnier.*not 'l3'"),
        ({"training": {"mesh": [1, 2]}}, r"'training.mesh' must be .*(3|three|int, int, int).*not \[1, 2\]"),
    ],
)
def test_fields_that_do_not_exist_or_have_the_wrong_type_are_named(values, message):
    with pytest.raises(UserError, match=message):
        from_dict(values)


def test_flags_replace_fields_of_the_file(config_file):
    experiment, name = parse(
        [
            str(config_file),
            *("--optimizer.learning-rate", "5e-4"),
            *("--training.mesh", "2", "4", "-1"),
            *("--training.ema-decay", "0.9"),
            *("--optimizer.gradient-clip", "None"),
            *("--data.augment", "False"),
            "--training.loss=mse",
        ],
        "train.py",
    )
    assert name == "mine"
    assert experiment.optimizer == OptimizerConfig(learning_rate=5e-4, gradient_clip=None)
    assert experiment.training == TrainingConfig(steps=50, mesh=(2, 4, -1), ema_decay=0.9, loss="mse")
    assert not experiment.data.augment


@pytest.mark.parametrize("underscores", [False, True])
def test_flags_may_be_written_with_underscores(underscores, config_file):
    flag = "--training.batch_size" if underscores else "--training.batch-size"
    assert parse([str(config_file), flag, "3"], "train.py")[0].training.batch_size == 3


def test_the_fields_of_the_degradations_are_flags(tmp_path):
    path = write(tmp_path, "Experiment(data=DataConfig(degradations=(MotionBlur(), GaussianNoise())))")
    experiment, _ = parse([str(path), "--data.degradations.1.sigma", "10", "20"], "train.py")
    assert experiment.data.degradations == (MotionBlur(), GaussianNoise((10.0, 20.0)))


@pytest.mark.parametrize(
    ("flags", "overrides"),
    [
        (["width=8", "mixer=sca"], {"width": 8, "mixer": "sca"}),
        (["ratio=0.5", "flag=true"], {"ratio": 0.5, "flag": True}),
        (["text=a=b", "null=null", "list=[1]"], {"text": "a=b", "null": "null", "list": "[1]"}),
        (["widths=8,-16,32", "levels=1", "ratios=0.5,1", "open=1,"], {"widths": (8, -16, 32), "levels": 1, **TEXTS}),
        ([], {}),
    ],
)
def test_overrides_of_the_network_are_pairs_of_key_and_value(flags, overrides, config_file):
    experiment, _ = parse([str(config_file), "--model.overrides", *flags], "train.py")
    assert experiment.model.overrides == overrides
    assert {key: type(value) for key, value in experiment.model.overrides.items()} == {
        key: type(value) for key, value in overrides.items()
    }


def test_lists_of_numbers_are_the_same_override_however_they_are_given(config_file, tmp_path):
    given, _ = parse([str(config_file), "--model.overrides", "widths=8,16"], "train.py")
    for values in ("(8, 16)", "[8, 16]"):
        expression = (
            f"Experiment(ModelConfig(overrides={{'widths': {values}}}), NOISY, training=TrainingConfig(steps=50))"
        )
        assert load(write(tmp_path, expression)) == given

    with open_run(tmp_path / "run", given):
        pass
    resolved, _ = parse([str(tmp_path / "run/config.json")], "train.py")
    assert resolved == given
    check_run(tmp_path / "run", resolved)
    other = dataclasses.replace(given, model=ModelConfig(overrides={"widths": (8, 17)}))
    with pytest.raises(UserError, match=r"model.overrides {'widths': \[8, 16\]}, not {'widths': \[8, 17\]}"):
        check_run(tmp_path / "run", other)


def test_the_help_shows_overrides_as_they_are_written(tmp_path, capsys):
    path = write(tmp_path, "Experiment(ModelConfig(overrides={'widths': (8, 16), 'mixer': 'sca'}), NOISY)")
    with pytest.raises(SystemExit):
        parse([str(path), "--help"], "train.py")
    assert "widths=8,16 mixer=sca" in capsys.readouterr().out


def test_overrides_of_the_file_stay_when_other_flags_are_given(tmp_path):
    path = write(
        tmp_path, "Experiment(ModelConfig(overrides={'width': 24}), DataConfig(degradations=(GaussianNoise(),)))"
    )
    assert parse([str(path), "--training.seed", "4"], "train.py")[0].model.overrides == {"width": 24}


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--optimizer.learning-rat", "'optimizer.learning_rat' (did you mean 'optimizer.learning_rate'?)"),
        ("--learning-rate", "did you mean 'optimizer.learning_rate'?"),
        ("--training.stpes=4", "did you mean 'training.steps'?"),
        ("--data.degradations.0.sigam", "did you mean 'data.degradations.0.sigma'?"),
    ],
)
def test_an_unknown_flag_names_the_nearest(flag, message, config_file):
    with pytest.raises(UserError) as error:
        parse([str(config_file), flag, "1"], "train.py")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--training.steps", "many"], ["--training.steps", "many"]),
        (["--training.loss", "l3"], ["--training.loss", "l3", "charbonnier"]),
        (["--training.mesh", "1", "2"], ["--training.mesh"]),
        (["--model.overrides", "width"], ["--model.overrides", "KEY=VALUE"]),
    ],
)
def test_a_flag_with_an_unfit_value_exits_with_a_sentence(arguments, words, config_file, capsys):
    with pytest.raises(SystemExit) as exit_:
        parse([str(config_file), *arguments], "train.py")
    printed = capsys.readouterr().err
    assert exit_.value.code == USER_ERROR_EXIT_CODE
    assert "Traceback" not in printed
    assert all(word in printed for word in words), printed


def test_a_negative_learning_rate_is_refused(config_file):
    with pytest.raises(UserError, match=r"'optimizer.learning_rate' must be above 0, not -0.001"):
        parse([str(config_file), "--optimizer.learning-rate", "-1e-3"], "train.py")


@pytest.mark.parametrize("arguments", [[], ["--training.steps", "5"]])
def test_the_configuration_file_comes_first(arguments):
    with pytest.raises(UserError, match=r"train.py needs a configuration file first"):
        parse(arguments, "train.py")


VIOLATIONS = {
    "optimizer.learning_rate": [0.0, -1.0, float("nan"), float("inf")],
    "optimizer.final_learning_rate": [-1e-9, 1.0],
    "training.gradient_accumulation": [0, -1, 3],
    "optimizer.warmup_steps": [-1, 200_000],
    "optimizer.periods": [(CosinePeriod(0),), (CosinePeriod(3, 1.0),), (CosinePeriod(3, 1e-6, 2.0),)],
    "optimizer.beta1": [-0.1, 1.0],
    "optimizer.beta2": [-0.1, 1.0],
    "optimizer.weight_decay": [-0.1, float("inf")],
    "optimizer.gradient_clip": [0.0, -1.0],
    "training.steps": [0],
    "training.batch_size": [0],
    "training.ema_decay": [0.0, 1.0],
    "training.seed": [-1, 2**32],
    "training.checkpoint_every": [0],
    "training.checkpoints_kept": [0],
    "training.checkpoints_kept_every": [0],
    "training.progressive": [
        (Stage(0),),
        (Stage(5), Stage(5)),
        (Stage(5, patch_size=513),),
        (Stage(5, patch_size=0),),
        (Stage(5, batch_size=0),),
    ],
    "logging.profile": [(0, 3), (4, 3), (4, 10**9)],
    "training.max_skipped_steps": [0],
    "data.cut_size": [0],
    "data.patch_size": [0, 513],
    "data.cut_stride": [0, 513],
    "data.loader_threads": [0],
    "data.mixup": [-0.1, 1.1],
    "data.cutblur": [-0.1, 1.1],
    "evaluation.every": [-1],
    "logging.every": [0],
}


def changed(experiment: Experiment, name: str, value: object) -> Experiment:
    group, field = name.split(".")
    return dataclasses.replace(experiment, **{group: dataclasses.replace(getattr(experiment, group), **{field: value})})


def test_sensible_experiments_pass_the_check():
    for experiment in (Experiment(data=NOISY), PAIRED):
        check(experiment)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in VIOLATIONS.items() for value in values])
def test_every_rule_names_the_field_that_breaks_it(name, value):
    with pytest.raises(UserError, match=name):
        check(changed(Experiment(data=NOISY), name, value))


def test_every_rule_of_the_check_is_broken_by_a_test():
    source = Path(check.__code__.co_filename).read_text()
    rules = set(re.findall(r'"(\w+\.\w+)": \(', source))
    assert len(rules) >= 18
    assert rules <= set(VIOLATIONS)


def test_the_boundaries_of_the_rules_are_allowed():
    for name, value in [
        ("optimizer.beta1", 0.0),
        ("optimizer.final_learning_rate", 1e-3),
        ("data.patch_size", 512),
        ("training.steps", 1),
        ("data.mixup", 1.0),
    ]:
        check(changed(Experiment(data=NOISY), name, value))


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        (
            "Experiment(training=TrainingConfig(step=5))",
            r"mine.py: .* field 'step' \(did you mean 'steps'\?\)",
        ),
        (
            "Experiment(optimiser=OptimizerConfig())",
            r"mine.py: .* field 'optimiser' \(did you mean 'optimizer'\?\)",
        ),
        ("Experiment(data=DataConfig(degradations=(GaussianNoise(sigam=5),)))", "did you mean 'sigma'"),
        ("5", "does not define `experiment = Experiment"),
    ],
)
def test_a_python_file_with_a_mistake_names_it(expression, message, tmp_path):
    with pytest.raises(UserError, match=message):
        load(write(tmp_path, expression))


@pytest.mark.parametrize(
    ("expression", "name"),
    [
        ("Experiment(data=NOISY, training=TrainingConfig(loss='l3'))", "training.loss"),
        ("Experiment(data=NOISY, training=TrainingConfig(steps='50'))", "training.steps"),
        ("Experiment(data=NOISY, training=TrainingConfig(mesh=(1, 2)))", "training.mesh"),
        ("Experiment(data=NOISY, model=ModelConfig(dtype='float16'))", "model.dtype"),
        ("Experiment(data=DataConfig(degradations=(GaussianNoise(25.0),)))", "data.degradations.0.sigma"),
        ("Experiment(data=DataConfig(degradations=GaussianNoise()))", "data.degradations"),
        ("Experiment(data=GaussianNoise())", "data"),
    ],
)
def test_a_python_file_with_a_value_of_the_wrong_type_names_the_field(expression, name, tmp_path):
    with pytest.raises(UserError, match=name):
        parse([str(write(tmp_path, expression))], "train.py")


@pytest.mark.parametrize("text", ["import nothing_of_this_name\n", "experiment = Experiment(\n"])
def test_a_python_file_that_cannot_run_is_named(text, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(UserError, match=r"mine.py' cannot be run as Python"):
        load(path)


def test_other_errors_in_a_python_file_keep_their_traceback(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        load(path)


def test_files_that_are_no_configurations_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no configuration file '.*none.py'"):
        load(tmp_path / "none.py")
    (tmp_path / "config.yaml").write_text("steps: 5")
    with pytest.raises(UserError, match=r"neither a Python configuration file \(.py\) nor a resolved one \(.json\)"):
        load(tmp_path / "config.yaml")
    for content in (b"{'steps': 5}", b"", b"\xff\xfe\x00", b"[1, 2]", b"5"):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(UserError, match=r"not valid JSON|the whole file"):
            load(tmp_path / "config.json")


def test_the_configuration_that_a_run_has_written_can_be_passed_back(config_file):
    experiment, _ = parse([str(config_file), "--training.steps", "77"], "train.py")
    run = config_file.parent / "runs" / "trial"
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps(to_dict(experiment)))
    again, name = parse([str(run / "config.json"), "--training.seed", "1"], "train.py")
    # The run is named after its folder, not after the file, which is the same in every run.
    assert name == "trial"
    assert again == changed(experiment, "training.seed", 1)


def test_the_configurations_that_come_with_the_package_are_valid():
    folder = Path(__file__).parents[1] / "configs"
    paths = sorted(folder.glob("*.py"))
    assert paths
    for path in paths:
        source = ["--data.source", "pairs"] if path.stem == "paired" else []
        experiment, name = parse([str(path), *source], "train.py")
        assert name == path.stem
        assert from_dict(to_dict(experiment)) == experiment


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--training.auxiliary-losses", "edg=0.1"], r"unknown loss 'edg' \(did you mean 'edge'\?\)"),
        (["--training.auxiliary-losses", "edge=0"], "weight of 'edge' in training.auxiliary_losses must be above 0"),
        (
            ["--training.auxiliary-losses", "edge=x"],
            "weight of 'edge' in training.auxiliary_losses must be above 0|float",
        ),
        (["--training.auxiliary-losses", "psnr=1"], "'psnr' is training.loss already"),
    ],
)
def test_auxiliary_losses_are_checked(flags, words, config_file):
    with pytest.raises(UserError, match=words):
        parse([str(config_file), *flags], "train.py")


def test_periods_and_auxiliary_losses_survive_the_resolved_configuration(config_file):
    experiment, _ = parse([str(config_file), "--training.auxiliary-losses", "edge=0.05", "ssim=1"], "train.py")
    assert experiment.training.auxiliary_losses == {"edge": 0.05, "ssim": 1.0}
    experiment = changed(experiment, "optimizer.periods", (CosinePeriod(3, 1e-5), CosinePeriod(5, 1e-6, 0.5)))
    assert from_dict(json.loads(json.dumps(to_dict(experiment)))) == experiment
    with pytest.raises(UserError, match=r"'optimizer\.warmup_steps' must be .* 0 with optimizer\.periods"):
        check(changed(experiment, "optimizer.warmup_steps", 1))
