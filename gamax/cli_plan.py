"""The verb `gamax train-plan`."""

from __future__ import annotations

import dataclasses
import json
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from gamax import config
from gamax.config import Stage
from gamax.console import print_table, say
from gamax.errors import UserError
from gamax.files import check_writable


@dataclasses.dataclass(frozen=True)
class TrainPlan:
    """Compiles the training step of a configuration for devices that need not be there, and says what each needs."""

    config: tyro.conf.Positional[Path]
    """A configuration file. Its dataset need not be there."""
    fields: tyro.conf.Positional[tuple[str, ...]] = ()
    """Behind `--`: fields to change, as for train.py, for example `-- --model.dtype bfloat16`."""
    topology: str | None = None
    """A TPU slice such as v5e:4x4 (needs the extra `tpu`, but no TPU); the default is the devices that are there."""
    meshes: tuple[str, ...] = ()
    """Devices along data, fsdp and rows, for example `16,1,1 4,1,4`, each compiled; the default is training.mesh."""
    stages: tuple[int, ...] = ()
    """Which stages of progressive training, counted from 1; the default is all."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Append the figures to this file as JSON lines."""

    def run(self) -> None:
        """Carries the verb out."""
        from gamax.environment import versions
        from gamax.training.plan import plan_step, planned_devices, planned_mesh

        experiment, name = config.parse([str(self.config), *self.fields], "gamax train-plan")
        if self.output and self.output.is_dir():
            raise UserError(f"--output must be a file, not the folder '{self.output}'")
        if self.output:
            check_writable(self.output.parent)
        devices, device_bytes = planned_devices(self.topology)
        used = versions() | ({"libtpu": version("libtpu")} if self.topology else {})
        requested = [_mesh(text) for text in self.meshes] or [experiment.training.mesh]
        # All of them before the first is compiled, which takes minutes.
        plans = {
            stage: dict.fromkeys(planned_mesh(experiment, stage, mesh, devices, device_bytes) for mesh in requested)
            for stage in _chosen(config.stages(experiment), self.stages)
        }
        say(f"{name}: {self.topology or 'the devices that are here'}, {len(devices)} x {devices[0].device_kind}")
        for stage, meshes in plans.items():
            rows = []
            for mesh in meshes:
                sizes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
                step = f"the step of {stage.batch_size} crops of {stage.patch_size} pixels"
                say(f"compiling {step} for {sizes} ...")
                row = plan_step(experiment, stage, mesh, device_bytes)
                say(f"took {row['compile_seconds']:.0f} s")
                if row["refused"]:
                    say(row["refused"])
                rows.append({"configuration": name, "topology": self.topology, **row, "versions": used})
                _append(self.output, rows[-1])
            _print(f"{name}: {step}, for each device", rows)


def _mesh(text: str) -> Literal["auto"] | tuple[int, int, int]:
    if text == "auto":
        return "auto"
    sizes = text.split(",")
    if len(sizes) != 3 or not all(size.removeprefix("-").isdecimal() for size in sizes):
        raise UserError(f"'{text}' is not a mesh; write the devices along data, fsdp and rows, for example 4,1,4")
    data, fsdp, rows = map(int, sizes)
    return data, fsdp, rows


def _chosen(all_stages: tuple[Stage, ...], numbers: tuple[int, ...]) -> list[Stage]:
    if not set(numbers) <= set(range(1, len(all_stages) + 1)):
        raise UserError(f"--stages must be numbers from 1 to {len(all_stages)}, not {numbers}")
    return [stage for number, stage in enumerate(all_stages, 1) if not numbers or number in numbers]


def _append(output: Path | None, row: dict[str, Any]) -> None:
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        with output.open("a") as file:
            file.write(json.dumps(row) + "\n")


def _print(title: str, plans: list[dict[str, Any]]) -> None:
    """A table with a column for each mesh."""
    columns = {",".join(map(str, plan["mesh"].values())): _figures(plan) for plan in plans}
    names = dict.fromkeys(name for figures in columns.values() for name in figures)
    rows = [
        {"data,fsdp,rows": name, **{mesh: figures.get(name, "") for mesh, figures in columns.items()}} for name in names
    ]
    print_table(title, ["data,fsdp,rows", *columns], rows)


def _figures(plan: dict[str, Any]) -> dict[str, str]:
    if plan["refused"]:
        return {"fits": "no", "compiled in": f"{plan['compile_seconds']:.0f} s"}
    total = plan["state_and_batch_bytes"] + plan["temporary_bytes"] + plan["program_bytes"]
    exchanges = {
        kind: f"{exchange['count']}, {exchange['bytes'] / 2**20:.1f} MiB"
        for kind, exchange in plan["collectives"].items()
    }
    return {
        "fits": "yes" if plan["fits"] else "no",
        "parts of the batch": str(plan["gradient_accumulation"]),
        "state and batch": f"{plan['state_and_batch_bytes'] / 2**20:.0f} MiB",
        "temporaries": f"{plan['temporary_bytes'] / 2**20:.0f} MiB",
        "program": f"{plan['program_bytes'] / 2**20:.0f} MiB",
        f"total, of {plan['device_bytes'] / 2**30:.1f} GiB": f"{total / 2**30:.2f} GiB",
        "operations, by the compiler (loops once)": f"{plan['flops'] / 1e9:.1f} GFLOP",
        "operations, multiply-adds x 2 x 3": f"{plan['flops_of_products'] / 1e9:.1f} GFLOP",
        "bytes accessed (loops once)": f"{plan['bytes_accessed'] / 1e9:.2f} GB",
        "compiled in": f"{plan['compile_seconds']:.0f} s",
        "not meant to be exchanged": ", ".join(plan["unplanned"]) or "nothing",
        **exchanges,
    }
