"""The page `docs/datasets.md`, made from the builders: `gamax data list --output docs/datasets.md`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from gamax.config import load
from gamax.data.builders import BUILDERS
from gamax.data.builders.core import ImageSetBuilder
from gamax.errors import UserError
from gamax.evaluation.protocols import PROTOCOLS

_INTRODUCTION = [
    "# Each dataset",
    "",
    "Written by `gamax data list --output docs/datasets.md`; a test fails where it no longer says what the code says.",
    "",
    "Nothing is downloaded for you: most sets may not be passed on. Get a set from its homepage, lay its files as its "
    "section says into a folder `DIR`, check it, train. `train.py` prepares the set at its first start; what that does "
    "is in [data](data.md). `TEST` is the folder of a test set, where a training set has none of its own; `RUN` is a "
    "run folder. What a protocol scores is in [evaluation](evaluation.md), what a recipe is in [recipes](recipes.md).",
    "",
]
# Of photographs without a degraded side, which training degrades itself.
_CLEAN = ("any synthetic degradation", "Gaussian denoising")


def datasets_page(configs: Path) -> str:
    """The page as Markdown.

    Args:
        configs: the folder with the configuration files that come with gamax; their datasets are read from them.

    Raises:
        UserError: if there is no such folder.
    """
    if not configs.is_dir():
        raise UserError(f"no folder '{configs}' with the recipes that the page names; run this in a checkout of gamax")
    return "\n".join(_lines(_recipes(configs))) + "\n"


def _recipes(configs: Path) -> dict[str, list[str]]:
    """The names of the configuration files for each dataset, those with the fewest steps first."""
    experiments = {path.stem: load(path) for path in sorted(configs.glob("*.py"))}
    recipes: dict[str, list[str]] = {}
    for name in sorted(experiments, key=lambda name: (experiments[name].training.steps, name)):
        recipes.setdefault(experiments[name].data.dataset, []).append(name)
    return recipes


def _lines(recipes: Mapping[str, Sequence[str]]) -> Iterator[str]:
    yield from _INTRODUCTION
    yield "| dataset | task | published examples | protocols |"
    yield "| --- | --- | --- | --- |"
    for name, builder in BUILDERS.items():
        yield f"| [{name}](#{name}) | {builder.TASK} | {published_counts(builder)} | {_code(_protocols(name))} |"
    yield ""
    for name, builder in BUILDERS.items():
        yield from _section(name, builder, recipes.get(name, []))


def _section(name: str, builder: type[ImageSetBuilder], recipes: Sequence[str]) -> Iterator[str]:
    yield f"## {name}"
    yield ""
    # A list needs an empty line before it.
    yield _escape(inspect.cleandoc(builder.__doc__ or "")).replace(":\n- ", ":\n\n- ")
    yield ""
    facts = {
        "task": builder.TASK,
        "published": published_counts(builder),
        "licence": builder.LICENSE,
        "homepage": f"<{builder.HOMEPAGE}>" if builder.HOMEPAGE else "",
        "files": _escape(builder.MANUAL_DOWNLOAD_INSTRUCTIONS),
        "recipes": ", ".join(f"[{recipe}](../configs/{recipe}.py)" for recipe in recipes),
        "protocols": _code(_protocols(name)),
    }
    for label, text in facts.items():
        if text:
            yield f"- *{label}*: {text}"
    yield ""
    if builder.COUNTS and "train" not in builder.COUNTS:
        yield "It has no part for training."
        yield ""
    yield "```bash"
    yield from _commands(name, builder, recipes)
    yield "```"
    yield ""


def _commands(name: str, builder: type[ImageSetBuilder], recipes: Sequence[str]) -> Iterator[str]:
    on_this_machine = builder.default_source() is not None
    source = "" if on_this_machine else " --data.source DIR"
    if not on_this_machine:
        # Folders of one's own have no layout of their authors to name.
        yield f"gamax data check DIR --dataset {name}" if builder.COUNTS else "gamax data check DIR"
    if not builder.COUNTS or "train" in builder.COUNTS:
        test = "" if not builder.COUNTS or {"test", "validation"} & set(builder.COUNTS) else " --evaluation.data TEST"
        general = "quickstart" if builder.TASK in _CLEAN else "paired"
        recipe = general if general in recipes or not recipes else recipes[0]
        start = f"configs/{recipe}.py" if recipe in recipes else f"configs/{recipe}.py --data.dataset {name}"
        yield f"python train.py {start}{source}{test}"
    if protocols := _protocols(name):
        yield f"python eval.py RUN --protocol {protocols[0]} --data DIR"


def _protocols(name: str) -> list[str]:
    return [
        protocol.name
        for protocol in PROTOCOLS.values()
        if any(benchmark_set.dataset == name for benchmark_set in protocol.datasets)
    ]


def published_counts(builder: type[ImageSetBuilder]) -> str:
    """How many examples each part has, as published."""
    return ", ".join(f"{split} {count:,}" for split, count in builder.COUNTS.items())


def _code(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _escape(text: str) -> str:
    """Keeps Markdown from taking patterns of file names such as *.png for emphasis; in code it does not."""
    parts = text.split("`")
    return "`".join(part if index % 2 else part.replace("*", r"\*") for index, part in enumerate(parts))
