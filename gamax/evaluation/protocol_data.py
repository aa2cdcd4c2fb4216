"""The test images of a protocol: in the layouts that authors distribute, or in a plain folder."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from gamax.console import say
from gamax.data.datasets import LazyExamples
from gamax.data.examples import Example, ExampleFiles, list_examples, read_example
from gamax.data.images import list_images
from gamax.data.prior import with_named_prior
from gamax.errors import UserError
from gamax.evaluation.protocols import BenchmarkSet, Protocol


def protocol_examples(protocol: Protocol, folder: str | Path, prior: str | Path | None = None) -> Sequence[Example]:
    """Lists the examples of a protocol in a folder; each is read when it is asked for.

    `input/` and `target/` with images of equal names (for protocols that add noise: clean images directly in the
    folder) are one set, named as the folder. Otherwise every set of the protocol is taken that lies in the folder in a
    layout of its builder; what is missing, or is there in another number than published, is said. Examples have the
    label `set` where the protocol has several, and `scene` where several images of a set show one.

    Args:
        protocol: the rules.
        folder: where the images are.
        prior: folder of `gamax data prior` with the diffusion priors of their inputs, for a network that takes them.

    Raises:
        UserError: if there is neither, a partner or a prior is missing, or it cannot be told which set it is.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"no folder '{folder}'")
    # A link may have the name of the set, so it is not followed.
    found = _find_sets(protocol, Path(os.path.abspath(folder)))
    _note_differences(protocol, folder, found)
    if prior is not None:
        priors = Path(prior).expanduser()
        datasets = {part.name: part.dataset for part in protocol.datasets}
        found = {
            name: with_named_prior(examples, priors, folder, datasets.get(name)) for name, examples in found.items()
        }
    files = [(name, index, example) for name, examples in found.items() for index, example in enumerate(examples)]

    def read(position: int) -> Example:
        name, index, example = files[position]
        return {**read_example(example), **_labels(protocol, name, example.name, index, len(found[name]))}

    return LazyExamples(len(files), read)


def label_examples(protocol: Protocol, dataset: str, examples: Sequence[Example]) -> Sequence[Example]:
    """The examples of a prepared dataset with the labels that `protocol_examples` would give them."""
    part = next((part for part in protocol.datasets if part.dataset == dataset), None)
    if part is None:
        return examples

    def read(index: int) -> Example:
        example = examples[index]
        return {**example, **_labels(protocol, part.name, example["name"], index, len(examples))}

    return LazyExamples(len(examples), read)


def _labels(protocol: Protocol, set_name: str, name: str, index: int, count: int) -> dict[str, str]:
    """`set` of an example, where the protocol has several, and `scene`, where several images show one."""
    parts = protocol.datasets
    # A complete set is known by its number of images, whatever its folder is called.
    complete = len(parts) == 1 and count == parts[0].images
    part = next((part for part in parts if complete or part.name == set_name), None)
    labels = {"set": set_name} if len(protocol.datasets) > 1 else {}
    if part and protocol.indoor_positions and count == part.images:
        labels["set"] = "indoor" if index in protocol.indoor_positions else "outdoor"
    if part and part.scene and (match := re.match(part.scene, name)):
        labels["scene"] = match[1]
    return labels


def _find_sets(protocol: Protocol, folder: Path) -> Mapping[str, Sequence[ExampleFiles]]:
    """The sets in a folder by their names."""
    pairs = _pairs(protocol, folder)
    if pairs:
        return {_plain_name(protocol, folder): pairs}
    published = _published_sets(protocol, folder)
    of_pairs = {name: examples for name, examples in published.items() if "input" in examples[0].images}
    if of_pairs:
        # Before loose images, which may be the clean side of a published set.
        return _told_apart(protocol, folder, of_pairs)
    loose = _loose_images(protocol, folder)
    if loose:
        return {_plain_name(protocol, folder): loose}
    if not published:
        raise UserError(_describe_missing(protocol, folder))
    return _told_apart(protocol, folder, published)


