"""Diffusion priors on disk: a picture beside each pair of a dataset, which the network is given behind the input.

A prior of an image is a 16-bit RGB picture of the same size. `gamax data prior` writes the priors of a dataset into a
folder: `prior.json`, which says how they were made, and `SPLIT/NAME.png` for every example.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gamax.data.examples import DUAL_PIXEL, PRIOR, ExampleFiles, ImageFile, takes_prior
from gamax.data.images import read_image
from gamax.errors import UserError

SETTINGS_NAME = "prior.json"

_USUAL_SPLITS = {"train", "validation", "test"}


def prior_path(folder: Path, split: str, name: str) -> Path:
    """Where the prior of an example is."""
    return folder / split / f"{name}.png"


def with_prior(
    splits: Mapping[str, Sequence[ExampleFiles]], folder: Path, dataset: str
) -> dict[str, list[ExampleFiles]]:
    """The examples of every split of a dataset with their prior from `folder`; reads no image.

    Raises:
        UserError: if the folder is none of `gamax data prior` or that of another dataset, a file is missing, or an
            example has no input, of which a prior could have been made.
    """
    _check_dataset(folder, dataset)
    return {split: [_add(files, folder, split) for files in examples] for split, examples in splits.items()}


def with_named_prior(
    examples: Sequence[ExampleFiles], folder: Path, source: Path, dataset: str | None
) -> list[ExampleFiles]:
    """Examples of one set with their prior, from the split of that name or, if it has none, the one with all images.

    Args:
        examples: those of the set.
        folder: where the priors are.
        source: the folder of the set. Names of images such as `1` are in every split, so if the folder has the name of
            a split, no other split will do.
        dataset: that the set is of, if that is known.

    Raises:
        UserError: as `with_prior` does, or if it cannot be told which split they are.
    """
    _check_dataset(folder, dataset)
    splits = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if source.name in {*splits, *_USUAL_SPLITS}:
        return [_add(files, folder, source.name) for files in examples]
    complete = [split for split in splits if all(prior_path(folder, split, files.name).is_file() for files in examples)]
    if not complete:
        raise UserError(
            f"no folder in '{folder}' has a prior for each of the {len(examples)} images in '{source}', such as "
            f"{examples[0].name}.png; make them with `gamax data prior`"
        )
    if len(complete) > 1:
        raise UserError(
            f"'{folder}' has priors for the images in '{source}' in each of {', '.join(complete)}: give the folder of "
            "the images the name of the one that it is"
        )
    return [_add(files, folder, complete[0]) for files in examples]


def check_prior_option(model: Any, prior: object, option: str) -> None:
    """Raises `UserError` unless a prior is given exactly where a network takes one.

    Args:
        model: the network.
        prior: what the user has set, or None.
        option: the name under which it is set.
    """
    name, takes = type(model).__name__, takes_prior(model)
    if takes and prior is None:
        raise UserError(
            f"this {name} takes a diffusion prior behind its input: set {option} to a folder that `gamax data prior` "
            "has written"
        )
    if prior is not None and not takes:
        raise UserError(
            f"{option} is set, but this {name} takes no diffusion prior: leave it out, or choose a network that does"
        )


def check_prior_limit(model: Any, settings: Mapping[str, Any], source: str | Path) -> None:
    """Raises `UserError` if a network that decodes its prior takes it to have another limit than it has.

    Args:
        model: the network.
        settings: those of the prior; without `limit` if the program that has made it did not say.
        source: where the prior is from.
    """
    limit = settings.get("limit")
    if getattr(model, "prior_decoder", None) is not None and limit not in (None, model.prior_limit):
        raise UserError(
            f"the latents of '{source}' go to plus and minus {limit}, but the network decodes them as if to "
            f"{model.prior_limit}: train it with --model.overrides prior_limit={limit}, or make the prior with --limit "
            f"{model.prior_limit}"
        )


def stored_settings(folder: Path) -> dict[str, Any]:
    """What `prior.json` in a folder says of the prior there; `UserError` if there is none or it is damaged."""
    path = folder / SETTINGS_NAME
    if not path.is_file():
        raise UserError(f"no prior in '{folder}' (it has no {SETTINGS_NAME}); make one with `gamax data prior`")
    try:
        settings = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read ({error}); make the prior again with `gamax data prior`") from error
    if not isinstance(settings, dict):
        raise UserError(f"'{path}' holds no settings of a prior; make the prior again with `gamax data prior`")
    return settings


def _check_dataset(folder: Path, dataset: str | None) -> None:
    """Raises `UserError` if there is no prior, or that of another dataset; other programs need not say of which."""
    stored = stored_settings(folder).get("dataset", dataset)
    # A published set may lie in anyone's own folder.
    if dataset is not None and stored not in (dataset, "paired_folder"):
        raise UserError(f"'{folder}' holds a prior of dataset {stored}, not of {dataset}: give that of {dataset}")


def _add(files: ExampleFiles, folder: Path, split: str) -> ExampleFiles:
    if not {"input", *DUAL_PIXEL} & files.images.keys():
        raise UserError(f"a prior is made of the inputs of a paired dataset, but '{files.path}' is a clean image alone")
    path = prior_path(folder, split, files.name)
    if not path.is_file():
        raise UserError(f"no prior '{path}' for '{files.path}'; run `gamax data prior` again")
    # Behind the others, as the first image stands for the example.
    return replace(files, images={**files.images, PRIOR: ImageFile(path, _read_prior)})


def _read_prior(path: Path) -> np.ndarray:
    image = read_image(path)
    if image.dtype != np.uint16 or image.shape[-1] != 3:
        raise UserError(
            f"'{path}' has {8 * image.itemsize} bits and {image.shape[-1]} channel(s), but a prior is 16-bit RGB; run "
            "`gamax data prior` again into an empty folder"
        )
    return image
