"""Scores weights under a named protocol: `python eval.py runs/quickstart --protocol gauss-color-25 --data DIR`.

DIR holds the files as the authors of a test set distribute them, or clean images, or `input/` and `target/`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import tyro

from gamax.console import print_table, progress_bar, say
from gamax.data.prior import check_prior_limit, check_prior_option, stored_settings
from gamax.environment import environment, versions
from gamax.errors import UserError, exit_on_user_error
from gamax.evaluation.evaluate import check_examples, check_network, evaluate, restore_inputs
from gamax.evaluation.learned import find_metric
from gamax.evaluation.pictures import save_comparison
from gamax.evaluation.protocol_data import protocol_examples
from gamax.evaluation.protocols import PROTOCOLS, Protocol, find_protocol
from gamax.evaluation.restorer import Restorer, tile_fields
from gamax.evaluation.submission import write_dnd_submission
from gamax.files import check_writable, write_json
from gamax.interop.weights import WEIGHTS_NAME, find_weights, sha256
from gamax.pretrained import PRETRAINED_FOLDER


@dataclass(frozen=True)
class Arguments:
    """Scores weights under a named protocol."""

    weights: tyro.conf.Positional[Path]
    """A run folder, a weight file, or the name of weights that come with gamax."""
    protocol: str
    """One of the named protocols."""
    data: Path
    """Folder of the test set: as its authors distribute it, or clean images, or with `input/` and `target/`."""
    prior: Path | None = None
    """Folder with the diffusion prior of its images, as `gamax data prior` writes it, for a network that takes one."""
    output: Path | None = None
    """The JSON file to write; the default is beside the weights, `evaluations/[WEIGHTS-]PROTOCOL-DATA[-OPTIONS].json`,
    in `runs/` for those that come with gamax. For dnd-submit a folder."""
    tile: int | None = None
    """Restore in tiles of this many pixels a side; the default is whole images."""
    overlap: int | None = None
    """Pixels that neighbouring tiles share; the default is 96, or a quarter of a smaller tile."""
    sliding_window: Literal["swintormer"] | None = None
    """Tiles as the authors of this network have scored it with, instead of --tile and --overlap."""
    local_window: int | None = None
    """Pixels of the test-time local conversion; under a protocol without it, that is a protocol of its own."""
    self_ensemble: bool = False
    """Mean over the results for the eight flips and turns of every image."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Precision that the network computes in; the default is that of its training."""
    rows: int = 1
    """Devices that share the height of every image."""
    batch_size: int = 1
    """Images of one shape that the network is given together."""
    exact_sizes: bool = False
    """Compile a program for every size of image, however many there are, instead of padding some further."""
    extra_metrics: tuple[str, ...] = ()
    """Also compute these: `lpips`, or MODULE:FUNCTION of (restored, target), `[H, W, 3]` in [0, 1]."""


