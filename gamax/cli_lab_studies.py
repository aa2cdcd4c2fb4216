"""The studies of `gamax lab`: memorise, ablation, receptive-field, swap and landscape."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from gamax.errors import UserError

Output = Annotated[Path, tyro.conf.arg(aliases=["-o"])]
Task = Literal["denoise", "derain"]


@dataclasses.dataclass(frozen=True)
class LabMemorise:
    """Fits one image by networks with fewer parameters than it has pixels, equal but for the block.

    Figure 5 of the paper of GAMA-IR: a chessboard, which repeats, against a photograph. An interrupted study goes on.
    """

    images: tuple[str, ...] = ("chessboard", "photograph")
    """`chessboard`, `photograph` (a cat, from scikit-image), or files."""
    mixers: tuple[str, ...] = ("none", "squeeze_excite(reduction=4)", "gama", "non_local(subsample=8)", "sca")
    """What fills the slot: names, with options or without, or my_blocks:MyBlock."""
    size: int = 64
    """Pixels of the sides that images are scaled to."""
    squares: int = 8
    """Of the chessboard, along a side."""
    width: int = 6
    """Channels between the blocks."""
    depth: int = 4
    """Residual blocks."""
    kernel_size: int = 3
    """Of the convolutions."""
    padding: Literal["zeros", "circular"] = "zeros"
    """What convolutions see outside; zeros tell where the border is."""
    steps: int = 2000
    """Of Adam, on the whole image."""
    learning_rate: float = 3e-3
    """At its highest; it falls along half a cosine to a hundredth."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the parameters and of the noise that is turned into the image."""
    output: Output = Path("runs/lab/memorise")
    """The folder for trials, tables, plots and pictures."""

    def run(self) -> None:
        """Carries the verb out."""
        from gamax.lab.memorise import study
        from gamax.lab.study import write_report

        write_report(study(**_options(self), folder=self.output, reproduce=command_line("memorise", self)), self.output)


@dataclasses.dataclass(frozen=True)
class LabAblation:
    """Trains one network with variants of GAMA, places for it, and other mixers: quality beside latency and memory.

    Our design of Table 5 of the paper of GAMA-IR, which is not public. An interrupted study goes on.
    """

    network: str = "gama_ir_tiny"
    """A GAMA-IR; `gamax models` lists them."""
    overrides: tuple[str, ...] = ("width=8", "depth=5", "levels=2", "blocks_per_level=1")
    """Fields of the network that differ from the named one."""
    variants: tuple[str, ...] = ()
    """Names of variants; the default is all. A wrong name lists them."""
    task: Task = "denoise"
    """`denoise` (Gaussian, sigma 25) or `derain` (synthetic streaks)."""
    dataset: str = "sample_photographs"
    """Clean photographs to train on and to score; `gamax data list` has the names."""
    source: str | None = None
    """The folder of the dataset."""
    steps: int = 200
    """Of each training."""
    batch_size: int = 4
    """Crops in a step."""
    patch_size: int = 48
    """Pixels of the sides of crops."""
    learning_rate: float = 5e-3
    """At its highest; it falls along half a cosine to a hundredth."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of parameters, crops and degradations."""
    latency_size: str = "256x256"
    """Image size for latency and memory, HEIGHTxWIDTH."""
    output: Output = Path("runs/lab/ablation")
    """The folder for trials, rows, tables and plots."""

    def run(self) -> None:
        """Carries the verb out."""
        from gamax.lab.ablation import study
        from gamax.lab.study import write_report

        write_report(study(**_options(self), folder=self.output, reproduce=command_line("ablation", self)), self.output)


@dataclasses.dataclass(frozen=True)
class LabReceptiveField:
    """Draws which input pixels the output depends on, and how much: effective and theoretical receptive fields."""

    networks: tuple[str, ...] = ("gama_ir_tiny", "nafnet_sidd_w32", "unet", "restormer_denoising")
    """Named networks (random parameters), run folders or weight files (trained ones)."""
    overrides: tuple[str, ...] = ()
    """Fields that differ from those of all named networks, for example `width=16`."""
    size: int = 128
    """Pixels of the sides of the images."""
    images: int = 8
    """Over so many images, and as many random parameters, gradients are averaged."""
    content: Literal["noise", "photographs"] = "noise"
    """What the images are: uniform noise, or crops of the photographs of scikit-image."""
    seed: int = 0
    """Of parameters and images."""
    output: Output = Path("runs/lab/receptive_field")
    """The folder for the table, the figures and the sheet."""

    def run(self) -> None:
        """Carries the verb out."""
        from gamax.lab.effective_field import study
        from gamax.lab.study import write_report

        reproduce = command_line("receptive-field", self)
        write_report(study(**_options(self), folder=self.output, reproduce=reproduce), self.output)


