"""`gamax demo`: the page in a real browser, and what decides about its requests and files."""

import http.client
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
import pytest
from skimage.data import astronaut

from gamax import create_model, pretrained, save_weights
from gamax.cli_demo import OWN_TASK, offered_weights
from gamax.data.images import read_image, to_integers
from gamax.data.metadata import ImageHeader, read_header
from gamax.demo import (
    ADDRESS,
    PREVIEW_PIXELS,
    DemoSession,
    check_photograph,
    describe_restored,
    find_port,
    page_sentence,
    prepare_environment,
    preview,
    refuses,
)
from gamax.errors import UserError
from gamax.pretrained import PRETRAINED

TINY = {"width": 4, "depth": 3, "levels": 1, "blocks_per_level": 1}
CHROMIUM_FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
LIMITS = ("--max-megabytes", "1", "--max-megapixels", "1")


def require(present: bool, what: str) -> None:
    """Skips without it; where GAMAX_REQUIRE_BROWSER is set, its absence is a failure."""
    if not present and os.environ.get("GAMAX_REQUIRE_BROWSER"):
        pytest.fail(f"without {what}")
    if not present:
        pytest.skip(f"without {what}")


@pytest.fixture(scope="module")
def gradio_there() -> None:
    require(importlib.util.find_spec("gradio") is not None, "gradio: install the extra 'demo'")


@pytest.fixture(scope="module")
def browser(gradio_there) -> Iterator[Any]:
    require(importlib.util.find_spec("playwright") is not None, "playwright: pip install playwright")
    found = [path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))]
    require(bool(found), "Chromium: install it with the packages of the system")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found[0], args=CHROMIUM_FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, random_params) -> Path:
    """Two weight files, and files to drop: a noisy photograph and three that are refused."""
    folder = tmp_path_factory.mktemp("demo")
    network = create_model("gama_ir_tiny", **TINY)
    params = random_params(network, (1, 16, 16, 3))
    for name, scale in (("tiny", 1.0), ("other", 0.5)):
        scaled = jax.tree.map(lambda value, scale=scale: scale * value, params)
        save_weights(folder / f"{name}.safetensors", scaled, "gama_ir_tiny", TINY)
    noise = np.random.default_rng(0).normal(0, 25 / 255, (256, 320, 3))
    noisy = to_integers(astronaut()[:256, 100:420] / 255 + noise)
    cv2.imwrite(str(folder / "noisy.png"), noisy[..., ::-1])
    (folder / "text.png").write_text("no picture")
    (folder / "large.png").write_bytes(bytes(2 * 2**20))
    cv2.imwrite(str(folder / "many.png"), np.zeros((1000, 1200, 3), np.uint8))
    return folder