def main(arguments: Arguments) -> None:
    """Checks everything, scores every image, prints a table, writes JSON and a picture of the worst."""
    protocol = _protocol(arguments)
    if arguments.batch_size < 1:
        raise UserError(f"--batch-size must be 1 or more, not {arguments.batch_size}")
    tiling = tile_fields(arguments.tile, arguments.overlap, arguments.sliding_window)
    weights = find_weights(arguments.weights)
    shipped = weights.resolve().parent == PRETRAINED_FOLDER
    output = arguments.output or (Path("runs") if shipped else weights.parent) / "evaluations" / _name(
        arguments, protocol, weights
    )
    _check_output(output, protocol)
    metrics = {name: find_metric(name) for name in arguments.extra_metrics}
    restorer = Restorer.from_weights(
        weights,
        # Whatever the network was trained with: 0 turns it off.
        local_window=None if protocol.local_window == "as the network has it" else protocol.local_window or 0,
        dtype=arguments.dtype,
        **tiling,
        self_ensemble=arguments.self_ensemble,
        rows=arguments.rows,
    )
    check_network(protocol, restorer.model)
    check_prior_option(restorer.model, arguments.prior, "--prior")
    prior = stored_settings(arguments.prior.expanduser()) if arguments.prior else {}
    check_prior_limit(restorer.model, prior, arguments.prior or "")
    examples = protocol_examples(protocol, arguments.data, arguments.prior)
    with progress_bar("reading", len(examples), "images") as update:
        sizes = check_examples(examples, protocol, restorer, update, exact_sizes=arguments.exact_sizes)

    if not protocol.scores:
        with progress_bar("restoring", len(examples), "images") as update:
            restored = restore_inputs(restorer, examples, protocol, sizes, update, batch_size=arguments.batch_size)
            files = write_dnd_submission(output, restored)
        say(f"wrote {len(files)} files to {output}: pack and send them to the authors' server, which scores them")
        return
    started = time.monotonic()
    with progress_bar(f"evaluating {protocol.name}", len(examples), "images") as update:
        evaluation = evaluate(
            restorer,
            examples,
            protocol,
            sizes,
            update,
            batch_size=arguments.batch_size,
            exact_sizes=arguments.exact_sizes,
            extra_metrics=metrics,
        )
    record = {
        **evaluation.record(),
        "data": str(arguments.data),
        "prior": {"folder": str(arguments.prior), **prior} if arguments.prior else None,
        "weights": weights.stem if shipped else str(weights),
        "weights_sha256": sha256(weights),
        "seconds": time.monotonic() - started,
        "versions": versions(),
        "environment": environment(),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, record)
    picture = output.with_suffix(".png")
    save_comparison(picture, evaluation.worst)
    table = evaluation.table()
    title = ", ".join([f"{arguments.weights} under {protocol.name}", *_options(arguments)])
    print_table(title, list(table[0]), table)
    further = evaluation.inference["padded_further"]
    note = f"; {further} image(s) padded more than by the network (--exact-sizes avoids it)" if further else ""
    say(f"{evaluation.sizes} size(s), {evaluation.programs} program(s) compiled{note}")
    say(f"wrote {output} and {picture.name} (the worst {len(evaluation.worst)})")


def _protocol(arguments: Arguments) -> Protocol:
    """The named protocol, or one of another name if another local window is asked for."""
    protocol, asked = find_protocol(arguments.protocol), arguments.local_window
    if asked is None or asked == (protocol.local_window or 0):
        return protocol
    if isinstance(protocol.local_window, int):
        raise UserError(
            f"protocol {protocol.name} is for a local window of {protocol.local_window}, not {asked}: leave out "
            "--local-window or choose another protocol"
        )
    return replace(protocol, name=f"{protocol.name}+local-window-{asked}", local_window=asked or None)


def _check_output(output: Path, protocol: Protocol) -> None:
    if protocol.scores and (output.suffix != ".json" or output.is_dir()):
        raise UserError(f"--output must be a JSON file, not '{output}'")
    if not protocol.scores and output.is_file():
        raise UserError(f"--output must be a folder for the files of {protocol.name}, not '{output}'")
    check_writable(output.parent)


def _options(arguments: Arguments) -> list[str]:
    """What the result depends on beyond weights and protocol, in a word each."""
    values = {"tile": arguments.tile, "overlap": arguments.overlap}
    options = [f"{name}{value}" for name, value in values.items() if value is not None]
    options += [f"prior-{arguments.prior.name}"] if arguments.prior else []
    options += [f"sliding-window-{arguments.sliding_window}"] if arguments.sliding_window else []
    options += [arguments.dtype] if arguments.dtype else []
    options += ["self-ensemble"] if arguments.self_ensemble else []
    return options + (["exact-sizes"] if arguments.exact_sizes else [])


def _name(arguments: Arguments, protocol: Protocol, weights: Path) -> str:
    # With the parent folder, as test sets are often just called `test`.
    folders = [part for part in arguments.data.resolve().parts[-2:] if part != "/"]
    others = [] if weights.name == WEIGHTS_NAME else [weights.stem]
    parts = [*others, protocol.name, *folders, *_options(arguments)]
    return "-".join(parts) + (".json" if protocol.scores else "")


if __name__ == "__main__":
    with exit_on_user_error():
        main(tyro.cli(Arguments, description=f"{__doc__}\nProtocols: {', '.join(PROTOCOLS)}."))