def _pairs(protocol: Protocol, folder: Path) -> Sequence[ExampleFiles]:
    """The pairs of a plain folder; none if it is no such folder, or the protocol takes none."""
    if protocol.views == 2 or "pairs" not in protocol.inputs:
        return ()
    there = (folder / "input").is_dir() and (folder / "target").is_dir()
    return list_examples(folder, paired=True) if there or not protocol.datasets else ()


def _loose_images(protocol: Protocol, folder: Path) -> Sequence[ExampleFiles]:
    """The images directly in a folder, if the protocol takes clean ones."""
    if "noise" not in protocol.inputs:
        return ()
    try:
        list_images(folder)
    except UserError:
        # None directly in it.
        return ()
    return list_examples(folder, paired=False)


def _plain_name(protocol: Protocol, folder: Path) -> str:
    """The set whose name the folder has, else the name of the folder."""
    return next((part.name for part in protocol.datasets if _is_named(part, folder.name)), folder.name)


def _is_named(part: BenchmarkSet, folder: str) -> bool:
    return _letters(folder) in (_letters(part.name), _letters(part.dataset))


def _letters(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


def _published_sets(protocol: Protocol, folder: Path) -> dict[str, Sequence[ExampleFiles]]:
    from gamax.data.builders import BUILDERS

    found: dict[str, Sequence[ExampleFiles]] = {}
    for part in protocol.datasets:
        builder = BUILDERS[part.dataset]
        try:
            splits = builder.examples(folder)
        except UserError as error:
            # Builders say what to download where their set is absent; any other error is of a set that is there.
            if builder.MANUAL_DOWNLOAD_INSTRUCTIONS not in str(error):
                raise
            continue
        if part.split in splits:
            found[part.name] = splits[part.split]
    return found


def _told_apart(
    protocol: Protocol, folder: Path, found: dict[str, Sequence[ExampleFiles]]
) -> dict[str, Sequence[ExampleFiles]]:
    """The sets without those that are the same files; the name of the folder says which they are."""
    same: dict[frozenset[Path], list[str]] = {}
    for name, examples in found.items():
        same.setdefault(frozenset(files.path for files in examples), []).append(name)
    chosen = []
    for names in same.values():
        named = [part.name for part in protocol.datasets if part.name in names and _is_named(part, folder.name)]
        if len(names) > 1 and not named:
            raise UserError(
                f"'{folder}' may hold {' or '.join(names)}: give it the name of the one that it is, or name the folder "
                "around it"
            )
        chosen.append((named or names)[0])
    return {name: found[name] for name in chosen}


def _describe_missing(protocol: Protocol, folder: Path) -> str:
    from gamax.data.builders import BUILDERS

    ways = []
    if protocol.inputs.startswith("pairs") and protocol.views == 1:
        ways.append("input/ and target/ with images of equal names")
    if "noise" in protocol.inputs:
        ways.append("clean images")
    datasets = [part.dataset for part in protocol.datasets]
    if len(datasets) == 1:
        ways.append(BUILDERS[datasets[0]].MANUAL_DOWNLOAD_INSTRUCTIONS)
    else:
        ways.append(f"one of the layouts that `gamax data info NAME` describes for {', '.join(datasets)}")
    return f"no images for protocol {protocol.name} in '{folder}': it takes {', or else '.join(ways)}"


def _note_differences(protocol: Protocol, folder: Path, found: Mapping[str, Sequence[ExampleFiles]]) -> None:
    parts = {part.name: part for part in protocol.datasets}
    for name in found:
        if name in parts and len(found[name]) != parts[name].images:
            say(f"note: {len(found[name]):,} of the {parts[name].images:,} published images of {name} are here")
    missing = [name for name in parts if name not in found]
    if missing and len(found) > 1:
        say(f"note: without {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not in '{folder}'")