class Server:
    """A process that serves the page, and all that it prints."""

    def __init__(self, command: list[str], temporary: Path, **environment: str):
        temporary.mkdir()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gamax.cli", *command],
            # Not the checkout, whose package would be taken for the installed one.
            cwd=temporary,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "TMPDIR": str(temporary), **environment},
            # What runs in the background of a shell ignores Ctrl-C, and so would what it starts.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
        self.lines: list[str] = []
        for line in self.process.stdout:
            self.lines.append(line)
            if found := re.search(r"http://[\d.]+:(\d+)", line):
                self.url, self.port = found[0], int(found[1])
                break
        else:
            pytest.fail("".join(self.lines))
        # A full pipe would stop the server.
        self.reader = threading.Thread(target=lambda: self.lines.extend(self.process.stdout))
        self.reader.start()

    def stop(self, number: signal.Signals = signal.SIGINT) -> tuple[int, str]:
        """Presses Ctrl-C, or sends another signal; returns the exit code and all that was printed."""
        self.process.send_signal(number)
        code = self.process.wait(30)
        self.reader.join()
        return code, "".join(self.lines)

    def get(self, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(ADDRESS, self.port, timeout=20)
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        answer = response.status, response.read()
        connection.close()
        return answer


@pytest.fixture(scope="module")
def server(gradio_there, folder) -> Iterator[Server]:
    """The command itself, with weights of the user, where the environment asks for more than it may do."""
    command = ["demo", "--weights", str(folder / "tiny.safetensors")]
    opened = {"GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_SHARE": "True", "GRADIO_ALLOWED_PATHS": "/"}
    server = Server([*command, "--port", "0", "--no-open-browser", *LIMITS], folder / "temporary", **opened)
    assert len(list((folder / "temporary").glob("gamax-demo-*"))) == 1
    yield server
    code, printed = server.stop()
    assert code == 0
    assert printed.endswith("stopped\n")
    assert "Traceback" not in printed
    assert not list((folder / "temporary").glob("gamax-demo-*"))


@pytest.fixture
def page(browser, server) -> Iterator[Any]:
    """The page, open; whatever it has asked for must have been asked of its own server."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(30_000)
    requested: list[str] = []
    context.on("request", lambda request: requested.append(request.url))
    page = context.new_page()
    page.goto(server.url)
    page.wait_for_selector("#restore")
    yield page
    context.close()
    foreign = [url for url in requested if not url.startswith((f"{server.url}/", "data:", f"blob:{server.url}/"))]
    assert requested
    assert not foreign


def drop(page: Any, path: Path, says: str | None = "320x256 pixels") -> None:
    """Drops a file, and waits for what the page says of it, if anything."""
    page.set_input_files("#photograph input[type=file]", str(path))
    if says is not None:
        page.wait_for_function(f"document.querySelector('#size').innerText.includes('{says}')")


def restore(page: Any) -> None:
    page.click("#restore")
    page.wait_for_function("document.querySelector('#report').innerText.includes(', restored ')")


def download(page: Any, path: Path) -> bytes:
    with page.expect_download() as downloading:
        page.click("#download")
    downloading.value.save_as(path)
    return path.read_bytes()


def test_a_photograph_is_restored_compared_and_downloaded(page, folder, tmp_path, gamax):
    page.click("#task input")
    page.click(f"[role=option]:has-text('{OWN_TASK}')")
    drop(page, folder / "noisy.png")
    restore(page)
    assert "320x256 pixels (0.08 megapixels), restored whole in" in page.inner_text("#report")
    assert "Licence: that of your own file." in page.inner_text("#description")

    # Both are drawn, at their own size.
    drawn = (
        "document.querySelectorAll('#before-after img')].filter(image => image.complete && image.naturalWidth == 320)"
    )
    page.wait_for_function(f"[...{drawn}.length == 2")
    before, after = page.query_selector_all("#before-after img")
    assert before.get_attribute("src") != after.get_attribute("src")

    def shown_from() -> float:
        """Where the restored image begins, in percent."""
        return float(re.search(r"inset\(0px 0px 0px ([\d.]+)%\)", after.get_attribute("style"))[1])

    assert shown_from() == pytest.approx(50, abs=1)
    box = before.bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, middle, steps=5)
    page.mouse.up()
    page.wait_for_timeout(200)
    assert shown_from() == pytest.approx(25, abs=3)

    gamax("restore", folder / "noisy.png", "-o", tmp_path / "command.png", "--weights", folder / "tiny.safetensors")
    assert download(page, tmp_path / "page.png") == (tmp_path / "command.png").read_bytes()

    # A second one of its size needs no compiling; dropping it takes away what was shown of the first.
    shutil.copy(folder / "noisy.png", tmp_path / "second.png")
    page.click("#photograph button[aria-label=Clear]")
    drop(page, tmp_path / "second.png")
    page.wait_for_function("document.querySelector('#report').innerText == ''")
    restore(page)
    assert "compiling" not in page.inner_text("#report")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("text.png", "'text.png' is not an image that can be decoded; replace or remove it"),
        ("large.png", "exceed the maximum allowed size"),
        ("many.png", "'many.png' has 1200x1000 pixels, 1.2 million, and the page takes 1:"),
    ],
)
def test_the_page_says_what_it_does_not_take(page, folder, server, name, sentence):
    drop(page, folder / name, says=None)
    shown = page.wait_for_selector("[data-testid=toast-body]").inner_text()
    assert sentence in shown
    assert str(folder) not in shown
    if name != "large.png":
        # Pressing on changes nothing.
        page.click("[data-testid=toast-close]")
        page.wait_for_selector("[data-testid=toast-body]", state="detached")
        page.click("#restore")
        assert sentence in page.wait_for_selector("[data-testid=toast-body]").inner_text()
        assert page.is_disabled("#download")
    assert not any("Traceback" in line for line in server.lines)


def test_what_fails_on_the_way_is_said_and_leaves_nothing(page, folder, tmp_path, server):
    content = (folder / "noisy.png").read_bytes()
    # The header is whole, and so are the lengths of the chunks.
    (tmp_path / "damaged.png").write_bytes(content[:100] + bytes(500) + content[600:])
    drop(page, tmp_path / "damaged.png")
    page.click("#restore")
    shown = page.wait_for_selector("[data-testid=toast-body]").inner_text()
    assert "'damaged.png' was not restored: 'damaged.png' is not an image that can be decoded" in shown
    page.wait_for_function("document.querySelector('#report').innerText == ''")
    assert page.is_disabled("#download")
    assert not any("Traceback" in line for line in server.lines)


def test_the_page_fits_a_narrow_window(page):
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_weights_of_gamax_are_chosen_by_task(browser, folder, tmp_path, gamax):
    server = Server(["demo", "--port", "0", "--no-open-browser"], tmp_path / "temporary")
    page = browser.new_page()
    page.goto(server.url)
    assert PRETRAINED["denoise-photo"].licence in page.inner_text("#description")
    page.click("#task input")
    page.click("[role=option]:has-text('derain')")
    licence = PRETRAINED["derain"].licence
    page.wait_for_function(f"document.querySelector('#description').innerText.includes('{licence}')")
    assert page.input_value("#weights input") == "derain"
    drop(page, folder / "noisy.png")
    restore(page)
    assert "with derain." in page.inner_text("#report")
    restored = download(page, tmp_path / "page.png")
    # A photograph in work is finished before the folder is removed.
    page.click("#restore")
    page.wait_for_function("document.querySelector('#report').innerText.startsWith('Restoring')")
    code, printed = server.stop(signal.SIGTERM)
    page.close()
    assert (code, "Traceback" in printed) == (0, False)
    assert not list((tmp_path / "temporary").glob("gamax-demo-*"))
    gamax("restore", folder / "noisy.png", "-o", tmp_path / "command.png", "--task", "derain")
    assert restored == (tmp_path / "command.png").read_bytes()


def listening_addresses(port: int) -> set[str]:
    """The addresses, in hexadecimal, at which this machine listens on the port."""
    rows = [
        line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    ]
    local = [row[1].split(":") for row in rows if row[3] == "0A"]
    return {address for address, number in local if int(number, 16) == port}


def test_it_listens_on_this_machine_alone(server):
    assert listening_addresses(server.port) == {"0100007F"}
    assert "GRADIO_ALLOWED_PATHS, GRADIO_SERVER_NAME, GRADIO_SHARE" in "".join(server.lines)


def test_no_file_but_its_own_is_served(server):
    assert server.get("/gradio_api/file=/etc/hostname")[0] == 403


def test_other_web_sites_are_not_answered(server):
    assert server.get("/config")[0] == 200
    assert server.get("/config", Host=f"localhost:{server.port}")[0] == 200
    for headers in (
        {"Host": "example.org"},
        {"Host": f"example.org:{server.port}"},
        {"Origin": "https://example.org"},
        {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors", "Sec_Fetch_Dest": "image"},
    ):
        assert server.get("/config", **headers) == (403, b"gamax demo answers its own page only\n")
        assert server.get("/gradio_api/upload", "POST", b"", **headers)[0] == 403


def test_no_interface_for_programs_is_offered(server):
    status, content = server.get("/gradio_api/info")
    assert status == 200
    assert b'"named_endpoints":{}' in content
    assert b'"unnamed_endpoints":{}' in content
    assert server.get("/openapi.json")[0] == server.get("/docs")[0] == 404


def test_the_server_itself_refuses_large_files(server):
    start = b'--cut\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    body = start + bytes(2 * 2**20) + b"\r\n--cut--\r\n"
    status, _ = server.get("/gradio_api/upload", "POST", body, Content_Type="multipart/form-data; boundary=cut")
    assert status == 413


def test_requests_of_other_sites_are_recognised():
    own = {"host": "127.0.0.1:7860"}
    assert not refuses("GET", own)
    assert not refuses("POST", {**own, "origin": "http://127.0.0.1:7860", "sec-fetch-site": "same-origin"})
    assert refuses("POST", {**own, "origin": "http://127.0.0.1:8000"})
    assert refuses("POST", {**own, "origin": "null"})
    assert refuses("GET", {})
    assert refuses("GET", {"host": "["})
    assert refuses("GET", {"host": "127.0.0.1.example.org"})
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert not refuses("GET", own | link)
    assert refuses("POST", own | link)
    assert refuses("GET", own | link | {"sec-fetch-dest": "iframe"})


def test_the_environment_is_set_before_gradio_reads_it(capsys, tmp_path):
    environment = {"GRADIO_SHARE": "True", "HOME": "/home/a", "NO_PROXY": "example.org"}
    prepare_environment(environment, tmp_path)
    assert environment == {
        "HOME": "/home/a",
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_TEMP_DIR": str(tmp_path),
        "no_proxy": "example.org,127.0.0.1",
        "NO_PROXY": "example.org,127.0.0.1",
    }
    assert "GRADIO_SHARE" in capsys.readouterr().out


def test_a_photograph_is_checked_by_its_content(folder, tmp_path):
    header = check_photograph(folder / "noisy.png", 1)
    assert (header.height, header.width) == (256, 320)
    for name in ("photo.heic", "photo.txt"):
        shutil.copy(folder / "noisy.png", tmp_path / name)
        with pytest.raises(UserError, match="is not of a kind that is restored"):
            check_photograph(tmp_path / name, 1)
    with pytest.raises(UserError, match="drop it again"):
        check_photograph(tmp_path / "gone.png", 1)


def test_many_megapixels_are_refused_before_decoding(tmp_path):
    cv2.imwrite(str(tmp_path / "many.png"), np.zeros((1000, 1200, 3), np.uint8))
    content = (tmp_path / "many.png").read_bytes()
    # The pixels are damaged: decoding would fail with another sentence.
    (tmp_path / "many.png").write_bytes(content[:60] + bytes(20) + content[80:])
    with pytest.raises(UserError, match=r"1200x1000 pixels, 1\.2 million"):
        check_photograph(tmp_path / "many.png", 1)


@pytest.mark.parametrize(("channels", "shown"), [(1, 1), (3, 3), (4, 3)])
def test_previews_have_8_bits_and_no_alpha(channels, shown, tmp_path):
    image = np.random.default_rng(0).integers(0, 2**16, (20, 30, channels), np.uint16)
    (tmp_path / "preview.png").write_bytes(preview(image, ImageHeader(20, 30)))
    seen = read_image(tmp_path / "preview.png")
    assert seen.dtype == np.uint8
    np.testing.assert_array_equal(seen, np.rint(image[..., :shown] / 257))


def test_large_photographs_are_shown_smaller_and_in_their_own_colours(tmp_path):
    header = ImageHeader(2500, 3000, icc_profile=b"\0" * 16 + b"RGB " + bytes(108))
    (tmp_path / "preview.png").write_bytes(preview(np.zeros((2500, 3000, 3), np.uint8), header))
    shown = read_header(tmp_path / "preview.png")
    assert shown.height * shown.width == pytest.approx(PREVIEW_PIXELS, rel=0.01)
    assert shown.width / shown.height == pytest.approx(1.2, rel=0.01)
    assert shown.icc_profile == header.icc_profile
    assert "Shown at 73% of its size" in describe_restored(header, 1, "tiny", False)


def test_the_report_names_tiles_and_compiling():
    report = describe_restored(ImageHeader(1000, 2000), 12.34, "tiny", True)
    assert report.startswith("2000x1000 pixels (2.00 megapixels), restored in tiles of 512 pixels in 12.3 s with tiny.")
    assert "compiling" in report
    assert "Shown at" not in report


def test_sentences_on_the_page_name_no_folder_and_hold_no_html(tmp_path):
    session = DemoSession(tmp_path, 1)
    error = UserError(f"'{tmp_path}/files/0a1b/<b>.png' and '{tmp_path}/results/a.png' are wrong")
    assert page_sentence(error, session) == "'&lt;b&gt;.png' and 'a.png' are wrong"


def test_weights_that_are_there_are_offered_and_own_ones_join_them(folder, monkeypatch):
    there = pretrained.PretrainedWeights("some-weights", "denoise", "noise", "free")
    missing = pretrained.PretrainedWeights("missing", "derain", "rain", "free")
    paths = {"some-weights": folder / "tiny.safetensors", "missing": folder / "missing.safetensors"}
    monkeypatch.setattr(pretrained.PretrainedWeights, "path", property(lambda self: paths[self.name]))
    monkeypatch.setattr(pretrained, "PRETRAINED", {entry.name: entry for entry in (there, missing)})
    choices, selected = offered_weights(None)
    assert [choice.name for choice in choices] == ["some-weights"]
    assert selected == "some-weights"
    own = folder / "other.safetensors"
    choices, selected = offered_weights(own)
    assert [(choice.name, choice.task) for choice in choices] == [(str(own), OWN_TASK), ("some-weights", "denoise")]
    assert selected == str(own)
    assert "parameters" in choices[0].summary
    choices, selected = offered_weights(Path("some-weights"))
    assert ([choice.name for choice in choices], selected) == (["some-weights"], "some-weights")
    monkeypatch.chdir(folder)
    shutil.copy(own, "some-weights")
    choices, selected = offered_weights(Path("some-weights"))
    assert [choice.name for choice in choices] == [str(folder / "some-weights"), "some-weights"]
    assert selected == choices[0].name
    with pytest.raises(UserError, match=r"missing\.safetensors"):
        offered_weights(folder / "missing.safetensors")
    monkeypatch.setattr(pretrained, "PRETRAINED", {})
    with pytest.raises(UserError, match="--weights"):
        offered_weights(None)


def test_a_port_in_use_is_named(gradio_there, gamax, capsys):
    with socket.socket() as other:
        other.bind((ADDRESS, 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(SystemExit) as stopped:
            gamax("demo", "--port", port)
    assert stopped.value.code == 2
    assert f"cannot listen on port {port} (Address already in use): choose another" in capsys.readouterr().err
    assert 0 < find_port(0) < 2**16


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--port", 70000, "from 0 to 65535"),
        ("--max-megabytes", 0, "above 0"),
        ("--max-megapixels", "nan", "above 0"),
        ("--max-megabytes", "inf", "above 0"),
    ],
)
def test_options_out_of_range_are_named(gamax, capsys, option, value, sentence):
    with pytest.raises(SystemExit) as stopped:
        gamax("demo", option, value)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert option in error
    assert sentence in error


def test_without_gradio_it_says_what_to_install(gamax, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit) as stopped:
        gamax("demo")
    assert stopped.value.code == 2
    assert "gamax demo needs gradio: pip install 'gamax[demo]'" in capsys.readouterr().err
