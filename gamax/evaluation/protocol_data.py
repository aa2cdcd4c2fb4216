"""The test images of a protocol: in the layouts that authors distribute, or in a plain folder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from gamax.console import say
from gamax.data.datasets import LazyExamples
from gamax.data.examples import Example, ExampleFiles, list_examples, read_example
from gamax.data.images import list_images
from gamax.errors import UserError
from gamax.evaluation.protocols import BenchmarkSet, Protocol


def protocol_examples(protocol: Protocol, folder: str | Path) -> Sequence[Example]:
    """Lists the examples of a protocol in a folder; each is read when it is asked for.

    `input/` and `target/` with images of equal names (for protocols that add noise: clean images directly in the
    folder) are one set, named as the folder. Otherwise every set of the protocol is taken that lies in the folder in a
    layout of its builder; what is missing, or is there in another number than published, is said.

    Raises:
        UserError: if there is neither, a partner is missing, or it cannot be told which set it is.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"no folder '{folder}'")
    plain = _plain_examples(protocol, folder)
    found = {_plain_name(protocol, folder): plain} if plain else _published_sets(protocol, folder)
    _note_differences(protocol, folder, found)
    files = [example for examples in found.values() for example in examples]
    names = [name for name, examples in found.items() for _ in examples]
    sets = _rooms(protocol, files) or (names if len(protocol.datasets) > 1 else [None] * len(files))

    def read(index: int) -> Example:
        example = read_example(files[index], protocol.channels)
        return example if sets[index] is None else {**example, "set": sets[index]}

    return LazyExamples(len(files), read)


def _plain_examples(protocol: Protocol, folder: Path) -> Sequence[ExampleFiles]:
    """The pairs or clean images of a plain folder; none if it is no such folder."""
    if protocol.views == 2 or protocol.inputs == "inputs only":
        return ()
    paired = (folder / "input").is_dir() and (folder / "target").is_dir()
    if protocol.inputs != "noise" and (paired or not protocol.datasets):
        return list_examples(folder, paired=True)
    if protocol.inputs == "pairs":
        return ()
    try:
        list_images(folder)
    except UserError:
        # None directly in it.
        return ()
    return list_examples(folder, paired=False)


def _plain_name(protocol: Protocol, folder: Path) -> str:
    """The set whose name the folder has, else the name of the folder."""
    name = folder.resolve().name
    return next((part.name for part in protocol.datasets if _is_named(part, name)), name)


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
    if not found:
        raise UserError(_describe_missing(protocol, folder))
    return _told_apart(protocol, folder, found)


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


def _rooms(protocol: Protocol, files: Sequence[ExampleFiles]) -> list[str]:
    """`indoor` or `outdoor` for each file of a complete set whose protocol tells them apart; otherwise nothing."""
    if not protocol.indoor_positions or len(files) != protocol.datasets[0].images:
        return []
    return ["indoor" if index in protocol.indoor_positions else "outdoor" for index in range(len(files))]
