"""What training starts from in place of random parameters: those of other runs, whole or by part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from gamax.config import Experiment
from gamax.errors import UserError, nearest
from gamax.interop.weights import find_weights, load_weights, sha256
from gamax.training.state import TrainState, frozen_parts

ALL = "all"
"""In place of a part: every part that is not named beside it."""


def check_initial_weights(model: nn.Module, experiment: Experiment, params: Any) -> None:
    """Raises `UserError` if a run cannot begin with its `training.initial_weights`; reads the files.

    Args:
        model: the network. Its frozen parts must be given, as nothing else trains them.
        experiment: its configuration.
        params: the tree of its parameters, or of their shapes.

    """
    given = experiment.training.initial_weights
    missing = [part for part in frozen_parts(model, experiment.training) if part not in given and ALL not in given]
    if missing:
        raise UserError(
            f"{experiment.model.name} needs the {missing[0]} of another run, as this one does not train it: add "
            f"--training.initial-weights {missing[0]}=RUN"
        )
    read_initial_weights(given, params)


def read_initial_weights(sources: Mapping[str, str], params: Any) -> dict[str, Any]:
    """The parameters that `training.initial_weights` gives, by part of the network.

    Args:
        sources: run folder or weight file by part or `all`; with `:PART` behind it, only that part of the file.
        params: the tree of parameters of the network, or of their shapes.

    Raises:
        UserError: if the network has no such part, the source does not, or names or shapes of the two differ.

    """
    found: dict[str, Any] = {}
    for part, source in sources.items():
        if part not in (ALL, *params):
            raise UserError(f"training.initial_weights names no part of the network: {nearest(part, [ALL, *params])}")
        weights = _read(source)
        if part == ALL:
            given, wanted = (
                {name: leaves for name, leaves in tree.items() if name not in sources} for tree in (weights, params)
            )
        else:
            given, wanted = {part: weights}, {part: params[part]}
        _check_fit(source, given, wanted)
        found |= jax.tree.map(lambda like, leaf: leaf.astype(like.dtype), wanted, given)
    return found


def source_hashes(sources: Mapping[str, str]) -> dict[str, str]:
    """SHA-256 of the weight file of each part that `training.initial_weights` names."""
    return {part: sha256(find_weights(_split(source)[0])) for part, source in sources.items()}


def begin_with(state: TrainState, weights: Mapping[str, Any]) -> TrainState:
    """A state before the first step with other parameters, by part; their moving average begins with them too."""
    params = {**state.params, **weights}
    if state.ema_params is None:
        return replace(state, params=params)
    average = {part: jax.tree.map(jnp.copy, params[part]) for part in state.ema_params}
    return replace(state, params=params, ema_params=average)


def _split(source: str) -> tuple[str, str]:
    """The run or file, and the part of it or nothing; a path may have a colon in it."""
    path, colon, part = source.rpartition(":")
    return (path, part) if colon and not Path(source).exists() else (source, "")


def _read(source: str) -> Any:
    path, part = _split(source)
    _, params = load_weights(path)
    if part and part not in params:
        raise UserError(f"training.initial_weights: '{path}' has no part {nearest(part, params)}")
    return params[part] if part else params


def _check_fit(source: str, given: Any, wanted: Any) -> None:
    found, expected = _shapes(given), _shapes(wanted)
    different = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
    if different:
        name = different[0]
        raise UserError(
            f"training.initial_weights: '{source}' does not fit: {len(different)} of {len(expected)} arrays differ, "
            f"first '{name}' (given {found.get(name)}, network {expected.get(name)}); give a run of the same network, "
            "or RUN:PART for a part of another"
        )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves: dict[str, Any] = flatten_dict(tree, sep="/")
    return {name: leaf.shape for name, leaf in leaves.items()}
