"""Trains one experiment: `python train.py configs/quickstart.py [--optimizer.learning-rate 5e-4 ...]`.

The same command resumes a run that was interrupted, and evaluates one that is finished again.
"""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from gamax import config, hosts
from gamax.config import samples_seen, stage_ends, stages
from gamax.console import print_table, say
from gamax.data.datasets import check_channels, prepare, training_channels
from gamax.data.pipeline import training_batches
from gamax.data.prior import check_prior_limit, check_prior_option, stored_settings
from gamax.environment import environment, versions
from gamax.errors import UserError, exit_on_user_error, stop_on_sigterm
from gamax.evaluation.evaluate import Evaluation, check_examples, check_network, check_scored, evaluate
from gamax.evaluation.pictures import save_comparison
from gamax.evaluation.protocol_data import label_examples, protocol_examples
from gamax.evaluation.protocols import find_protocol
from gamax.evaluation.restorer import Restorer
from gamax.files import write_json
from gamax.interop.weights import BEST_WEIGHTS_NAME, WEIGHTS_NAME, save_weights
from gamax.models import count_parameters, create_model
from gamax.training import run_folder
from gamax.training.checkpoints import Checkpoints
from gamax.training.initialization import check_initial_weights, source_hashes
from gamax.training.loop import train
from gamax.training.program import device_memory, stage_meshes, step_programs
from gamax.training.state import abstract_state
from gamax.training.watching import SUMMARY_COLUMNS, check_logging, memory_use, summary


def main(arguments: list[str]) -> None:
    """Checks everything, trains, saves the weights, evaluates and reports."""
    experiment, name = config.parse(arguments, "train.py")
    hosts.join(experiment.distributed)
    run_dir = Path(experiment.logging.run_dir or f"runs/{name}")

    # Whatever can be wrong is found here, before anything is written to the run folder.
    chosen = experiment.model
    model = create_model(chosen.name, **chosen.overrides, dtype=jnp.dtype(chosen.dtype))
    protocol = find_protocol(experiment.evaluation.protocol)
    check_scored(protocol)
    check_network(protocol, model)
    abstract = abstract_state(model, experiment)
    memory = hosts.least(device_memory(jax.local_devices()[0]))
    meshes = stage_meshes(model, experiment, abstract, memory)
    check_logging(experiment.logging)
    if hosts.is_first():
        run_folder.check_run(run_dir, experiment)
    # A run that goes on needs them no longer.
    begins = run_folder.saved_step(run_dir) == 0
    if begins:
        check_initial_weights(model, experiment, abstract.params)
    evaluation_data = experiment.evaluation.data
    if evaluation_data:
        check_prior_option(model, experiment.evaluation.prior, "evaluation.prior")
    examples = protocol_examples(protocol, evaluation_data, experiment.evaluation.prior) if evaluation_data else None
    check_channels(model, experiment.data, training_channels(experiment.data))
    for folder in filter(None, (experiment.data.prior, experiment.evaluation.prior)):
        check_prior_limit(model, stored_settings(Path(folder).expanduser()), folder)
    # Its images must be large enough for all stages.
    data = replace(experiment.data, patch_size=max(stage.patch_size for stage in stages(experiment)))
    # The first process prepares the dataset for all those that share its disk.
    dataset = prepare(data) if hosts.is_first() else None
    hosts.wait_for_all("dataset")
    dataset = dataset or prepare(data)
    asked = config.to_dict(experiment)
    facts = {group: asked[group] for group in ("model", "optimizer", "training")}
    facts["initial weights"] = source_hashes(experiment.training.initial_weights) if begins else {}
    # The fingerprint stands for the folders, which may lie elsewhere on every machine.
    folders = {"source": dataset.fingerprint, "prior": None, "prepared_dir": None}
    hosts.check_alike({**facts, "data": {**asked["data"], **folders}})
    if examples is None and dataset.test is not None:
        examples = label_examples(protocol, experiment.data.dataset, dataset.test)
    if examples is None:
        raise UserError("there is nothing to evaluate on: set evaluation.data, or add a test/ folder to data.source")
    sizes = check_examples(examples, protocol, Restorer(model, abstract.params))

    say(f"{chosen.name}: {count_parameters(abstract.params):,} parameters")
    say(f"training on {dataset.num_images['train']} images, evaluating on {len(examples)} ({protocol.name})")
    say(f"{jax.device_count()} x {jax.devices()[0].device_kind} in {jax.process_count()} process(es)")
    # Stages are compiled before the first step: the last one must not fail after a week.
    skip = experiment.data.skip_corrupt
    with closing(
        training_batches(dataset.train, patch_size=1, batch_size=1, seed=0, threads=1, skip_corrupt=skip)
    ) as one:
        crops = {name: (images.shape[-1], images.dtype) for name, images in next(one).items()}
    program_of = step_programs(model, experiment, meshes, abstract, crops, memory)
    for stage, end in stage_ends(experiment):
        if end > run_folder.saved_step(run_dir):
            program_of(stage)

    def evaluate_params(params: Any) -> Evaluation:
        return evaluate(Restorer(model, jax.device_put(params)), examples, protocol, sizes)

    def save(name: str, params: Any) -> str | None:
        if not hosts.is_first():
            return None
        return save_weights(run_dir / name, params, chosen.name, chosen.overrides, dtype=chosen.dtype)

    with run_folder.open_run(run_dir, experiment):
        kept, kept_every = experiment.training.checkpoints_kept, experiment.training.checkpoints_kept_every
        with Checkpoints(run_dir / "checkpoints", kept=kept, kept_every=kept_every) as checkpoints:
            trained = train(
                experiment,
                model,
                dataset,
                meshes,
                program_of,
                run_dir,
                checkpoints,
                evaluate_params,
                save_best=partial(save, BEST_WEIGHTS_NAME),
            )
        scores = evaluate_params(trained.params)
        weights_sha256 = save(WEIGHTS_NAME, trained.params)
        if trained.best and scores.mean("psnr") > trained.best[1]:
            save(BEST_WEIGHTS_NAME, trained.params)
        if hosts.is_first():
            save_comparison(run_dir / "samples" / f"{protocol.name}.png", scores.worst)
            result = {
                **scores.record(),
                "steps": experiment.training.steps,
                "samples": samples_seen(experiment, experiment.training.steps),
                "seconds": trained.seconds,
                "weights_sha256": weights_sha256,
                "initial_weights_sha256": trained.initial_weights,
                "versions": versions(),
                "environment": environment(),
            }
            write_json(run_dir / "result.json", result)
    steps, samples = experiment.training.steps, samples_seen(experiment, experiment.training.steps)
    figures = summary(
        steps=steps,
        samples=samples,
        epochs=samples / len(dataset.train),
        seconds=trained.seconds,
        input_wait=trained.input_wait,
        skipped=trained.skipped,
        memory=memory_use(),
        loss=trained.loss,
        metric="PSNR",
        best=trained.best,
        last=(steps, scores.mean("psnr")),
    )
    print_table("training", SUMMARY_COLUMNS, figures)
    table = scores.table()
    print_table(f"{run_dir} under {protocol.name}", list(table[0]), table)
    say(f"trained in {trained.seconds:.0f} s; wrote {WEIGHTS_NAME}, result.json and samples/{protocol.name}.png there")


if __name__ == "__main__":
    with hosts.end_at_once_on_errors(), exit_on_user_error(), stop_on_sigterm():
        main(sys.argv[1:])
