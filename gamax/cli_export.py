"""The verb `gamax export`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from gamax.console import say
from gamax.errors import UserError
from gamax.files import check_writable, replace_atomically


@dataclasses.dataclass(frozen=True)
class Export:
    """Writes a network with its weights as one file that runs without gamax, after trying it against the original."""

    weights: tyro.conf.Positional[Path]
    """A run folder or a weight file."""
    format: Literal["stablehlo", "onnx"]
    """`stablehlo` for JAX, `onnx` for other runtimes."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """The file to write; the default is beside the weights, NAME.stablehlo, NAME-720x1280.onnx and so on."""
    size: str | None = None
    """The only image size it takes, HEIGHTxWIDTH; the default is any multiples of the network's `size_multiple`."""
    batch: int | None = None
    """The only number of images it takes in one call; the default is any."""
    platforms: tuple[Literal["cpu", "cuda", "rocm", "tpu"], ...] = ("cpu", "cuda", "tpu")
    """Where a StableHLO file is to run."""
    local_window: int | None = None
    """Means over so many pixels around each instead of the whole image; 0 for the whole, the default as trained."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Precision of the computation; the default is that of training."""

    def run(self) -> None:
        """Carries the verb out."""
        from functools import partial

        import jax
        import numpy as np
        from jax import export

        from gamax.benchmark.case import parse_size
        from gamax.evaluation.restorer import Restorer
        from gamax.interop.export import (
            TOLERANCE,
            check_onnx,
            differences,
            find_signature,
            run_onnx,
            run_stablehlo,
            to_onnx,
            to_stablehlo,
        )
        from gamax.interop.weights import find_weights

        if self.batch is not None and self.batch < 1:
            raise UserError(f"--batch must be at least 1, not {self.batch}")
        if not self.platforms:
            raise UserError("--platforms needs at least one of cpu, cuda, rocm and tpu")
        size = parse_size(self.size) if self.size else None
        weights = find_weights(self.weights)
        suffix = "" if self.size is None else f"-{self.size}"
        output = self.output or weights.with_name(f"{weights.stem}{suffix}.{self.format}")
        if output.is_dir():
            raise UserError(f"--output must be a file, not the folder '{output}'")
        if output.exists() and output.samefile(weights):
            raise UserError(f"--output would replace the weights '{weights}'; choose another")
        check_writable(output.parent)
        restorer = Restorer.from_weights(weights, local_window=self.local_window, dtype=self.dtype)
        model, params = restorer.model, restorer.params
        if self.format == "onnx":
            check_onnx(model)
        signature = find_signature(model, params, size, self.batch)
        metadata = _metadata(weights) | {
            "input": signature.description(),
            "local_window": getattr(model, "local_window", None),
        }
        name = metadata["model"]

        say(f"exporting {name}: {signature.description()}")
        here = export.default_export_platform()
        if self.format == "onnx":
            content = to_onnx(model, params, signature, name, metadata)
            # Which accelerators do not take by themselves.
            with jax.default_matmul_precision("highest"):
                rows = differences(partial(run_onnx, content), model, params, signature)
        else:
            content = to_stablehlo(model, params, signature, self.platforms, name)
            rows = {}
            if here in self.platforms:
                rows = differences(partial(run_stablehlo, content), model, params, signature)
            else:
                say(f"not tried: this machine has {here}, and the file is for {', '.join(self.platforms)}")
        tolerance = TOLERANCE[np.dtype(model.dtype).name]
        for shape, difference in rows.items():
            say(f"tried on noise {list(shape)}: largest difference from the network {difference:.1e} of white")
            if not difference <= tolerance:
                raise UserError(
                    f"the exported network differs from the original by {difference:.1e}, more than {tolerance:g}, so "
                    "it was not written: try another --format, or a fixed --size"
                )
        output.parent.mkdir(parents=True, exist_ok=True)
        replace_atomically(output, content)
        say(f"wrote {output}, {len(content) / 1e6:.1f} MB")


def _metadata(weights: Path) -> dict[str, Any]:
    """What the file says of its origin."""
    from gamax.environment import versions
    from gamax.interop.weights import read_safetensors, sha256

    described = json.loads(read_safetensors(weights)[1]["gamax"])
    return {**described, "weights_sha256": sha256(weights), "versions": versions()}
