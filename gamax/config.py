"""The typed experiment configuration: frozen dataclasses, nothing else.

A file in `configs/` builds one `Experiment`; every field can be overridden on the command line
(`--optimizer.learning-rate 5e-4`); the resolved configuration is written to the run folder as
`config.json`, which `train.py` accepts in place of the file in `configs/`.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
import runpy
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gamax.data.degradations import DEGRADATIONS, Degradation
from gamax.errors import UserError, nearest

Option = int | float | str | bool | tuple[int, ...]
"""What a field of a network can be set to in a configuration."""
LossName = Literal["l1", "mse", "charbonnier", "psnr", "edge", "frequency", "ssim"]


@dataclass(frozen=True)
class ModelConfig:
    """Which network."""

    name: str = "gama_ir_tiny"
    """A named variant; `gamax models` lists them."""
    overrides: dict[str, Option] = field(default_factory=dict)
    """Fields of the network to change from the variant, for example `width=24 mixer=sca` or `blocks=1,1,1,2`."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the computation; parameters stay float32."""


@dataclass(frozen=True)
class DataConfig:
    """Where the images come from and what happens to them before the network sees them."""

    dataset: str = "sample_photographs"
    """A name that `gamax data list` prints; `clean_folder` and `paired_folder` are for your own images."""
    source: str | None = None
    """The folder with the files as their authors distribute them; `gamax data info NAME` says how they must lie."""
    prepared_dir: str | None = None
    """Where prepared datasets are stored; None means `TFDS_DATA_DIR`, else `~/tensorflow_datasets`."""
    cut_size: int = 512
    """Training images are stored cut into overlapping squares of at most this many pixels a side."""
    cut_stride: int = 384
    """Pixels from the start of one square to the next; the last one is aligned to the border."""
    encoding: Literal["png", "raw"] = "png"
    """How training cuts are stored: `raw` is read ten times faster and takes about twice the disk."""
    patch_size: int = 256
    """Side of the random crop that the network is trained on, in pixels; that of the first stage of several."""
    small_images: Literal["refuse", "pad"] = "refuse"
    """What is done with training images smaller than a crop: `pad` mirrors them at their right and lower border."""
    augment: bool = True
    """Flip and turn every crop at random (the eight symmetries of the square)."""
    degradations: tuple[Degradation, ...] = ()
    """What makes the input from the clean target, one after the other; none for paired data."""
    mixup: float = 0.0
    """Probability that a pair is blended with another one of the batch."""
    prior: str | None = None
    """Folder with a diffusion prior of the pairs, as `gamax data prior` writes it; the network is given it behind the
    input, as three more channels."""
    cutblur: float = 0.0
    """Probability that a rectangle of the target is pasted into the input, or the other way round."""
    skip_corrupt: bool = False
    """Train on the next image instead of one whose stored record is damaged; otherwise training stops and names it."""
    loader_threads: int = 4
    """Threads that read and decode; decoding releases Python's lock, so processes are not needed."""


@dataclass(frozen=True)
class CosinePeriod:
    """One of several cosines that follow each other."""

    steps: int = 100_000
    """How long it is."""
    final_learning_rate: float = 1e-6
    """What it ends with; `optimizer.learning_rate` makes it constant."""
    restart: float = 1.0
    """The part of the way from the final learning rate up to `optimizer.learning_rate` where it begins."""


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a cosine schedule."""

    learning_rate: float = 1e-3
    """Highest learning rate."""
    final_learning_rate: float = 1e-7
    """Learning rate that the cosine ends with, one step after the last."""
    warmup_steps: int = 0
    """Steps of linear warm-up, the first with `learning_rate / warmup_steps`."""
    periods: tuple[CosinePeriod, ...] = ()
    """Cosines one after the other in place of one over all steps, without warm-up (Restormer, LIR, Swintormer)."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.9
    """Decay of the second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay, multiplied by the learning rate as in PyTorch's AdamW."""
    gradient_clip: float | None = 0.01
    """Largest global norm of the gradient; None leaves it alone."""


@dataclass(frozen=True)
class Stage:
    """A part of training with crops of one size."""

    first_step: int = 0
    """The number of steps before it."""
    patch_size: int = 256
    """Side of the random crop, in pixels."""
    batch_size: int = 32
    """Crops in one step over all devices."""


