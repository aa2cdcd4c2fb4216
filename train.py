"""Trains one experiment: `python train.py configs/quickstart.py [--optimizer.learning-rate 5e-4 ...]`.

The same command resumes a run that was interrupted, and evaluates one that is finished again.
"""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from gamax import config
from gamax.console import print_table, say
from gamax.data.datasets import folder_examples, prepare, training_channels
from gamax.environment import environment, versions
from gamax.errors import UserError, exit_on_user_error
from gamax.evaluation.evaluate import TABLE_COLUMNS, Evaluation, check_examples, evaluate
from gamax.evaluation.pictures import save_comparison
from gamax.evaluation.protocols import find_protocol
from gamax.evaluation.restorer import Restorer
from gamax.files import write_json
from gamax.interop.weights import WEIGHTS_NAME, save_weights
from gamax.models import abstract_params, count_parameters, create_model
from gamax.training import run_folder, sharding
from gamax.training.checkpoints import Checkpoints
from gamax.training.loop import train


def main(arguments: list[str]) -> None:
    """Checks everything, trains, saves the weights, evaluates and reports."""
    experiment, name = config.parse(arguments, "train.py")
    run_dir = Path(experiment.logging.run_dir or f"runs/{name}")

    # Whatever can be wrong is found here, before anything is written to the run folder.
    chosen = experiment.model
    model = create_model(chosen.name, **chosen.overrides, dtype=jnp.dtype(chosen.dtype))
    abstract = abstract_params(model, experiment.data.patch_size)
    protocol = find_protocol(experiment.evaluation.protocol)
    mesh = sharding.make_mesh(experiment.training.mesh)
    at_once = experiment.training.batch_size // experiment.training.gradient_accumulation
    sharding.check_batch(mesh, at_once, experiment.data.patch_size)
    run_folder.check_run(run_dir, experiment)
    evaluation_data = experiment.evaluation.data
    examples = folder_examples(evaluation_data, protocol.paired) if evaluation_data else None
    channels = training_channels(experiment.data)
    if {*channels.values(), model.input_channels} != {3}:
        raise UserError(
            f"training is on RGB images so far: {chosen.name} takes {model.input_channels} channels, data.dataset "
            f"{experiment.data.dataset} has {channels}"
        )
    dataset = prepare(experiment.data)
    examples = examples or dataset.test
    if examples is None:
        raise UserError("there is nothing to evaluate on: set evaluation.data, or add a test/ folder to data.source")
    check_examples(examples, protocol, model, abstract)

    say(f"{chosen.name}: {count_parameters(abstract):,} parameters")
    say(f"training on {dataset.num_images['train']} images, evaluating on {len(examples)} ({protocol.name})")
    say(f"devices: {jax.device_count()} x {jax.devices()[0].device_kind}, mesh {dict(mesh.shape)}")

    def evaluate_params(params: Any) -> Evaluation:
        return evaluate(Restorer(model, params), examples, protocol)

    with run_folder.open_run(run_dir, experiment):
        with closing(Checkpoints(run_dir / "checkpoints", experiment.training.checkpoints_kept)) as checkpoints:
            params, seconds = train(experiment, model, dataset, mesh, run_dir, checkpoints, evaluate_params)
        weights_sha256 = save_weights(run_dir / WEIGHTS_NAME, params, chosen.name, chosen.overrides, dtype=chosen.dtype)

        scores = evaluate_params(params)
        save_comparison(run_dir / "samples" / f"{protocol.name}.png", scores.worst)
        result = {
            **scores.record(),
            "steps": experiment.training.steps,
            "seconds": seconds,
            "weights_sha256": weights_sha256,
            "versions": versions(),
            "environment": environment(),
        }
        write_json(run_dir / "result.json", result)
    print_table(f"{run_dir} under {protocol.name}", TABLE_COLUMNS, scores.table())
    say(f"trained in {seconds:.0f} s; wrote {WEIGHTS_NAME}, result.json and samples/{protocol.name}.png there")


if __name__ == "__main__":
    with exit_on_user_error():
        main(sys.argv[1:])
