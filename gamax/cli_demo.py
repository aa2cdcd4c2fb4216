"""The verb `gamax demo`."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import tempfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from gamax.errors import UserError

if TYPE_CHECKING:
    from gamax.demo import WeightsChoice

OWN_TASK = "your own weights"
"""The task of weights that the user brings: what they were trained for is not written in them."""


@dataclasses.dataclass(frozen=True)
class Demo:
    """Opens a page on this machine where a photograph is dropped, restored, and compared before and after."""

    weights: Path | None = None
    """A run folder or weight file of your own, offered beside the weights that come with gamax."""
    port: int = 7860
    """Where the page is served, on this machine alone; 0 for any free port."""
    open_browser: bool = True
    """Open the page in the browser."""
    max_megabytes: float = 40
    """Largest file that the page takes."""
    max_megapixels: float = 40
    """Largest photograph that the page takes."""

    def run(self) -> None:
        """Carries the verb out."""
        if not 0 <= self.port <= 65535:
            raise UserError(f"--port must be from 0 to 65535, not {self.port}")
        for name in ("max_megabytes", "max_megapixels"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"--{name.replace('_', '-')} must be above 0 and finite, not {getattr(self, name):g}")
        if importlib.util.find_spec("gradio") is None:
            raise UserError("gamax demo needs gradio: pip install 'gamax[demo]'")
        version = metadata.version("gradio")
        if tuple(map(int, version.split(".")[:2])) < (6, 24):
            raise UserError(f"gamax demo needs gradio 6.24 or newer, not {version}: pip install 'gamax[demo]'")
        from gamax.demo import DemoSession, build_page, find_port, prepare_environment, serve

        port = find_port(self.port)
        choices, selected = offered_weights(self.weights)
        # `mkdtemp` lets nobody else into the folder.
        with tempfile.TemporaryDirectory(prefix="gamax-demo-") as folder:
            session = DemoSession(Path(folder).resolve(), self.max_megapixels)
            prepare_environment(os.environ, session.folder / "files")
            page = build_page(choices, session, max_megabytes=self.max_megabytes, selected=selected)
            serve(page, session, port=port, max_megabytes=self.max_megabytes, open_browser=self.open_browser)


def offered_weights(own: Path | None) -> tuple[list[WeightsChoice], str]:
    """The weights to choose from, and the name of those to begin with.

    Args:
        own: the name of weights that come with gamax, to begin with these, or a run folder or weight file to be added.

    Raises:
        UserError: if there are no weights, or the own ones do not load or need more than a photograph.
    """
    from gamax.demo import WeightsChoice
    from gamax.pretrained import PRETRAINED

    choices = [
        WeightsChoice(entry.name, entry.task, entry.summary, entry.licence, entry.path)
        for entry in PRETRAINED.values()
        if entry.path.is_file()
    ]
    names = [choice.name for choice in choices]
    selected = str(own) if own is not None else None
    # As everywhere in gamax, a path that exists counts before a name.
    if own is not None and (own.exists() or selected not in names):
        selected = str(own.absolute()) if selected in names else str(own)
        choices.insert(0, WeightsChoice(selected, OWN_TASK, _describe_own(own), "that of your own file", own))
    if not choices:
        raise UserError("no weights come with this installation: name a run folder or weight file with --weights")
    return choices, selected or choices[0].name


def _describe_own(weights: Path) -> str:
    """Loads weights once, so that what is wrong with them is said before the page opens."""
    from gamax.evaluation.network_inputs import check_inputs
    from gamax.evaluation.restorer import Restorer
    from gamax.models import count_parameters

    restorer = Restorer.from_weights(weights)
    check_inputs(weights, restorer.model, None, None)
    name, parameters = type(restorer.model).__name__, count_parameters(restorer.params)
    return f"whatever it was trained for; {name}, {parameters:,} parameters"