@dataclass(frozen=True)
class TrainingConfig:
    """How long, how much at once, on which devices."""

    steps: int = 200_000
    """Optimizer steps; with `batch_size` this fixes the samples seen, whatever the number of devices."""
    batch_size: int = 32
    """Crops in one step over all devices; those of the first stage of several."""
    progressive: tuple[Stage, ...] = ()
    """Later stages with other patch and batch sizes, in order (Restormer, LIR); each is compiled before training
    begins."""
    gradient_accumulation: Literal["auto"] | int = "auto"
    """Parts of a batch that go through the network one after the other; their gradients are averaged. More parts take
    less memory and give the same update but for rounding. `auto` takes as few as the memory of the devices allows."""
    loss: LossName = "psnr"
    """Training loss; `psnr` is the negative PSNR in dB, so negative values are normal."""
    auxiliary_losses: dict[str, float] = field(default_factory=dict)
    """Losses that are added to `loss`, each with its weight, for example `edge=0.05` or `frequency=0.1`."""
    ema_decay: float | None = None
    """Decay of the moving average of the parameters, which is then evaluated and saved; None for no average."""
    initial_weights: dict[str, str] = field(default_factory=dict)
    """What training starts from instead of random parameters: `all=RUN`, or by part of the network `decoder=RUN`. RUN
    is a run folder, a weight file or the name of weights that come with gamax; `RUN:PART` takes only that part."""
    frozen: tuple[str, ...] = ()
    """Parts of the network that are not trained: first names in its tree of parameters, such as `autoencoder`."""
    seed: int = 0
    """Seed of the initial parameters, the data order, the augmentation and the degradation."""
    mesh: Literal["auto"] | tuple[int, int, int] = "auto"
    """Devices along `data` (batch), `fsdp` (batch and parameters) and `rows` (image height); one -1 takes the rest.
    `auto` splits parameters if they take much of a device, and rows if there are more devices than crops."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; an evaluation makes one too."""
    checkpoints_kept: int = 3
    """How many of the latest checkpoints to keep, beside the one with the best evaluation."""
    checkpoints_kept_every: int | None = None
    """Keep also the checkpoints of every multiple of so many steps."""
    max_skipped_steps: int = 100
    """Stop when at least this many updates in a row were skipped because a loss or a gradient was not finite, or all
    but the first of a shorter run; counted at every step, looked at when metrics are logged."""


@dataclass(frozen=True)
class EvaluationConfig:
    """What the run is judged by."""

    protocol: str = "paired-rgb"
    """A named protocol; `python eval.py --help` lists them."""
    data: str | None = None
    """Folder to evaluate on; None means the `test` or else `validation` part of the training dataset."""
    prior: str | None = None
    """Folder with the diffusion prior of `evaluation.data`, for a network that takes one."""
    every: int = 0
    """Steps between evaluations during training; 0 evaluates at the end only."""


@dataclass(frozen=True)
class LoggingConfig:
    """What is written while it runs."""

    run_dir: str | None = None
    """Run folder; None means `runs/` and the name of the configuration file."""
    every: int = 100
    """Steps between lines of `metrics.jsonl`."""
    tensorboard: bool = True
    """Also write TensorBoard event files."""
    wandb: str | None = None
    """Also log to this project of Weights & Biases (needs the extra `wandb`)."""
    profile: tuple[int, int] | None = None
    """Record these steps, first and last, with JAX's profiler, into `profile/` of the run folder."""


@dataclass(frozen=True)
class DistributedConfig:
    """Several processes that train together, each on its own devices.

    TPU pods, SLURM and Kubernetes are recognised by JAX; elsewhere give all three addresses to every process.
    """

    coordinator_address: str | None = None
    """`HOST:PORT` of the first process, as all others reach it."""
    num_processes: int | None = None
    """How many processes there are."""
    process_id: int | None = None
    """Which of them this is, from 0."""
    detect: bool = True
    """Whether to look for a cluster; off, a process inside one trains alone."""


