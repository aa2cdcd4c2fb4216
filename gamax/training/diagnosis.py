"""Where a gradient that is not finite comes from: one step computed again, image by image and module by module."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float

from gamax.config import Experiment, from_dict, to_dict
from gamax.data.examples import order_views
from gamax.data.preprocessing import preprocess
from gamax.environment import versions
from gamax.errors import UserError
from gamax.files import write_json
from gamax.interop.weights import WEIGHTS_NAME, load_weights, save_weights
from gamax.training.losses import weighted_sum
from gamax.training.state import frozen_parts, split_params
from gamax.training.step import make_network_loss, network_keys

NONFINITE_FOLDER = "nonfinite"
"""In the run folder: the report, and what is needed to compute the step again."""
REPORT_NAME, BATCH_NAME = "report.json", "batch.npz"


@dataclass(frozen=True)
class Case:
    """What one step was computed from; whole arrays, not parts of those of several processes."""

    step: int
    """The number of steps before it."""
    key: Any
    """Of the training state."""
    params: Any
    """As they were before the step."""
    batch: Mapping[str, Any]
    """Images `[B, H, W, C]` by name, integers."""


@dataclass(frozen=True)
class Diagnosis:
    """What is not finite in a step, and where it began."""

    step: int
    """The number of steps before it."""
    images: list[int]
    """Places in the batch of the images whose loss, or else whose gradient, is not finite."""
    origin: str
    """For the first of these images: what made something that is not finite of finite input; empty for no image."""
    value: str
    """What came out of it: `nan` or `inf`."""
    loss: float
    """Mean over the batch."""
    parameters: list[str]
    """Those that are not finite themselves."""
    gradients: list[str]
    """The parameters whose gradient is not finite for the first of the images, if its loss is finite."""
    largest_parameter: tuple[str, float]
    """The parameter and its largest absolute value; one that holds NaN does not count."""
    largest_activation: tuple[str, float]
    """The module and its largest absolute output, over all images."""

    def sentence(self) -> str:
        """What was found, without a full stop."""
        if self.images:
            others = f" and {len(self.images) - 1} other(s)" if self.images[1:] else ""
            return f"{self.origin} gave {self.value} for image {self.images[0]}{others} of the batch"
        parameter, activation = (
            f"{value:.3g} in {name}" for name, value in (self.largest_parameter, self.largest_activation)
        )
        return (
            "each image by itself has a finite gradient when it is computed again "
            f"(largest parameter {parameter}, largest activation {activation})"
        )


def diagnose(model: nn.Module, experiment: Experiment, case: Case) -> Diagnosis:
    """Computes a step again, on one device, one image after the other, and finds what is not finite in it.

    Args:
        model: the network that was trained.
        experiment: its data and losses.
        case: the step.
    """
    losses = weighted_sum({**experiment.training.auxiliary_losses, experiment.training.loss: 1.0})
    # By way of the host, so that all is on one device.
    params = jax.device_put(jax.tree.map(np.asarray, case.params))
    batch = {name: jnp.asarray(np.asarray(images)) for name, images in case.batch.items()}
    words = jnp.asarray(np.asarray(jax.random.key_data(case.key)))
    key = jax.random.fold_in(jax.random.wrap_key_data(words, impl=jax.random.key_impl(case.key)), case.step)
    inputs, targets = jax.jit(lambda batch: preprocess(batch, key, experiment.data))(batch)
    inputs = order_views(inputs, model)
    pairs = [(inputs[index : index + 1], targets[index : index + 1]) for index in range(len(inputs))]

    forward, names = _watched_loss(model, losses)
    keys, progress = network_keys(key, len(pairs)), case.step / experiment.training.steps
    pairs = [(*pair, keys[index : index + 1], progress) for index, pair in enumerate(pairs)]
    values, tables = zip(*(jax.device_get(forward(params, *pair)) for pair in pairs), strict=True)
    images = [index for index, value in enumerate(values) if not np.isfinite(value)]
    gradients: dict[str, float] = {}
    if not images:
        gradient = _gradient_sizes(model, losses)
        parts = split_params(params, frozen_parts(model, experiment.training))
        found = [_flat(gradient(*parts, *pair)) for pair in pairs]
        images = [index for index, each in enumerate(found) if not np.isfinite(list(each.values())).all()]
        if images:
            gradients = {name: size for name, size in found[images[0]].items() if not np.isfinite(size)}

    origin, size = "", 0.0
    if images:
        given, made = tables[images[0]]
        # A module that only hands on what it was given is not the origin.
        began = np.flatnonzero(np.isfinite(given) & ~np.isfinite(made))
        if began.size:
            origin, size = names[began[0]], made[began[0]]
        else:
            (first, size), *others = gradients.items()
            origin = f"the gradient of {first}" + (f" and {len(others)} other parameter(s)" if others else "")

    sizes = _flat(jax.jit(lambda params: jax.tree.map(_size, params))(params))
    largest = max(sizes, key=lambda name: np.nan_to_num(sizes[name]))
    activations = np.nan_to_num(np.stack([made[1:-1] for _, made in tables]), nan=0, posinf=np.inf).max(0)
    return Diagnosis(
        step=case.step,
        images=images,
        origin=origin,
        value=str(size) if images else "",
        loss=float(np.mean(values)),
        parameters=[name for name in sizes if not np.isfinite(sizes[name])],
        gradients=list(gradients),
        largest_parameter=(largest, sizes[largest]),
        largest_activation=(names[1 + int(activations.argmax())], float(activations.max())),
    )


def _watched_loss(model: nn.Module, losses: Callable[..., Array]) -> tuple[Callable[..., Any], list[str]]:
    """A function from the arguments of the training loss to the loss and `[2, N]` sizes, and the names of the N.

    They are the input, every call of a module in the order in which they end, and the loss; with the size of what each
    was given and of what it made. Watched is the restoring of the input, or the whole loss of a network that restores
    in another way than it is trained (`restores_in_training` is false).
    """
    # Only modules in rows of blocks that are neither loops nor computed again can be watched.
    watched = _without_loops(model)
    names: list[str] = []

    @jax.jit
    def forward(params: Any, image: Array, target: Array, keys: Array, progress: Array) -> tuple[Array, Array]:
        names[:] = ["the input"]
        given, made = [jnp.float32(0)], [_size(image)]

        def watch(call: Any, arguments: Any, options: Any, context: Any) -> Any:
            result = call(*arguments, **options)
            if context.method_name == "__call__":
                names.append(f"module {'/'.join(context.module.path) or type(context.module).__name__}")
                given.append(_size((arguments, options)))
                made.append(_size(result))
            return result

        with nn.intercept_methods(watch):
            if getattr(model, "restores_in_training", True):
                restored: Any = watched.apply({"params": params}, image)
                given_to_loss, loss = _size(restored), losses(restored, target)
            else:
                loss, _ = make_network_loss(watched, losses)(params, image, target, keys, progress)
                given_to_loss = made[-1]
        names.append("the loss")
        return loss, jnp.stack([jnp.stack([*given, given_to_loss]), jnp.stack([*made, loss])])

    return forward, names


def _without_loops(model: nn.Module) -> nn.Module:
    plain: dict[str, Any] = {name: False for name in ("scan", "remat") if hasattr(model, name)}
    inner = getattr(model, "network", None)
    if isinstance(inner, nn.Module):
        plain["network"] = _without_loops(inner)
    return model.clone(**plain)


def _gradient_sizes(model: nn.Module, losses: Callable[..., Array]) -> Callable[..., Any]:
    """A function from trained and frozen parts and the other arguments of the loss to the sizes of the gradient."""
    network_loss = make_network_loss(model, losses)
    gradient = jax.grad(lambda trained, frozen, *rest: network_loss({**trained, **frozen}, *rest), has_aux=True)
    return jax.jit(lambda *arguments: jax.tree.map(_size, gradient(*arguments)[0]))


def _size(tree: Any) -> Float[Array, ""]:
    """The largest absolute value of all floats in it; NaN if one of them is."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    floats = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.stack([jnp.abs(leaf).max(initial=0).astype(jnp.float32) for leaf in floats] or [jnp.float32(0)]).max()


