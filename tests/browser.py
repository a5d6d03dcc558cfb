"""Headless Chromium, and JupyterLab in it: what the browser tests share. Holds no tests itself."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest

PROJECT = Path(__file__).parent.parent
ARTIFACTS = PROJECT / "artifacts"  # git-ignored; CI keeps it
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-extensions",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-default-apps",
)  # fmt: skip
PATIENCE_S = 300  # a computer may be busy: a wait ends when what it waits for is there
PROJECTOR = {"width": 1280, "height": 960}
SETTINGS = {
    # a pop-up about news would cover the page; the tests work on copies that need no saving
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
    "docmanager-extension/plugin": {"autosave": False},
    "notebook-extension/tracker": {"windowingMode": "none"},  # all cells are in the page, seen or not
}


def missing(what: str) -> None:
    """Fail in CI, skip on a user's machine."""
    message = f"{what} is not installed: these tests need the extra [test] and Chromium"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


@dataclass
class Watched:
    """What a page asked for and complained about."""

    urls: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def hosts(self) -> set[str]:
        """Hosts of all requests over the network."""
        return {urlsplit(url).netloc for url in self.urls if urlsplit(url).scheme in ("http", "https", "ws", "wss")}

    def watch(self, page) -> None:
        page.on("request", lambda request: self.urls.append(request.url))
        page.on("websocket", lambda socket: self.urls.append(socket.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda message: message.type == "error" and self.complaints.append(message.text))


@contextmanager
def chromium_page(**options) -> Iterator[tuple]:
    """A fresh page of headless Chromium and what it asks for; options go to the browser context."""
    path = next(filter(None, map(shutil.which, NAMES)), None) or missing("Chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=QUIET, timeout=1000 * PATIENCE_S)
        page = browser.new_context(viewport=PROJECTOR, **options).new_page()
        page.set_default_timeout(1000 * PATIENCE_S)
        watched = Watched()
        watched.watch(page)
        try:
            yield page, watched
        finally:
            browser.close()


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab server."""

    port: int
    token: str

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def url(self, path: str) -> str:
        return f"http://{self.host}/{path}{'&' if '?' in path else '?'}token={self.token}"


@contextmanager
def jupyter_lab(root: Path, home: Path) -> Iterator[Lab]:
    """JupyterLab over the files in `root`; its settings and state lie in `home`, not in the user's."""
    lab = Lab(_free_port(), secrets.token_hex(16))
    for name, values in SETTINGS.items():
        path = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    with (home / "server.log").open("w") as log:
        server = subprocess.Popen(_command(lab, root), env=_environment(home), stdout=log, stderr=log)
        try:
            _wait_for(lab, server, home / "server.log")
            yield lab
        finally:
            server.terminate()
            server.wait(PATIENCE_S)


def _command(lab: Lab, root: Path) -> list[str]:
    return [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={lab.port}",
        "--ServerApp.port_retries=0", f"--ServerApp.root_dir={root}", f"--IdentityProvider.token={lab.token}",
        "--LabApp.extension_manager=readonly", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip


def _environment(home: Path) -> dict[str, str]:
    places = {
        "JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces", "IPYTHONDIR": "ipython",
    }  # fmt: skip
    paths = {name: str(home / folder) for name, folder in places.items()}
    return {**os.environ, **paths, "OMP_NUM_THREADS": "1"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(lab: Lab, server: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(lab.url("api/status"), timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")


def open_notebook(page, lab: Lab, path: str) -> None:
    """Open a notebook and wait until its kernel is there."""
    page.goto(lab.url(f"lab/tree/{path}?reset"))
    page.locator(".jp-Notebook .jp-Cell").first.wait_for()
    # earlier signs of an idle kernel come before it is attached, and Run All would then ask which kernel to use
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()


def run_all(page) -> None:
    """Run all cells, and wait until each has its number. The notebook must have come without outputs."""
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.wait_for_function(
        """() => {
          const prompts = [...document.querySelectorAll(".jp-CodeCell .jp-InputArea-prompt")];
          return prompts.length > 0 && prompts.every((prompt) => /^\\[\\d+\\]:$/.test(prompt.textContent.trim()));
        }"""
    )


def output_kinds(page) -> list[str]:
    """The MIME types of all outputs that the notebook shows, in order."""
    outputs = page.locator(".jp-OutputArea-output[data-mime-type]")
    return outputs.evaluate_all("outputs => outputs.map((output) => output.dataset.mimeType)")


def when_changed(page, look: Callable[[], object], before: object) -> object:
    """What `look` returns once it differs from `before`. Fails if it never does."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if (now := look()) != before:
            return now
        page.wait_for_timeout(50)
    raise AssertionError(f"nothing changed within {PATIENCE_S} s")


def keep_picture(of, name: str) -> None:
    """Keep a picture of a page, or of an element of it, among the artefacts."""
    ARTIFACTS.mkdir(exist_ok=True)
    of.screenshot(path=ARTIFACTS / f"{name}.png")
