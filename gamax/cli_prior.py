"""The verb `gamax data prior`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from gamax.config import DataConfig, DistributedConfig, check_data, load
from gamax.console import print_table, say
from gamax.errors import exit_on_user_error

_SAMPLING = ("seed", "steps", "eta", "window", "stride", "limit", "windows_at_once")


@dataclasses.dataclass(frozen=True)
class DataPrior:
    """Samples the diffusion prior of every input of a paired dataset once and stores it for training."""

    name: tyro.conf.Positional[str]
    """A name that `gamax data list` prints, or a configuration file, whose `data` is used."""
    weights: Path
    """A run folder or a weight file of a latent diffusion model."""
    source: Path | None = None
    """The folder with the files as their authors distribute them."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Where the prior goes; the default is `data.prior` of the configuration, else SOURCE_prior beside the source."""
    split: tuple[str, ...] = ()
    """Splits to make; the default is all, which training asks for."""
    seed: int = 42
    """Of the noise, together with the content of the photograph."""
    steps: int = 20
    """How often the denoiser is applied."""
    eta: float = 1.0
    """How random the way is: 0 adds no noise, 1 as much as the diffusion (DDPM)."""
    window: int = 128
    """Side of the windows in which the denoiser is applied, in pixels."""
    stride: int = 64
    """Pixels from one window to the next."""
    limit: float = 1.0
    """Latents are clamped to plus and minus this, and stored as a fraction of it."""
    windows_at_once: int = 8
    """Windows that go through the denoiser together on each device; fewer take less memory."""
    coordinator_address: Annotated[str | None, tyro.conf.arg(name="distributed.coordinator-address")] = None
    """Of several processes that share the work: `HOST:PORT` of the first, as all others reach it."""
    num_processes: Annotated[int | None, tyro.conf.arg(name="distributed.num-processes")] = None
    """How many processes there are."""
    process_id: Annotated[int | None, tyro.conf.arg(name="distributed.process-id")] = None
    """Which of them this is, from 0."""
    detect: Annotated[tyro.conf.FlagConversionOff[bool], tyro.conf.arg(name="distributed.detect")] = True
    """Whether to look for a cluster; off, a process inside one works alone."""

    def run(self) -> None:
        """Carries the verb out."""
        from gamax import hosts

        # Otherwise a process that fails would wait for the others, who wait for it.
        with hosts.end_at_once_on_errors(), exit_on_user_error():
            hosts.join(
                DistributedConfig(self.coordinator_address, self.num_processes, self.process_id, detect=self.detect)
            )
            self._write()

    def _write(self) -> None:
        from gamax.data.prior_writer import PICTURE_NAME, write_priors

        is_file = Path(self.name).suffix in (".py", ".json")
        data = load(self.name).data if is_file else DataConfig(dataset=self.name)
        if self.source is not None:
            data = dataclasses.replace(data, source=str(self.source))
        check_data(data)
        options = {name: getattr(self, name) for name in _SAMPLING}
        written = write_priors(data, self.weights, self.output, self.split, **options)
        columns = ["split", "images", "made now", "kept", "MB", "deviation", "at the limit"]
        rows = []
        for split in written.splits:
            values = (
                split.name,
                f"{split.images:,}",
                f"{split.made:,}",
                f"{split.images - split.made:,}",
                f"{split.num_bytes / 1e6:,.1f}",
                f"{split.deviation:.3f}",
                f"{split.clamped:.1%}",
            )
            rows.append(dict(zip(columns, values, strict=True)))
        print_table(f"prior of {data.dataset} in {written.folder}", columns, rows)
        say(f"train with it: --data.prior {written.folder}; wrote {PICTURE_NAME} there")