@dataclass(frozen=True)
class Experiment:
    """One training run, completely described."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)


def to_dict(experiment: Experiment) -> dict[str, Any]:
    """The experiment as nested dictionaries and lists that JSON can hold."""
    return _plain(experiment)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        fields = {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
        return {"kind": value.kind, **fields} if isinstance(value, Degradation) else fields
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def from_dict(values: Mapping[str, Any]) -> Experiment:
    """The inverse of `to_dict`; an unknown field or a value of the wrong type raises `UserError`."""
    return _build(Experiment, values, "")


def _build(cls: type, values: Any, path: str) -> Any:
    if not isinstance(values, Mapping):
        raise UserError(f"configuration field '{path or 'the whole file'}' must be a group of fields, not {values!r}")
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in hints:
            valid = [_dotted(path, name) for name in hints]
            raise UserError(f"unknown configuration field {nearest(_dotted(path, key), valid)}")
    return cls(**{key: _convert(hints[key], value, _dotted(path, key)) for key, value in values.items()})


def _dotted(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _convert(hint: Any, value: Any, path: str) -> Any:
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType) and hint is not Degradation
    options = typing.get_args(hint) if is_union else (hint,)
    for option in options:
        origin, arguments = typing.get_origin(option), typing.get_args(option)
        if option is Degradation and isinstance(value, Mapping):
            kind = value.get("kind")
            if not isinstance(kind, str) or kind not in DEGRADATIONS:
                kinds = " or ".join(map(repr, DEGRADATIONS))
                raise UserError(f"configuration field '{path}.kind' must be {kinds}, not {kind!r}")
            return _build(DEGRADATIONS[kind], {name: item for name, item in value.items() if name != "kind"}, path)
        if dataclasses.is_dataclass(option) and isinstance(value, Mapping):
            return _build(typing.cast(type, option), value, path)
        if origin is tuple and len(arguments) == 2 and arguments[1] is ... and isinstance(value, list | tuple):
            return tuple(_convert(arguments[0], item, f"{path}.{index}") for index, item in enumerate(value))
        if origin is Literal and value in arguments:
            return value
        if origin is tuple and isinstance(value, list | tuple) and len(value) == len(arguments):
            return tuple(_convert(hint, item, path) for hint, item in zip(arguments, value, strict=True))
        if origin is dict and isinstance(value, Mapping):
            return {str(key): _convert(arguments[1], item, f"{path}.{key}") for key, item in value.items()}
        if option is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if isinstance(option, type) and isinstance(value, option) and isinstance(value, bool) == (option is bool):
            return value
    expected = " or ".join(_describe(option) for option in options)
    raise UserError(f"configuration field '{path}' must be {expected}, not {value!r}")


def _describe(hint: Any) -> str:
    arguments = typing.get_args(hint)
    if hint is Degradation:
        return "a degradation"
    if typing.get_origin(hint) is tuple and arguments[1] is ...:
        return f"a list, each item {_describe(arguments[0])}"
    if typing.get_origin(hint) is Literal:
        return " or ".join(map(repr, arguments))
    if typing.get_origin(hint) is tuple:
        return f"{len(arguments)} values ({', '.join(map(_describe, arguments))})"
    return "None" if hint is type(None) else getattr(hint, "__name__", str(hint))


def load(path: str | Path) -> Experiment:
    """Reads an experiment from a Python file that defines `experiment`, or from a resolved `config.json`."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no configuration file '{path}'; those that come with gamax are in configs/")
    if path.suffix == ".json":
        from gamax.blocks.mixers import check_trusted

        try:
            experiment = from_dict(json.loads(path.read_text()))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"'{path}' is not valid JSON ({error})") from error
        check_trusted(f"'{path}'", experiment.model.overrides.get("mixer"))
        return experiment
    if path.suffix != ".py":
        raise UserError(f"'{path}' is neither a Python configuration file (.py) nor a resolved one (.json)")
    try:
        experiment = runpy.run_path(str(path)).get("experiment")
    except (SyntaxError, ImportError) as error:
        raise UserError(f"'{path}' cannot be run as Python ({error})") from error
    except TypeError as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unknown is None:
            raise
        names = {part for name in _flags(Experiment()) for part in name.split(".")}
        names |= {item.name for degradation in DEGRADATIONS.values() for item in dataclasses.fields(degradation)}
        raise UserError(f"{path}: unknown configuration field {nearest(unknown[1], names)}") from error
    if not isinstance(experiment, Experiment):
        raise UserError(f"'{path}' does not define `experiment = Experiment(...)`")
    # Python does not check the types of fields; this does.
    return from_dict(to_dict(experiment))


def parse(arguments: list[str], prog: str) -> tuple[Experiment, str]:
    """Reads `CONFIG [--group.field value ...]`.

    Returns the resolved experiment and the name of the configuration (`quickstart` for `configs/quickstart.py`).
    Exits with code 2 and a sentence when a flag is unknown or a value has the wrong type.
    """
    if not arguments or arguments[0].startswith("-"):
        if arguments[:1] in (["-h"], ["--help"]):
            experiment, path = Experiment(), "CONFIG"
        else:
            raise UserError(f"{prog} needs a configuration file first, for example: {prog} configs/quickstart.py")
    else:
        path, *arguments = arguments
        experiment = load(path)
    # Here, so that the training step can be used where tyro is not installed.
    import tyro

    flags = _flags(experiment)
    for argument in arguments:
        name = argument.removeprefix("--").split("=")[0].replace("-", "_")
        if argument.startswith("--") and name not in (*flags, "help"):
            raise UserError(f"unknown configuration field {nearest(name, flags)}")
    experiment = tyro.cli(
        Experiment,
        default=experiment,
        args=arguments,
        prog=f"{prog} {path}",
        registry=_registry(),
        config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
    )
    check(experiment)
    stem = Path(path).stem
    return experiment, Path(path).parent.name if stem == "config" else stem


