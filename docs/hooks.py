"""What MkDocs does not do by itself: pages of files that lie outside of `docs/`, and the links to them.

`configs/NAME.py` becomes the page `configs/NAME.md`, and a model card `gamax/pretrained/NAME.md` the page
`model_cards/NAME.md`, which `model_cards.md` lists. A link to any other file outside of `docs/` becomes its name.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
CONFIGS, CARDS = "configs", "gamax/pretrained"
_LINK = re.compile(r"\[([^\]\n]*)\]\(([^)\s#:]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of configurations and model cards."""
    for path in sorted((ROOT / CONFIGS).glob("*.py")):
        text = f"# {path.name}\n\n```python\n{path.read_text()}```\n"
        files.append(File.generated(config, f"configs/{path.stem}.md", content=text))
    for path in _cards():
        files.append(File.generated(config, f"model_cards/{path.name}", content=path.read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lists the model cards on their page and turns links to files of the repository into links of the site."""
    uri = page.file.src_uri
    if uri == "model_cards.md":
        markdown += "\n".join(["", *(f"- [{path.stem}](model_cards/{path.name})" for path in _cards()), ""])
    source = _source(uri)

    def replace(link: re.Match[str]) -> str:
        text, target, anchor = link.groups()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if not (ROOT / path).exists():
            return link[0]
        on_site = _on_site(path)
        if on_site is None:
            return text
        return f"[{text}]({posixpath.relpath(on_site, posixpath.dirname(uri) or '.')}{anchor or ''})"

    return _LINK.sub(replace, markdown)


def _cards() -> list[Path]:
    return sorted((ROOT / CARDS).glob("*.md"))


def _source(uri: str) -> str:
    """The file in the repository that a page of the site is made of."""
    folder, _, name = uri.rpartition("/")
    if folder == "configs":
        return f"{CONFIGS}/{Path(name).stem}.py"
    return f"{CARDS}/{name}" if folder == "model_cards" else f"docs/{uri}"


def _on_site(path: str) -> str | None:
    """Where the site has a file or folder of the repository; None if it has not."""
    folder, _, name = path.rpartition("/")
    if folder == CONFIGS and name.endswith(".py"):
        return f"configs/{Path(name).stem}.md"
    if folder == CARDS and name.endswith(".md"):
        return f"model_cards/{name}"
    if path == "README.md":
        return "index.md"
    if not path.startswith("docs/") or path.endswith(".py"):
        return None
    on_site = path.removeprefix("docs/")
    if not (ROOT / path).is_dir():
        return on_site
    return f"{on_site}/index.md" if (ROOT / path / "index.md").is_file() else None
