"""Makes the tables of docs/results/restoration.md and equal_budget.md from the JSON files beside them.

    python docs/make_results.py

Also the plot docs/images/results_denoise.png, and what stands between the comments `results:restoration` and `/results`
in README.md and docs/index.md. Nothing of that is written by hand. The JSON files come from `docs/train_pretrained.py`
(weights), `docs/measure_baselines.py` (filters) and `docs/compare_equal_budget.py`.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gamax.console import say
from gamax.errors import exit_on_user_error
from gamax.files import replace_atomically

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs/results"
START, END = "<!-- results:restoration -->", "<!-- /results -->"

Record = Mapping[str, Any]
Results = Mapping[tuple[str, str, str], Record]
"""Result files by method, protocol and set, as their names say."""


@dataclass(frozen=True)
class Task:
    """A degradation, the weights that are shipped for it, and where they are scored."""

    name: str
    title: str
    weights: tuple[str, ...]
    """First those that are shipped for it."""
    protocols: tuple[str, ...]
    sets: tuple[str, ...]
    filters: tuple[str, ...]
    """Those of `METHODS` that are meant for it."""
    text: str


AGAINST_NOISE = ("wiener", "total-variation", "wavelet", "nl-means", "bm3d")
AGAINST_RAIN = ("median", "bilateral", "total-variation-rain")
TASKS = (
    Task(
        *("gaussian", "Gaussian noise in colour", ("denoise-gaussian", "denoise-photo")),
        ("gauss-color-15", "gauss-color-25", "gauss-color-50"),
        *(("cbsd68", "kodak24"), AGAINST_NOISE),
        "Noise of the named sigma (of 255), neither clipped nor rounded. The filters are told the sigma; the network "
        "is not, and takes one set of weights for all three. Kodak24 is the 500x500 version.",
    ),
    Task(
        *("jpeg", "Noise in images stored as JPEG", ("denoise-photo", "denoise-gaussian")),
        *(("gauss-jpeg-color-25",), ("cbsd68", "kodak24"), AGAINST_NOISE),
        "The noise of sigma 25, rounded to 8 bits and stored as JPEG of quality 90 with colour at half the resolution, "
        "as most JPEG files have it. The filters are told sigma 25.",
    ),
    Task(
        *("real", "Real noise of cameras", ("denoise-real", "denoise-photo", "denoise-gaussian")),
        *(("polyu",), ("polyu",), AGAINST_NOISE),
        "The crops of five scenes of PolyU that no weights were trained on; the other scenes are for training (a plush "
        "toy of one of them also stands in two of these). Papers "
        "score all 100 crops, so none of their figures stands beside these. Nobody is told a sigma: the filters take "
        "one for all images, the best on 20 training pairs.",
    ),
    Task(
        *("rain", "Rain", ("derain",), ("rain800-rgb",), ("rain800",), AGAINST_RAIN),
        "The whole synthetic test set of Rain800 in RGB, 100 pairs of 76 different pictures. No "
        "library offers a classical filter against rain; these "
        "smooth, with the strength that was best on 20 training pairs.",
    ),
)
SETS = {
    **{"cbsd68": "CBSD68", "kodak24": "Kodak24", "polyu": "PolyU", "rain800": "Rain800"},
    **{"test100": "Test100"},
}
METHODS = {
    "input": "input, rounded to 8 bits",
    "median": "median",
    "bilateral": "bilateral filter",
    "total-variation-rain": "total variation, set for rain",
    "wiener": "local Wiener filter",
    "total-variation": "total variation",
    "wavelet": "wavelets, BayesShrink",
    "nl-means": "non-local means",
    "bm3d": "CBM3D",
}
"""Classical methods in the order of the tables, by the name in the result files."""


def read_results(folder: Path) -> dict[tuple[str, str, str], Record]:
    """The result files METHOD.PROTOCOL.SET.json of a folder."""
    found = {}
    for path in sorted(folder.glob("*.*.*.json")):
        method, protocol, name = path.name.removesuffix(".json").split(".")
        found[method, protocol, name] = json.loads(path.read_text())
    return found


def methods_of(task: Task) -> list[str]:
    """Everything that may have a row in the tables of a task."""
    return ["input", *task.filters, *task.weights]


def label(method: str) -> str:
    """A method in the first column; networks of gamax are bold."""
    if method in METHODS:
        return METHODS[method]
    return f"**`{method}`**"


def table(rows: Sequence[Sequence[str]], right: int = 1) -> list[str]:
    """Lines of a Markdown table; the first row is the head, the columns from `right` on are numbers."""
    rule = ["---" if column < right else "---:" for column in range(len(rows[0]))]
    return [f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:])]


def task_lines(task: Task, results: Results, seconds: Record | None) -> list[str]:
    """The section of a task."""
    lines = [f"## {task.title}", "", task.text, ""]
    for name in task.sets:
        present = [method for method in methods_of(task) if any((method, p, name) in results for p in task.protocols)]
        if not present:
            lines += [f"{SETS[name]}: not measured yet.", ""]
            continue
        record = next(
            results[method, p, name] for method in present for p in task.protocols if (method, p, name) in results
        )
        lines += [f"### {SETS[name]}, {describe_images(record, name)}", ""]
        head = ["method"]
        for protocol in task.protocols:
            head += [f"`{protocol}`, PSNR", "SSIM"]
        rows = [head + (["seconds a megapixel"] if seconds else [])]
        for method in present:
            row = [label(method)]
            for protocol in task.protocols:
                found = results.get((method, protocol, name))
                row += [f"{found['psnr']:.2f} dB", f"{found['ssim']:.4f}"] if found else ["", ""]
            if seconds:
                timed = seconds["methods"].get(method)
                row.append(f"{timed['seconds_per_megapixel']:.3g}" if timed else "")
            rows.append(row)
        lines += [*table(rows), ""]
        if missing := [METHODS[method] for method in task.filters if method not in present]:
            lines += [f"Not run: {', '.join(missing)}.", ""]
        inputs = [(p, results.get(("input", p, name))) for p in task.protocols]
        unrounded = [f"{found['psnr_input']:.2f} dB (`{p}`)" for p, found in inputs if found]
        if unrounded and task.name == "gaussian":
            lines += [f"The input before rounding and clipping: {', '.join(unrounded)}.", ""]
    return lines


def describe_images(record: Record, name: str) -> str:
    """How many images were scored, of how many that are published."""
    published = [part["images"] for part in record["protocol_details"]["datasets"] if part["dataset"] == name]
    count = record["images"]
    return f"{count} of the {published[0]} published" if published and published[0] != count else f"{count} images"


def published_lines(published: Record) -> list[str]:
    """The section of figures from papers."""
    lines = [
        "## Published numbers",
        "",
        "Of papers and of their authors' weights, not measured here. What is known to differ from the protocol above "
        "is in the last column; training sets and sizes of networks differ as well. *Unconfirmed*: "
        "written down without having seen the table itself, or one that quotes it.",
        "",
    ]
    groups: dict[tuple[str, ...], dict[str, float]] = {}
    for row in published["rows"]:
        known = {True: "yes", False: "no", None: ""}[row["sigma_known"]]
        status = "" if row["confirmed"] else "; *unconfirmed*"
        key = (row["task"], row["set"], row["method"], known, row["source"] + status, row["difference"] or "")
        groups.setdefault(key, {})[row["protocol"]] = row["psnr"]
    gaussian = TASKS[0]
    head = ["set", "method", "told sigma", *(f"`{name}`" for name in gaussian.protocols), "source", "difference"]
    rows = [head]
    for (task, name, method, known, source, difference), values in groups.items():
        if task == gaussian.name:
            cells = [f"{values[p]:.2f} dB" if p in values else "" for p in gaussian.protocols]
            rows.append([SETS[name], method, known, *cells, source, difference])
    lines += [*table(rows, right=len(head)), ""]
    rows = [["set", "method", "PSNR of luma", "source", "difference from `rain800-rgb`"]]
    for (task, name, method, _, source, difference), values in groups.items():
        if task == "rain":
            rows.append([SETS[name], method, f"{next(iter(values.values())):.2f} dB", source, difference])
    return [*lines, *table(rows, right=len(rows[0])), ""]


def baseline_lines(results: Results) -> list[str]:
    """The section that says what the filters are."""
    rows = [["method", "function", "parameters", "sigma on PolyU", "versions"]]
    for method in METHODS:
        records = [record for (name, _, _), record in results.items() if name == method]
        if method == "input" or not records:
            continue
        inference = records[0]["inference"]
        parameters = ", ".join(f"{name} {value}" for name, value in inference["parameters"].items())
        level = next(
            (r["inference"]["sigma"] for r in records if r["inference"].get("sigma_from") == "training images"), None
        )
        names = ("scipy", "scikit-image", "PyWavelets", "bm3d", "opencv-python-headless")
        versions = ", ".join(f"{n} {records[0]['versions'][n]}" for n in names if n in records[0]["versions"])
        rows.append(
            [METHODS[method], f"`{inference['function']}`", parameters, "" if level is None else f"{level:g}", versions]
        )
    if len(rows) == 1:
        return []
    return [
        "## The filters",
        "",
        "One strength of each was tuned on 20 training images (BSDS500 with noise of sigma 25, PolyU, Rain800), never "
        "on a test set; the rest of the parameters were fixed beforehand"
        + (", and CBM3D runs as it is" if any(method == "bm3d" for method, _, _ in results) else "")
        + ". The strength of sigma 25 was kept for 15 and 50.",
        "",
        *table(rows, right=len(rows[0])),
        "",
    ]


def measured_lines(results: Results, seconds: Record | None) -> list[str]:
    """How it was measured, and how to do it again."""
    commits = sorted({record["environment"].get("gamax_commit") or "unknown" for record in results.values()})
    lines = [
        "## How it was measured",
        "",
        "Every row is a file in [restoration/](restoration/), with the whole protocol, a row for each image, versions, "
        "and for weights their SHA-256. PSNR and SSIM are means over the images, on RGB of 8 bits "
        "([protocols](../evaluation.md)).",
        "",
    ]
    if seconds:
        lines += [
            f"Seconds: {seconds['image']}; median of {seconds['repeats']} calls on {seconds['cores']} core(s) of "
            f"{seconds['environment']['platform']}, load {seconds['load_average']:.1f}, compilation not counted.",
            "",
        ]
    names = ", ".join(f"`{name}`" for name in commits)
    lines += [f"Commits: {names}.", "", "```bash"] if commits else ["```bash"]
    return [
        *lines,
        "python docs/stage_test_data.py DATA STAGED",
        *(
            f"python docs/measure_baselines.py score {protocol} --data {folder_of(name)} --set {name}"
            for task in TASKS
            for protocol in task.protocols
            for name in task.sets
        ),
        "python docs/measure_baselines.py seconds",
        "python docs/train_pretrained.py DATA STAGED",
        "python docs/make_results.py",
        "```",
    ]


def folder_of(name: str) -> str:
    """Where `docs/stage_test_data.py` and the photographs have a test set."""
    return f"STAGED/{name}/test" if name in ("polyu", "rain800") else f"DATA/{name}"


def restoration_page(results_folder: Path = RESULTS) -> str:
    """The text of restoration.md."""
    results = read_results(results_folder / "restoration")
    seconds = read_if_there(results_folder / "restoration/seconds.json")
    lines = [
        "# Restoration: shipped weights and classical filters",
        "",
        "Made by `python docs/make_results.py` from the files in [restoration/](restoration/). Bold: weights that come "
        "with gamax. All others are filters of other libraries, scored by the same code.",
        "",
        "![PSNR of every method on CBSD68](../images/results_denoise.png)",
        "",
    ]
    for task in TASKS:
        lines += task_lines(task, results, seconds)
    lines += published_lines(json.loads((results_folder / "published.json").read_text()))
    lines += [*baseline_lines(results), *measured_lines(results, seconds)]
    return "\n".join(lines) + "\n"


def equal_budget_page(record: Record) -> str:
    """The text of equal_budget.md."""
    settings, budget = record["settings"], record["budget"]
    networks = record["networks"]
    crop = settings["crop"]
    first = next(iter(networks.values()))["samples"]
    lines = [
        "# Equal budgets: GAMA-IR, NAFNet, Restormer and UNet",
        "",
        "Made by `python docs/make_results.py` from [equal_budget.json](equal_budget.json), which "
        f"`{record['environment']['command']}` wrote.",
        "",
        f"Four networks of about 1 G multiply-adds at {settings['latency_size']} (those of `gamax lab landscape`), "
        f"each trained from random parameters on {settings['squares']:,} squares of the 400 photographs of BSDS500 "
        f"(train and test), noise of sigma {settings['sigma'][0]:g} to {settings['sigma'][1]:g}, in steps of "
        f"{settings['batch_size']} crops of {crop}x{crop}, with the PSNR loss and a learning rate from "
        f"{settings['learning_rate']:g} down a cosine. Scored on the {settings['test_images']} images of CBSD68 under "
        f"`{record['protocol']}`; the input has {first['psnr_input']:.2f} dB. Device: {record['device']}. "
        f"One learning rate does not suit all networks equally, these are short "
        f"trainings of small networks, and each is one run (seed {settings['seed']}): small differences say nothing.",
        "",
    ]
    titles = {
        "samples": f"The same number of crops, {budget['samples']:,}",
        "seconds": f"About the same time, {budget['seconds']:g} s of training",
    }
    for key, title in titles.items():
        rows = [["network", "PSNR", "SSIM", "crops", "steps", "seconds"]]
        for name, row in sorted(networks.items(), key=lambda item: -item[1][key]["psnr"]):
            got = row[key]
            rows.append(
                [
                    f"`{name}`",
                    *(f"{got['psnr']:.2f} dB", f"{got['ssim']:.4f}"),
                    *(f"{got['samples']:,}", f"{got['steps']:,}", f"{got['seconds']:.1f}"),
                ]
            )
        lines += [f"## {title}", "", *table(rows), ""]
    rows = [["network", "parameters", "multiply-adds", "latency", "p10 to p90", "memory"]]
    for name, row in networks.items():
        cost = row["cost"]
        if cost["failure"]:
            rows.append([f"`{name}`", "", "", cost["failure"], "", ""])
            continue
        rows.append(
            [
                f"`{name}`",
                *(f"{cost['parameters']:,}", f"{cost['multiply_adds'] / 1e9:.2f} G"),
                f"{cost['latency_ms_median']:.1f} ms",
                f"{cost['latency_ms_p10']:.1f} to {cost['latency_ms_p90']:.1f}",
                f"{cost['program_bytes'] / 1e6:.1f} MB",
            ]
        )
    lines += [
        f"## What they cost at {settings['latency_size']}",
        "",
        *table(rows),
        "",
        f"Latency: one image, float32, on the same core(s). Memory: {settings['memory']}. "
        f"gamax {record['versions']['gamax']}, jax {record['versions']['jax']}, "
        f"commit `{record['environment']['gamax_commit'] or 'unknown'}`.",
    ]
    return "\n".join(lines) + "\n"


def summary_block(link: str, results_folder: Path = RESULTS) -> str:
    """What stands between the comments in README.md and docs/index.md: input, best filter, shipped weights."""
    results = read_results(results_folder / "restoration")
    rows = [["test set", "protocol", "input", "best classical filter", "gamax", "weights"]]
    for task in TASKS:
        # The first set stands for the task.
        name = task.sets[0]
        for protocol in task.protocols:
            ours = results.get((task.weights[0], protocol, name))
            if ours is None:
                continue
            before = results.get(("input", protocol, name), {}).get("psnr", ours["psnr_input"])
            filters = {m: results[m, protocol, name]["psnr"] for m in task.filters if (m, protocol, name) in results}
            best = max(filters, key=lambda method: filters[method], default=None)
            not_run = "".join(f"; {METHODS[method]} not run" for method in task.filters if method not in filters)
            classical = f"{filters[best]:.2f} dB ({METHODS[best]}{not_run})" if best else ""
            count = describe_images(ours, name)
            rows.append(
                [
                    *(f"{SETS[name]}, {count}", f"`{protocol}`", f"{before:.2f} dB", classical),
                    *(f"**{ours['psnr']:.2f} dB**", f"`{task.weights[0]}`"),
                ]
            )
    text = "\n".join(table(rows, right=len(rows[0]))) if len(rows) > 1 else "The shipped weights are not measured yet."
    return f"{START}\n{text}\n\nMore sets and filters, and what papers say: [restoration]({link}).\n{END}"


def with_block(text: str, block: str) -> str:
    """A page with that block in the place of the one it has; as it is without the two comments."""
    return re.sub(f"{re.escape(START)}.*?{re.escape(END)}", lambda _: block, text, flags=re.DOTALL)


def pages(root: Path = ROOT) -> dict[Path, str]:
    """The text of every file that is made, whole or in part, from the result files."""
    results = root / "docs/results"
    made = {results / "restoration.md": restoration_page(results)}
    if (record := read_if_there(results / "equal_budget.json")) is not None:
        made[results / "equal_budget.md"] = equal_budget_page(record)
    for path, link in (
        (root / "README.md", "docs/results/restoration.md"),
        (root / "docs/index.md", "results/restoration.md"),
    ):
        if path.exists() and START in (text := path.read_text()):
            made[path] = with_block(text, summary_block(link, results))
    return made


def read_if_there(path: Path) -> Any:
    """A JSON file, or None."""
    return json.loads(path.read_text()) if path.exists() else None


def plotted(results: Results) -> str:
    """What the plot shows, as text that stands in its file."""
    task, name = TASKS[0], "cbsd68"
    rows = [(m, p, results.get((m, p, name))) for m in methods_of(task) for p in task.protocols]
    return ", ".join(f"{method} {protocol} {found['psnr']:.2f}" for method, protocol, found in rows if found)


def draw(results: Results) -> bytes:
    """A PNG: PSNR of every method on CBSD68, a panel for each sigma."""
    import io

    from matplotlib.figure import Figure

    from gamax.benchmark.plots import COLOURS

    task, name = TASKS[0], "cbsd68"
    figure = Figure((11, 3.6), dpi=110, layout="constrained")
    present = [m for m in methods_of(task) if any((m, protocol, name) in results for protocol in task.protocols)]
    for axes, protocol in zip(figure.subplots(1, len(task.protocols), sharey=True), task.protocols, strict=True):
        for place, method in enumerate(present):
            record = results.get((method, protocol, name))
            if record is None:
                continue
            ours = method not in METHODS
            style = {"color": COLOURS[1] if ours else COLOURS[0], "marker": "D" if ours else "o"}
            axes.plot(record["psnr"], place, ls="", ms=7, **style)
            axes.annotate(
                f"{record['psnr']:.2f}",
                (record["psnr"], place),
                (0, 6),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
        axes.set_title(protocol, fontsize=10)
        axes.set_xlabel("PSNR, dB")
        axes.margins(x=0.15, y=0.12)
        axes.grid(axis="x", lw=0.4)
        axes.set_yticks(range(len(present)), [label(method).replace("*", "").replace("`", "") for method in present])
        axes.invert_yaxis()
    # Shared axes would be turned as often as there are panels.
    figure.axes[0].set_ylim(len(present) - 0.4, -0.8)
    figure.suptitle("CBSD68, 68 images; blue: filters that are told sigma, orange: gamax, which is not", fontsize=10)
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None, "Description": plotted(results)})
    return content.getvalue()


def main() -> None:
    """Writes the pages and the plot."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for path, text in pages().items():
        replace_atomically(path, text.encode())
        say(f"wrote {path.relative_to(ROOT)}")
    picture = ROOT / "docs/images/results_denoise.png"
    replace_atomically(picture, draw(read_results(RESULTS / "restoration")))
    say(f"wrote {picture.relative_to(ROOT)}")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
