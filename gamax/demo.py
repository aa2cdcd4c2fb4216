"""The page of `gamax demo`: one photograph, restored as `gamax restore` does, before and after beside each other.

Gradio draws the page and serves it. What it is given and what it may do is decided here: it listens on this machine
alone, answers no other web site, sends nothing anywhere, and keeps its files in one folder that is removed at the end.
"""

from __future__ import annotations

import html
import re
import shutil
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Shaped

from gamax.console import say
from gamax.data.images import SUFFIXES, UNREAD_SUFFIXES, read_image, to_float, to_integers, to_rgb
from gamax.data.metadata import ImageHeader, encode_with_metadata, read_header
from gamax.errors import StoppedError, UserError

if TYPE_CHECKING:
    import gradio

ADDRESS = "127.0.0.1"
"""The only address that the page is served at."""
PREVIEW_PIXELS = 4_000_000
"""Pixels up to which before and after are shown at full size."""
KEEP_SECONDS = 3600
"""How long uploaded and restored files stay while the page is open."""

_LOOPBACK_NAMES = (ADDRESS, "localhost")
_CSS = """
.gradio-container { max-width: 1280px !important; margin: 0 auto; }
footer { display: none !important; }
@media (min-width: 800px) { #before-after { min-height: 420px; } }
"""


@dataclass(frozen=True)
class WeightsChoice:
    """Weights that the page offers."""

    name: str
    task: str
    """What they do, such as `denoise`."""
    summary: str
    """What they are made for, in a phrase."""
    licence: str
    """In a phrase."""
    path: Path
    """A run folder or a weight file."""


@dataclass(frozen=True)
class DemoSession:
    """What all photographs of one run of the command share."""

    folder: Path
    """For all its files; nobody else may read it, and it is removed at the end."""
    max_megapixels: float
    at_work: threading.Lock = field(default_factory=threading.Lock)
    """Held while a photograph is restored, of which there is one at a time."""


@dataclass(frozen=True)
class RestoredPhotograph:
    """Files that the page shows and offers."""

    result: Path
    """What `gamax restore` writes."""
    before: Path
    """PNG for the screen, as large as `after`."""
    after: Path
    report: str
    """One line on size, time and weights."""


def prepare_environment(environment: MutableMapping[str, str], folder: Path) -> None:
    """Sets what Gradio reads from the environment, before it is imported.

    Variables of its own could have it listen elsewhere, share the page, or serve other folders, so none is heeded.

    Args:
        environment: of the process; changed.
        folder: for uploaded and served files.
    """
    ignored = sorted(name for name in environment if name.startswith("GRADIO_"))
    for name in ignored:
        del environment[name]
    if ignored:
        say(f"not heeded, as the page is for this machine alone: {', '.join(ignored)}")
    environment["GRADIO_ANALYTICS_ENABLED"] = "False"
    environment["GRADIO_TEMP_DIR"] = str(folder)
    # Gradio asks its own server whether it has started, which a proxy for the internet could not reach.
    direct = environment.get("no_proxy") or environment.get("NO_PROXY")
    environment["no_proxy"] = environment["NO_PROXY"] = f"{direct},{ADDRESS}" if direct else ADDRESS


def find_port(port: int) -> int:
    """The port if it is free, or any free one for 0; raises `UserError` if it is not."""
    with socket.socket() as probe:
        # As the server does: connections of one that has just ended do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ADDRESS, port))
        except OSError as error:
            raise UserError(
                f"cannot listen on port {port} ({error.strerror}): choose another with --port, or 0 for any free one"
            ) from error
        return probe.getsockname()[1]


