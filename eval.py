"""Scores weights under a named protocol: `python eval.py runs/quickstart --protocol gauss-color-25 --data DIR`.

DIR holds the clean images, or `input/` and `target/` for protocols on pairs.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from gamax.console import print_table, progress_bar, say
from gamax.data.datasets import folder_examples
from gamax.environment import environment, versions
from gamax.errors import UserError, exit_on_user_error
from gamax.evaluation.evaluate import TABLE_COLUMNS, check_examples, evaluate
from gamax.evaluation.pictures import save_comparison
from gamax.evaluation.protocols import PROTOCOLS, find_protocol
from gamax.evaluation.restorer import Restorer
from gamax.files import check_writable, write_json
from gamax.interop.weights import find_weights, load_weights, sha256


@dataclass(frozen=True)
class Arguments:
    """Scores weights under a named protocol."""

    weights: tyro.conf.Positional[Path]
    """A run folder or a weight file."""
    protocol: str
    """One of the named protocols."""
    data: Path
    """Folder of clean images, or with `input/` and `target/`."""
    output: Path | None = None
    """The JSON file to write; the default is beside the weights, `evaluations/PROTOCOL-DATA[-tileN].json`."""
    tile: int | None = None
    """Restore in tiles of this many pixels a side; the default is whole images."""


def main(arguments: Arguments) -> None:
    """Checks everything, scores every image, prints a table, writes JSON and a picture of the worst."""
    protocol = find_protocol(arguments.protocol)
    restorer = Restorer(*load_weights(arguments.weights), tile=arguments.tile)
    weights = find_weights(arguments.weights)
    output = arguments.output or weights.parent / "evaluations" / _name(protocol.name, arguments.data, arguments.tile)
    if output.suffix != ".json" or output.is_dir():
        raise UserError(f"--output must be a JSON file, not '{output}'")
    check_writable(output.parent)
    examples = folder_examples(arguments.data, protocol.paired)
    check_examples(examples, protocol, restorer.model, restorer.params)

    started = time.monotonic()
    with progress_bar(f"evaluating {protocol.name}", len(examples), "images") as update:
        evaluation = evaluate(restorer, examples, protocol, update)
    record = {
        **evaluation.record(),
        "data": str(arguments.data),
        "weights": str(weights),
        "weights_sha256": sha256(weights),
        "sizes": len({(row["height"], row["width"]) for row in evaluation.rows}),
        "seconds": time.monotonic() - started,
        "versions": versions(),
        "environment": environment(),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, record)
    picture = output.with_suffix(".png")
    save_comparison(picture, evaluation.worst)
    print_table(f"{arguments.weights} under {protocol.name}", TABLE_COLUMNS, evaluation.table())
    say(f"wrote {output} and {picture.name} (the worst {len(evaluation.worst)})")


def _name(protocol: str, data: Path, tile: int | None) -> str:
    # With the parent folder, as test sets are often just called `test`.
    parts = (protocol, *data.resolve().parts[-2:], *([f"tile{tile}"] if tile else []))
    return "-".join(part.strip("/") for part in parts if part.strip("/")) + ".json"


if __name__ == "__main__":
    with exit_on_user_error():
        main(tyro.cli(Arguments, description=f"{__doc__}\nProtocols: {', '.join(PROTOCOLS)}."))