@dataclasses.dataclass(frozen=True)
class LabSwap:
    """Puts another mixer into a network: parameters, latency, memory, gradients, and a short training of both."""

    network: str
    """A network with a slot for mixers; `gamax models` lists all."""
    mixer: str
    """A name, with options or without, such as `gama(kernel_size=5)`, or a class of your own, my_blocks:MyBlock."""
    overrides: tuple[str, ...] = ()
    """Fields that differ from the named network, in the original and with the other mixer, for example `width=8`."""
    task: Task = "denoise"
    """`denoise` (Gaussian, sigma 25) or `derain` (synthetic streaks)."""
    dataset: str = "sample_photographs"
    """Clean photographs to train on and to score; `gamax data list` has the names."""
    source: str | None = None
    """The folder of the dataset."""
    steps: int = 100
    """Of each training; 0 leaves training out."""
    batch_size: int = 4
    """Crops in a step."""
    patch_size: int = 48
    """Pixels of the sides of crops."""
    learning_rate: float = 1e-3
    """At its highest; it falls along half a cosine to a hundredth."""
    seeds: tuple[int, ...] = (0,)
    """Of parameters, crops and degradations."""
    latency_size: str = "256x256"
    """Image size for latency and memory, HEIGHTxWIDTH."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """The folder for trials, rows, tables and plots; the default is named after network and mixer, in runs/lab."""

    def run(self) -> None:
        """Carries the verb out."""
        from gamax.lab.study import write_report
        from gamax.lab.swap import study

        name = re.sub(r"[^A-Za-z0-9]+", "_", f"{self.network}_{self.mixer}").strip("_")
        folder = self.output or Path("runs/lab/swap") / name
        write_report(study(**_options(self), folder=folder, reproduce=command_line("swap", self)), folder)


@dataclasses.dataclass(frozen=True)
class LabLandscape:
    """Trains small versions of all networks with one budget on the same data: PSNR against latency and memory.

    An interrupted study goes on.
    """

    networks: tuple[str, ...] = ()
    """Names of small networks of the study; the default is all but lir, which takes long to compile on a CPU. A wrong
    name lists them."""
    tasks: tuple[Task, ...] = ("denoise", "derain")
    """`denoise` (Gaussian, sigma 25) or `derain` (synthetic streaks)."""
    dataset: str = "sample_photographs"
    """Clean photographs to train on and to score; `gamax data list` has the names."""
    source: str | None = None
    """The folder of the dataset."""
    steps: int = 300
    """Of each training."""
    batch_size: int = 4
    """Crops in a step."""
    patch_size: int = 64
    """Pixels of the sides of crops."""
    learning_rate: float = 2e-3
    """At its highest; it falls along half a cosine to a hundredth."""
    seeds: tuple[int, ...] = (0,)
    """Of parameters, crops and degradations."""
    latency_size: str = "256x256"
    """Image size for latency and memory, HEIGHTxWIDTH."""
    output: Output = Path("runs/lab/landscape")
    """The folder for trials, rows, tables and plots."""

    def run(self) -> None:
        """Carries the verb out."""
        from gamax.lab.landscape import study
        from gamax.lab.study import write_report

        reproduce = command_line("landscape", self)
        write_report(study(**_options(self), folder=self.output, reproduce=reproduce), self.output)


def command_line(verb: str, options: Any) -> str:
    """The command that asks for exactly these options, whatever the defaults of another version are."""
    words = ["gamax", "lab", verb]
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        # What is empty is so by default.
        if value is None or value == () or field.name == "output":
            continue
        values = [str(item) for item in value] if isinstance(value, tuple) else [str(value)]
        words += [f"--{field.name.replace('_', '-')}", *values]
    return shlex.join(words)


def _options(verb: Any) -> dict[str, Any]:
    """The fields of a verb but the folder, overrides as a dictionary."""
    from gamax.config import parse_overrides

    found = {field.name: getattr(verb, field.name) for field in dataclasses.fields(verb) if field.name != "output"}
    if "overrides" in found:
        try:
            found["overrides"] = parse_overrides(found["overrides"])
        except ValueError as error:
            raise UserError(f"--overrides: {error}") from error
    for field in dataclasses.fields(verb):
        value = getattr(verb, field.name)
        if value == () and field.default != ():
            raise UserError(f"--{field.name.replace('_', '-')} needs at least one value")
        if isinstance(value, tuple) and len(set(value)) < len(value):
            raise UserError(f"--{field.name.replace('_', '-')} must not repeat a value")
    return found