def _flat(params: Any) -> dict[str, float]:
    values: dict[str, Any] = flatten_dict(jax.device_get(params), sep="/")
    return {name: float(value) for name, value in values.items()}


def save(folder: Path, experiment: Experiment, case: Case, diagnosis: Diagnosis, configuration: str) -> Path:
    """Writes the report, the images and the parameters; returns the path of the report.

    Args:
        folder: made if it is not there.
        experiment: the checked configuration.
        case: the step.
        diagnosis: of that step.
        configuration: name of the configuration file, for the reader.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chosen = experiment.model
    save_weights(folder / WEIGHTS_NAME, case.params, chosen.name, chosen.overrides, dtype=chosen.dtype)
    batch: dict[str, Any] = {name: np.asarray(images) for name, images in case.batch.items()}
    np.savez(folder / BATCH_NAME, **batch)
    record = {
        "found": diagnosis.sentence(),
        **{name: _plain(value) for name, value in asdict(diagnosis).items()},
        "configuration": configuration,
        "experiment": to_dict(experiment),
        "key": {"type": str(jax.random.key_impl(case.key)), "words": jax.random.key_data(case.key).tolist()},
        "versions": versions(),
    }
    write_json(folder / REPORT_NAME, record)
    return folder / REPORT_NAME


def _plain(value: Any) -> Any:
    """What JSON can hold: it has no infinity."""
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def load(folder: Path) -> tuple[nn.Module, Experiment, Case]:
    """The network, the configuration and the step that `save` has written; `UserError` if there are none."""
    path = folder / REPORT_NAME
    if not path.is_file():
        raise UserError(f"'{folder}' holds no {REPORT_NAME}; give the folder {NONFINITE_FOLDER} of a run that has one")
    record = json.loads(path.read_text())
    model, params = load_weights(folder / WEIGHTS_NAME)
    with np.load(folder / BATCH_NAME, allow_pickle=False) as images:
        batch = dict(images)
    key = jax.random.wrap_key_data(jnp.asarray(record["key"]["words"], jnp.uint32), impl=record["key"]["type"])
    return model, from_dict(record["experiment"]), Case(record["step"], key, params, batch)


def replay(folder: Path) -> Diagnosis:
    """The diagnosis of a saved step, made anew."""
    return diagnose(*load(folder))
