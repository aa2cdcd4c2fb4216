"""The verbs of `gamax data`: every verb calls one function and prints what it returns."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from gamax.cli_prior import DataPrior
from gamax.config import DataConfig, Experiment, check_data, load
from gamax.console import print_table, say
from gamax.errors import UserError
from gamax.files import check_writable, replace_atomically

if TYPE_CHECKING:
    from gamax.data.checks import SplitReport

_PNG_START = b"\x89PNG"


@dataclasses.dataclass(frozen=True)
class DataList:
    """Lists the datasets."""

    prepared_dir: Path | None = None
    """Where prepared datasets are stored; the default is `TFDS_DATA_DIR`, else `~/tensorflow_datasets`."""
    output: Path | None = None
    """Write the page with everything about them, `docs/datasets.md`, to this file instead; from a checkout of gamax."""

    def run(self) -> None:
        """Carries the verb out."""
        from gamax.data.builders import BUILDERS
        from gamax.data.datasets_page import datasets_page, published_counts

        if self.output:
            if self.output.is_dir():
                raise UserError(f"--output must be a file, not the folder '{self.output}'")
            check_writable(self.output.parent)
            page = datasets_page(Path("configs"))
            self.output.parent.mkdir(parents=True, exist_ok=True)
            replace_atomically(self.output, page.encode())
            say(f"wrote {self.output}")
            return
        columns = ["name", "task", "published examples", "prepared copies"]
        rows = []
        for name, builder in BUILDERS.items():
            copies = len(_copies(name, self.prepared_dir))
            values = (name, builder.TASK, published_counts(builder), str(copies) if copies else "")
            rows.append(dict(zip(columns, values, strict=True)))
        print_table("datasets; `gamax data info NAME` says where to get one, on what terms, and more", columns, rows)


@dataclasses.dataclass(frozen=True)
class DataInfo:
    """Says what a dataset is, where to get it, how its files must lie, and what has been prepared of it."""

    name: tyro.conf.Positional[str]
    """A name that `gamax data list` prints."""
    prepared_dir: Path | None = None
    """Where prepared datasets are stored; the default is `TFDS_DATA_DIR`, else `~/tensorflow_datasets`."""

    def run(self) -> None:
        """Carries the verb out."""
        from gamax.data.builders import find_builder
        from gamax.data.datasets_page import published_counts

        builder = find_builder(self.name)
        copies = _copies(self.name, self.prepared_dir)
        features = f"name, and uint8 or uint16 [H, W, {builder.CHANNELS}] images: target, input where there are pairs"
        facts = {
            "task": builder.TASK,
            "published": published_counts(builder),
            "licence": builder.LICENSE,
            "homepage": builder.HOMEPAGE,
            "files": builder.MANUAL_DOWNLOAD_INSTRUCTIONS,
            "features": features,
        }
        say(f"{self.name}: {inspect.cleandoc(builder.__doc__ or '')}\n")
        for label, text in facts.items():
            if text:
                say(f"{label}: {text}")
        if builder.CITATION:
            say(f"\n{builder.CITATION}\n")
        for folder in copies:
            _print_copy(folder)
        if not copies:
            say("nothing of it is prepared")


@dataclasses.dataclass(frozen=True)
class DataPrepare:
    """Cuts and stores a dataset now, as `train.py` would at its start."""

    name: tyro.conf.Positional[str]
    """A name that `gamax data list` prints, or a configuration file, whose `data` is used."""
    source: Path | None = None
    """The folder with the files as their authors distribute them."""
    prepared_dir: Path | None = None
    """Where prepared datasets are stored; the default is `TFDS_DATA_DIR`, else `~/tensorflow_datasets`."""
    cut_size: int | None = None
    """Training images are cut into squares of at most this many pixels a side; the default is 512."""
    cut_stride: int | None = None
    """Pixels from the start of one square to the next; the default is 384, or the size of smaller squares."""
    encoding: Literal["png", "raw"] | None = None
    """How training cuts are stored; the default is `png`."""

    def run(self) -> None:
        """Carries the verb out."""
        from gamax.data.datasets import prepare

        # A set that is prepared by its name may be trained on with any patch.
        data = _experiment(self.name, patch_size=1).data
        data = _replace(data, self, ("source", "prepared_dir", "cut_size", "cut_stride", "encoding"))
        if self.cut_stride is None:
            data = dataclasses.replace(data, cut_stride=min(data.cut_stride, data.cut_size))
        check_data(data)
        _print_copy(prepare(data, training=False).folder)


@dataclasses.dataclass(frozen=True)
class DataCheck:
    """Reads every image once and lists all that is wrong: damaged, unpaired, misaligned, in both train and test, ..."""

    folder: tyro.conf.Positional[Path]
    """The images, or `input/` and `target/`, or `train/` and `test/` with either below them."""
    dataset: str | None = None
    """A name that `gamax data list` prints, when the folder holds its files as their authors distribute them."""

    def run(self) -> None:
        """Carries the verb out."""
        from gamax.data.checks import check_images

        report = check_images(self.folder, self.dataset)
        columns = ["part", "examples", "published", "bits", "commonest sizes", "input PSNR"]
        print_table(str(self.folder), columns, [_check_row(split) for split in report.splits])
        for split in report.splits:
            if split.psnr_input:
                psnr = split.psnr_input
                say(
                    f"{split.name or 'inputs'}: from {psnr.lowest:.2f} dB ('{psnr.lowest_name}') "
                    f"to {psnr.highest:.2f} dB ('{psnr.highest_name}')"
                )
        for note in report.notes:
            say(f"note: {note}")
        for problem in report.problems:
            say(f"problem: {problem}")
        if report.problems:
            raise UserError(f"'{self.folder}' has {len(report.problems)} problem(s), listed above")
        say("no problems")


@dataclasses.dataclass(frozen=True)
class DataShow:
    """Draws crops exactly as the network sees them in training: input, target and difference."""

    name: tyro.conf.Positional[str]
    """A name that `gamax data list` prints, or a configuration file."""
    source: Path | None = None
    """The folder with the files as their authors distribute them."""
    prepared_dir: Path | None = None
    """Where prepared datasets are stored; the default is `TFDS_DATA_DIR`, else `~/tensorflow_datasets`."""
    patch_size: int | None = None
    """Side of the crops in pixels; the default is that of the configuration, 256."""
    count: int = 4
    """Rows, at most the batch size."""
    seed: int | None = None
    """Seed of training; the default is that of the configuration, 0."""
    step: int = 0
    """Step of training."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """A PNG file; the default is NAME.png."""

    def run(self) -> None:
        """Carries the verb out."""
        from gamax.data.contact_sheet import contact_sheet
        from gamax.data.datasets import training_channels
        from gamax.data.degradations import GaussianNoise
        from gamax.data.images import write_image

        experiment = _experiment(self.name)
        data = _replace(experiment.data, self, ("source", "prepared_dir", "patch_size"))
        check_data(data)
        if self.step < 0 or (self.seed is not None and self.seed < 0):
            raise UserError("--step and --seed must not be negative")
        output = self.output or Path(f"{Path(self.name).stem}.png")
        if self.output is None and output.exists():
            raise UserError(f"'{output}' exists; name another picture with --output, or the same to replace it")
        _check_picture(output)
        if not _is_file(self.name) and "input" not in training_channels(data):
            say("the set has clean images only: shown with GaussianNoise(); name a configuration file for another")
            data = dataclasses.replace(data, degradations=(GaussianNoise(),))
        seed = experiment.training.seed if self.seed is None else self.seed
        sheet = contact_sheet(data, self.count, seed, self.step, experiment.training.batch_size)
        output.parent.mkdir(parents=True, exist_ok=True)
        write_image(output, sheet)
        say(f"wrote {output} ({sheet.shape[1]}x{sheet.shape[0]}): step {self.step} of training with seed {seed}")


@dataclasses.dataclass(frozen=True)
class Data:
    """Lists, describes, checks, prepares and shows datasets, and samples their diffusion priors."""

    verb: (
        Annotated[DataList, tyro.conf.subcommand("list", prefix_name=False)]
        | Annotated[DataInfo, tyro.conf.subcommand("info", prefix_name=False)]
        | Annotated[DataPrepare, tyro.conf.subcommand("prepare", prefix_name=False)]
        | Annotated[DataCheck, tyro.conf.subcommand("check", prefix_name=False)]
        | Annotated[DataShow, tyro.conf.subcommand("show", prefix_name=False)]
        | Annotated[DataPrior, tyro.conf.subcommand("prior", prefix_name=False)]
    )

    def run(self) -> None:
        """Carries the verb out."""
        self.verb.run()


def _is_file(name: str) -> bool:
    return Path(name).suffix in (".py", ".json")


def _experiment(name: str, **values: Any) -> Experiment:
    """The experiment in a configuration file, or the default one on the dataset `name` with `values` for its data."""
    from gamax.data.builders import find_builder

    if _is_file(name):
        return load(name)
    return Experiment(data=DataConfig(dataset=find_builder(name).name, **values))


def _replace(data: DataConfig, verb: Any, names: Sequence[str]) -> DataConfig:
    """`data` with those fields of the verb that were given."""
    given: dict[str, Any] = {name: getattr(verb, name) for name in names if getattr(verb, name) is not None}
    for name in {"source", "prepared_dir"} & given.keys():
        given[name] = str(given[name])
    return dataclasses.replace(data, **given)


def _check_picture(output: Path) -> None:
    if output.suffix.lower() != ".png":
        raise UserError(f"--output '{output}' must end in .png")
    if output.is_dir() or (output.exists() and not output.read_bytes().startswith(_PNG_START)):
        raise UserError(f"'{output}' exists and is no PNG; choose another --output")
    check_writable(output.parent)


def _copies(name: str, prepared_dir: Path | None) -> list[Path]:
    """The folders of the prepared copies of a dataset."""
    from gamax.data.datasets import prepared_sets_folder

    # Below the name: the configuration and the version. What is incomplete starts with another word.
    found = (prepared_sets_folder(prepared_dir) / name).glob("*/[0-9]*/dataset_info.json")
    return sorted(path.parent for path in found)


def _print_copy(folder: Path) -> None:
    from gamax.data.datasets import open_prepared

    info = open_prepared(folder).info
    stored = info.metadata
    columns = ["split", "images", "records", "input PSNR", "MB"]
    rows = []
    for split, part in info.splits.items():
        psnr = info.metadata["psnr_input"][split]
        values = (
            split,
            f"{info.metadata['num_images'][split]:,}",
            f"{part.num_examples:,}",
            "" if psnr is None else f"{psnr:.2f} dB",
            f"{part.num_bytes / 1e6:,.1f}",
        )
        rows.append(dict(zip(columns, values, strict=True)))
    cuts = f"{stored['encoding']}, cuts of {stored['cut_size']} every {stored['cut_stride']} pixels"
    print_table(f"prepared in {folder} from {stored['source']} ({cuts})", columns, rows)


def _check_row(split: SplitReport) -> dict[str, str]:
    sizes = sorted(split.sizes.items(), key=lambda item: -item[1])
    listed = [f"{width}x{height} ({count})" for (height, width), count in sizes[:3]]
    more = [f"{len(sizes) - 3} more"] if len(sizes) > 3 else []
    return {
        "part": split.name or "all",
        "examples": f"{split.num_examples:,} {'pairs' if split.paired else 'images'}",
        "published": "" if split.num_published is None else f"{split.num_published:,}",
        "bits": ", ".join(map(str, sorted(split.bit_depths))),
        "commonest sizes": ", ".join(listed + more),
        "input PSNR": "" if split.psnr_input is None else f"{split.psnr_input.mean:.2f} dB",
    }