def _registry() -> Any:
    """Teaches tyro to read `width=16 mixer=sca blocks=1,2` as a dictionary."""
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

    registry = ConstructorRegistry()

    @registry.primitive_rule
    def key_value_pairs(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        if typing.get_origin(info.type) is not dict:
            return None
        return PrimitiveConstructorSpec(
            nargs="*",
            metavar="KEY=VALUE ...",
            instance_from_str=parse_overrides,
            is_instance=lambda value: isinstance(value, dict),
            str_from_instance=lambda value: [f"{key}={_option_text(item)}" for key, item in value.items()],
        )

    return registry


def _option(text: str) -> Option:
    if re.fullmatch(r"-?\d+(,-?\d+)+", text):
        return tuple(int(number) for number in text.split(","))
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return text
    return value if isinstance(value, int | float | bool) else text


def _option_text(value: Option) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def parse_overrides(items: Sequence[str]) -> dict[str, Option]:
    """Fields of a network from `KEY=VALUE` items; `ValueError` for anything else.

    `widths=8,16` gives several whole numbers; a single one for such a field becomes several in `create_model`.
    """
    pairs = [item.split("=", 1) for item in items]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError("expected KEY=VALUE, for example width=16")
    return {key: _option(value) for key, value in pairs}


def _flags(group: Any, path: str = "") -> list[str]:
    """The dotted names of all fields of an experiment."""
    names = []
    for item in dataclasses.fields(group):
        value, name = getattr(group, item.name), _dotted(path, item.name)
        if isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            names += [flag for index, part in enumerate(value) for flag in _flags(part, f"{name}.{index}")]
        else:
            names += _flags(value, name) if dataclasses.is_dataclass(value) else [name]
    return names


def check(experiment: Experiment) -> None:
    """Raises `UserError` for values that no run can have. Needs neither devices nor data."""
    check_data(experiment.data)
    optimizer, training = experiment.optimizer, experiment.training
    if experiment.evaluation.prior is not None and experiment.evaluation.data is None:
        raise UserError("evaluation.prior belongs to evaluation.data, which is not set: the dataset has data.prior")
    for part, weights in training.initial_weights.items():
        if not isinstance(weights, str):
            raise UserError(f"training.initial_weights must name a run or a weight file for '{part}', not {weights!r}")
    if "dtype" in experiment.model.overrides or "param_dtype" in experiment.model.overrides:
        raise UserError("the precision of the network is set by model.dtype, not in model.overrides")
    for name, weight in training.auxiliary_losses.items():
        if name not in typing.get_args(LossName):
            raise UserError(f"unknown loss {nearest(name, typing.get_args(LossName))} in training.auxiliary_losses")
        if name == training.loss:
            raise UserError(f"'{name}' is training.loss already; leave it out of training.auxiliary_losses")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise UserError(f"the weight of '{name}' in training.auxiliary_losses must be above 0, not {weight}")
    _check_rules(
        experiment,
        {
            "training.steps": (training.steps >= 1, "be at least 1"),
            "optimizer.learning_rate": (0 < optimizer.learning_rate < math.inf, "be above 0"),
            "optimizer.final_learning_rate": (
                0 <= optimizer.final_learning_rate <= optimizer.learning_rate,
                "be from 0 to optimizer.learning_rate",
            ),
            "optimizer.warmup_steps": (
                0 <= optimizer.warmup_steps < (1 if optimizer.periods else training.steps),
                "be from 0 to below the steps, and 0 with optimizer.periods",
            ),
            "optimizer.periods": (
                all(
                    period.steps >= 1
                    and 0 <= period.final_learning_rate <= optimizer.learning_rate
                    and 0 <= period.restart <= 1
                    for period in optimizer.periods
                ),
                "have steps of at least 1, final rates from 0 to optimizer.learning_rate and restarts from 0 to 1",
            ),
            "optimizer.beta1": (0 <= optimizer.beta1 < 1, "be from 0 to below 1"),
            "optimizer.beta2": (0 <= optimizer.beta2 < 1, "be from 0 to below 1"),
            "optimizer.weight_decay": (0 <= optimizer.weight_decay < math.inf, "not be negative"),
            "optimizer.gradient_clip": (optimizer.gradient_clip is None or optimizer.gradient_clip > 0, "be above 0"),
            "training.batch_size": (training.batch_size >= 1, "be at least 1"),
            "training.progressive": (
                _in_order(training.progressive, experiment.data.cut_size),
                "have growing first steps above 0, patch sizes from 1 to data.cut_size and batches of at least 1",
            ),
            "training.gradient_accumulation": (
                training.gradient_accumulation == "auto"
                or (
                    training.gradient_accumulation >= 1
                    and all(stage.batch_size % training.gradient_accumulation == 0 for stage in stages(experiment))
                ),
                "be 'auto', or at least 1 and divide training.batch_size (of every stage)",
            ),
            "training.ema_decay": (training.ema_decay is None or 0 < training.ema_decay < 1, "be between 0 and 1"),
            "training.seed": (0 <= training.seed < 2**32, "be from 0 to below 2^32"),
            "training.checkpoint_every": (training.checkpoint_every >= 1, "be at least 1"),
            "training.checkpoints_kept": (training.checkpoints_kept >= 1, "be at least 1"),
            "training.checkpoints_kept_every": (
                training.checkpoints_kept_every is None or training.checkpoints_kept_every >= 1,
                "be at least 1",
            ),
            "training.max_skipped_steps": (training.max_skipped_steps >= 1, "be at least 1"),
            "evaluation.every": (experiment.evaluation.every >= 0, "not be negative"),
            "logging.every": (experiment.logging.every >= 1, "be at least 1"),
            "logging.profile": (
                experiment.logging.profile is None
                or 1 <= experiment.logging.profile[0] <= experiment.logging.profile[1] <= training.steps,
                "be a first and a last step, from 1 to training.steps",
            ),
        },
    )


def stages(experiment: Experiment) -> tuple[Stage, ...]:
    """The parts of training, one after the other; those that would begin behind the last step are left out."""
    training = experiment.training
    first = Stage(0, experiment.data.patch_size, training.batch_size)
    return (first, *(stage for stage in training.progressive if stage.first_step < training.steps))


def stage_ends(experiment: Experiment) -> list[tuple[Stage, int]]:
    """The stages, each with the step behind its last one."""
    parts = stages(experiment)
    ends = [*(stage.first_step for stage in parts[1:]), experiment.training.steps]
    return list(zip(parts, ends, strict=True))


def samples_seen(experiment: Experiment, step: int) -> int:
    """Crops that went through the network in the first `step` steps, no more than there are."""
    return sum(max(0, min(end, step) - stage.first_step) * stage.batch_size for stage, end in stage_ends(experiment))


def _in_order(progressive: Sequence[Stage], largest: int) -> bool:
    first_steps = [0, *(stage.first_step for stage in progressive)]
    growing = all(before < after for before, after in itertools.pairwise(first_steps))
    return growing and all(1 <= stage.patch_size <= largest and stage.batch_size >= 1 for stage in progressive)


def check_data(data: DataConfig) -> None:
    """Raises `UserError` for values that no dataset can have. Does not look at the disk."""
    if data.prior is not None and (data.degradations or data.cutblur):
        what = "data.degradations, which make another input every time" if data.degradations else "data.cutblur"
        raise UserError(f"data.prior does not go with {what}: a prior is made once of the inputs of a paired dataset")
    _check_rules(
        Experiment(data=data),
        {
            "data.cut_size": (data.cut_size >= 1, "be at least 1"),
            "data.cut_stride": (1 <= data.cut_stride <= data.cut_size, "be from 1 to data.cut_size"),
            "data.patch_size": (1 <= data.patch_size <= data.cut_size, "be from 1 to data.cut_size"),
            "data.loader_threads": (data.loader_threads >= 1, "be at least 1"),
            "data.mixup": (0 <= data.mixup <= 1, "be from 0 to 1"),
            "data.cutblur": (0 <= data.cutblur <= 1, "be from 0 to 1"),
        },
    )


def _check_rules(experiment: Experiment, rules: Mapping[str, tuple[bool, str]]) -> None:
    for name, (holds, rule) in rules.items():
        if not holds:
            group, attribute = name.split(".")
            value = getattr(getattr(experiment, group), attribute)
            raise UserError(f"configuration field '{name}' must {rule}, not {value}")