def refuses(method: str, headers: Mapping[str, str]) -> bool:
    """Whether a request comes from, or on behalf of, another web site.

    Gradio withholds answers from other origins, but a request that changes something has then been carried out, and it
    takes any `Host`, so that a site whose name is made to point to this machine (DNS rebinding) counts as its own.

    Args:
        method: GET, POST and so on.
        headers: by name in lower case.
    """
    host = headers.get("host", "")
    if re.fullmatch(rf"({'|'.join(map(re.escape, _LOOPBACK_NAMES))})(:\d+)?", host) is None:
        return True
    if headers.get("origin", f"http://{host}") != f"http://{host}":
        return True
    # Requests without an origin, such as for a picture in another page; what is no browser does not send this.
    if headers.get("sec-fetch-site", "none") in ("same-origin", "none"):
        return False
    # A link that was followed; the page does not open in a frame.
    return (method, headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")) != ("GET", "navigate", "document")


class OwnPageOnly:
    """ASGI middleware that answers the demo's own page and no other web site."""

    def __init__(self, app: Callable[..., Awaitable[None]]):
        self.app = app

    async def __call__(
        self, scope: MutableMapping[str, Any], receive: Callable[..., Any], send: Callable[..., Any]
    ) -> None:
        """Passes a request on, or answers it with 403."""
        if scope["type"] == "http":
            headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
            if refuses(scope["method"], headers):
                start = {"status": 403, "headers": [(b"content-type", b"text/plain")]}
                await send({"type": "http.response.start", **start})
                await send({"type": "http.response.body", "body": b"gamax demo answers its own page only\n"})
                return
        await self.app(scope, receive, send)


def check_photograph(path: Path, max_megapixels: float) -> ImageHeader:
    """Reads the header of an uploaded file; pixels are decoded later.

    Raises:
        UserError: if the file, by its content, is no image that `gamax restore` reads, or one with too many pixels.
    """
    suffix = path.suffix.lower()
    if not path.exists():
        raise UserError(f"'{path.name}' is no longer here: drop it again")
    if suffix in UNREAD_SUFFIXES or suffix not in SUFFIXES:
        raise UserError(f"'{path.name}' is not of a kind that is restored: convert it to PNG, JPEG or TIFF")
    header = read_header(path)
    megapixels = header.height * header.width / 1e6
    if megapixels > max_megapixels:
        raise UserError(
            f"'{path.name}' has {header.width}x{header.height} pixels, {megapixels:.1f} million, and the page takes "
            f"{max_megapixels:g}: use gamax restore, or start gamax demo with a larger --max-megapixels"
        )
    return header


def preview_scale(height: int, width: int) -> float:
    """By how much an image of that size is made smaller for the screen; 1 if it is not."""
    return min(1.0, sqrt(PREVIEW_PIXELS / (height * width)))


def preview(image: Shaped[np.ndarray, "h w c"], header: ImageHeader) -> bytes:
    """Encodes an image for the screen.

    Args:
        image: uint8 or uint16 `[H, W, C]`, C in {1, 3, 4}; alpha is not shown.
        header: of the photograph; its colour profile is kept, or other colours than its own would be shown.

    Returns:
        A PNG of 8 bits, at most about `PREVIEW_PIXELS` large.
    """
    import cv2

    height, width = image.shape[:2]
    scale = preview_scale(height, width)
    if scale < 1:
        # Before it is converted: of a large photograph every copy counts.
        smaller = (max(1, round(scale * width)), max(1, round(scale * height)))
        image = cv2.resize(image, smaller, interpolation=cv2.INTER_AREA).reshape(smaller[1], smaller[0], -1)
    shown = to_integers(to_float(to_rgb(image) if image.shape[2] == 4 else image))
    return encode_with_metadata(shown, ".png", replace(header, exif=None))


def restore_photograph(session: DemoSession, source: Path, choice: WeightsChoice) -> RestoredPhotograph:
    """Restores one photograph as `gamax restore` does, and draws it before and after.

    The files of the photograph before are removed: the page has copies of them.

    Raises:
        UserError: if it cannot be restored.
        StoppedError: if the disk is full.
    """
    from gamax.evaluation.restore_files import restore_files
    from gamax.evaluation.restorer import compiled_programs

    with session.at_work:
        results = session.folder / "results"
        shutil.rmtree(results, ignore_errors=True)
        results.mkdir()
        header = check_photograph(source, session.max_megapixels)
        programs, start = compiled_programs(), time.monotonic()
        (result,) = restore_files([source], results / f"{source.stem}_restored{source.suffix}", choice.path)
        seconds = time.monotonic() - start
        before, after = results / "before.png", results / "after.png"
        before.write_bytes(preview(read_image(source), header))
        after.write_bytes(preview(read_image(result), header))
        report = describe_restored(header, seconds, choice.name, compiled_programs() > programs)
        return RestoredPhotograph(result, before, after, report)


def page_sentence(error: Exception, session: DemoSession) -> str:
    """The sentence of an error for the page: as HTML, as a file's name may be any letters, and without our folders."""
    folders = rf"{re.escape(str(session.folder))}/(files/[^/]+/|results/)"
    return html.escape(re.sub(folders, "", str(error)), quote=False)


def describe_size(header: ImageHeader) -> str:
    """Width, height and megapixels."""
    return f"{header.width}x{header.height} pixels ({header.height * header.width / 1e6:.2f} megapixels)"


def describe_tiling(header: ImageHeader) -> str:
    """Whether `gamax restore` takes such a photograph whole or in tiles."""
    from gamax.evaluation.restore_files import AUTO_TILE, LARGEST_WHOLE

    return f"in tiles of {AUTO_TILE} pixels" if header.height * header.width > LARGEST_WHOLE else "whole"


def describe_restored(header: ImageHeader, seconds: float, weights: str, compiled: bool) -> str:
    """One line on what was done; `compiled` says whether a program was compiled, which the next photograph saves."""
    line = f"{describe_size(header)}, restored {describe_tiling(header)} in {seconds:.1f} s with {weights}."
    if compiled:
        line += " The time includes compiling, which the next photograph of this size saves."
    scale = preview_scale(header.height, header.width)
    if scale < 1:
        line += f" Shown at {scale:.0%} of its size; the download has all pixels."
    return line


def build_page(
    choices: Sequence[WeightsChoice], session: DemoSession, *, max_megabytes: float, selected: str | None = None
) -> gradio.Blocks:
    """The page, not yet served; `prepare_environment` comes before.

    Args:
        choices: one or more, of different names.
        session: what its photographs share.
        max_megabytes: limit of uploaded files, to be named; `serve` enforces it.
        selected: name of the choice to begin with; the default is the first.
    """
    import gradio as gr

    by_name = {choice.name: choice for choice in choices}
    tasks = list(dict.fromkeys(choice.task for choice in choices))
    first = by_name[selected or choices[0].name]

    def names(task: str) -> list[tuple[str, str]]:
        return [(choice.name, choice.name) for choice in choices if choice.task == task]

    def choose_task(task: str) -> tuple[Any, str]:
        offered = names(task)
        return gr.Dropdown(choices=offered, value=offered[0][1]), describe(offered[0][1])

    def describe(name: str) -> str:
        return f"Made for {by_name[name].summary}.\n\nLicence: {by_name[name].licence}."

    def look_at(path: str) -> str:
        try:
            header = check_photograph(Path(path), session.max_megapixels)
        except UserError as error:
            raise page_error(error) from error
        return f"{describe_size(header)}, to be restored {describe_tiling(header)}."

    def forget() -> tuple[Any, ...]:
        return None, gr.DownloadButton(value=None, interactive=False), ""

    def announce(path: str | None) -> str:
        try:
            if path is None:
                raise UserError("there is no photograph yet: drop one first")
            header = check_photograph(Path(path), session.max_megapixels)
        except UserError as error:
            raise page_error(error) from error
        return f"Restoring {describe_size(header)} {describe_tiling(header)}."

    def restore(path: str, name: str) -> tuple[Any, ...]:
        try:
            restored = restore_photograph(session, Path(path), by_name[name])
        except (UserError, StoppedError) as error:
            raise page_error(error) from error
        pair = (str(restored.before), str(restored.after))
        return pair, gr.DownloadButton(value=str(restored.result), interactive=True), restored.report

    def page_error(error: Exception) -> gr.Error:
        return gr.Error(page_sentence(error, session), duration=None, print_exception=False)

    with gr.Blocks(
        title="gamax demo", analytics_enabled=False, fill_width=True, delete_cache=(KEEP_SECONDS, KEEP_SECONDS)
    ) as page:
        gr.Markdown(
            "# gamax\nDrop a photograph, choose what to do about it, and slide between before and after. "
            "The network runs on this machine, and the photograph does not leave it."
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                limits = f"up to {max_megabytes:g} MB and {session.max_megapixels:g} megapixels"
                photograph = gr.File(label=f"Photograph, {limits}", elem_id="photograph", height=170)
                size = gr.Markdown(elem_id="size")
                task = gr.Dropdown(tasks, value=first.task, label="Task", elem_id="task")
                weights = gr.Dropdown(names(first.task), value=first.name, label="Weights", elem_id="weights")
                button = gr.Button("Restore", variant="primary", elem_id="restore")
                description = gr.Markdown(describe(first.name), elem_id="description")
            with gr.Column(scale=2, min_width=320):
                slider = gr.ImageSlider(
                    label="Before and after",
                    interactive=False,
                    format="png",
                    max_height=500,
                    buttons=["fullscreen"],
                    elem_id="before-after",
                )
                report = gr.Markdown(elem_id="report")
                download = gr.DownloadButton("Download the result", interactive=False, elem_id="download")

        photograph.upload(look_at, photograph, size, show_progress="hidden", api_visibility="private")
        photograph.clear(lambda: "", None, size, show_progress="hidden", api_visibility="private")
        photograph.change(forget, None, [slider, download, report], show_progress="hidden", api_visibility="private")
        task.input(choose_task, task, [weights, description], show_progress="hidden", api_visibility="private")
        weights.input(describe, weights, description, show_progress="hidden", api_visibility="private")
        announced = button.click(announce, photograph, report, show_progress="hidden", api_visibility="private")
        done = announced.success(
            restore,
            [photograph, weights],
            [slider, download, report],
            concurrency_limit=1,
            show_progress_on=slider,
            api_visibility="private",
        )
        done.failure(forget, None, [slider, download, report], show_progress="hidden", api_visibility="private")
    return page


def serve(page: gradio.Blocks, session: DemoSession, *, port: int, max_megabytes: float, open_browser: bool) -> None:
    """Serves the page on this machine until Ctrl-C or SIGTERM, and finishes the photograph in work.

    Args:
        page: from `build_page`.
        session: of the page.
        port: a free one.
        max_megabytes: limit of uploaded files.
        open_browser: also open the page there.
    """
    import gradio as gr
    from starlette.middleware import Middleware

    # Those of the system: the page must work without the internet.
    fonts = {
        "font": [gr.themes.Font("system-ui"), gr.themes.Font("sans-serif")],
        "font_mono": [gr.themes.Font("ui-monospace"), gr.themes.Font("monospace")],
    }
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        page.launch(
            server_name=ADDRESS,
            server_port=port,
            share=False,
            inbrowser=open_browser,
            inline=False,
            prevent_thread_lock=True,
            quiet=True,
            max_file_size=int(max_megabytes * 2**20),
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            app_kwargs={"middleware": [Middleware(OwnPageOnly)], "openapi_url": None},
            theme=gr.themes.Default(primary_hue="blue", **fonts),
            css=_CSS,
        )
        say(f"gamax demo is at http://{ADDRESS}:{port} and ends with Ctrl-C")
        threading.Event().wait()
    except KeyboardInterrupt:
        say("stopping")
    finally:
        page.close(verbose=False)
        if session.at_work.locked():
            say("finishing the photograph in work")
        # The folder is removed next, and the work would make it again.
        with session.at_work:
            pass
    say("stopped")
