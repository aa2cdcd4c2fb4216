"""Finding examples in the folder layouts that authors distribute; every failure is one sentence with a remedy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from gamax.data.examples import ExampleFiles, list_examples, pair
from gamax.data.images import check_unique_stems, list_images
from gamax.errors import UserError


def find_root(source: Path, markers: Sequence[str], inside: Sequence[str], instructions: str) -> Path:
    """Where one of the paths `markers` exists: `source` itself, or else one of the folders `inside` it.

    So a user may name the extracted folder or the one around it. Raises `UserError` with the download instructions when
    it is neither.
    """
    for root in (source, *(source / name for name in inside)):
        if any((root / marker).exists() for marker in markers):
            return root
    raise UserError(f"no {' or '.join(markers)} in '{source}'; {instructions}")


def list_folders(folder: Path) -> list[Path]:
    """The folders in `folder` in the order of their names; `UserError` when there are none."""
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise UserError(f"no folders in '{folder}'")
    return folders


def pair_folders(
    inputs: Path, targets: Path, target_stem: Callable[[str], str] = lambda stem: stem, prefix: str = ""
) -> list[ExampleFiles]:
    """Pairs every image in `inputs` with that in `targets` whose stem is `target_stem(stem)`, in natural order.

    A target may serve several inputs. Examples are named `prefix` and the stem of the input. Raises `UserError` when a
    folder is missing or empty, an input has no target or a target no input.
    """
    return pair_paths(list_images(inputs), list_images(targets), target_stem, prefix)


def pair_paths(
    inputs: Sequence[Path],
    targets: Sequence[Path],
    target_stem: Callable[[str], str] = lambda stem: stem,
    prefix: str = "",
) -> list[ExampleFiles]:
    """Like `pair_folders`, for images that do not fill a folder each; neither list may be empty."""
    check_unique_stems(list(inputs))
    check_unique_stems(list(targets))
    by_stem = {path.stem: path for path in targets}
    wanted = [target_stem(path.stem) for path in inputs]
    _refuse([path for path, stem in zip(inputs, wanted, strict=True) if stem not in by_stem], targets)
    used = set(wanted)
    _refuse([path for path in targets if path.stem not in used], inputs)
    return [pair(path, by_stem[stem], prefix + path.stem) for path, stem in zip(inputs, wanted, strict=True)]


def _refuse(unpaired: Sequence[Path], partners: Sequence[Path]) -> None:
    if unpaired:
        names = ", ".join(path.name for path in unpaired[:3]) + (", ..." if len(unpaired) > 3 else "")
        folder, other = unpaired[0].parent, partners[0].parent
        raise UserError(f"{len(unpaired)} of the images in '{folder}' have no partner in '{other}': {names}")


def equal_or(named: Callable[[str], str], targets: Sequence[Path]) -> Callable[[str], str]:
    """A `target_stem` for sets that circulate in two ways: the target of the same name if it exists, else `named`."""
    stems = {path.stem for path in targets}
    return lambda stem: stem if stem in stems else named(stem)


def first_folder(root: Path, names: Sequence[str]) -> Path | None:
    """The first of the folders `names` in `root` that exists; None if there is none."""
    return next((root / name for name in names if (root / name).is_dir()), None)


def clean_images(source: Path, inside: Sequence[str], instructions: str) -> list[ExampleFiles]:
    """The clean images directly in `source`, or else in the first of the folders `inside` it that has any.

    Raises `UserError` with the download instructions when there are none.
    """
    for folder in (source, *(source / name for name in inside)):
        try:
            list_images(folder)
        except UserError:
            continue
        return list_examples(folder, paired=False)
    raise UserError(f"no images in '{source}' or {', '.join(inside)} there; {instructions}")


def pair_words(folder: Path, input_word: str, target_word: str, prefix: str = "") -> list[ExampleFiles]:
    """Pairs the images of one folder whose names differ in a word, as `1_NOISY_a` and `1_GT_a`, in natural order.

    Images with neither word are left out. Examples are named `prefix` and the stem without the word. Raises `UserError`
    when the folder is missing, there are no such images, or one has no partner.
    """
    paths = list_images(folder)
    inputs, targets = ([path for path in paths if word in path.stem] for word in (input_word, target_word))
    if not inputs or not targets:
        raise UserError(f"no images named *{target_word if inputs else input_word}* in '{folder}'")
    pairs = pair_paths(inputs, targets, lambda stem: stem.replace(input_word, target_word))
    return [replace(files, name=prefix + files.name.replace(input_word, "")) for files in pairs]


def pair_shared(inputs: Sequence[Path], targets: Path) -> list[ExampleFiles]:
    """Like `pair_folders`, for a folder `targets` that holds the partners of other images as well."""
    stems, shared = {path.stem for path in inputs}, list_images(targets)
    return pair_paths(inputs, [path for path in shared if path.stem in stems] or shared)


def pair_in_order(inputs: Sequence[Path], targets: Sequence[Path]) -> list[ExampleFiles]:
    """Pairs images of equal names; unless most have an equal, the first with the first and so on.

    Raises `UserError` when an image has no partner or the numbers of images differ.
    """
    if 2 * len({path.stem for path in inputs} & {path.stem for path in targets}) > len(inputs):
        return pair_paths(inputs, targets)
    if len(inputs) != len(targets):
        raise UserError(
            f"'{inputs[0].parent}' holds {len(inputs)} images and '{targets[0].parent}' {len(targets)}, which are "
            "paired in their order; complete them"
        )
    check_unique_stems(list(inputs))
    return [pair(*paths) for paths in zip(inputs, targets, strict=True)]


def find_below(source: Path, name: str) -> Path | None:
    """The file or folder `name` in `source`, or else in a folder directly in it; None if there is none."""
    below = (path for path in sorted(source.glob(f"*/{name}")) if not path.parent.name.startswith("."))
    return source / name if (source / name).exists() else next(below, None)


def own_folder(source: Path, paired: bool) -> dict[str, list[ExampleFiles]]:
    """The examples in `source/train` and `source/test`, as far as they exist; else those in `source`, for training."""
    splits = {split: source / split for split in ("train", "test") if (source / split).is_dir()} or {"train": source}
    return {split: list_examples(folder, paired) for split, folder in splits.items()}
