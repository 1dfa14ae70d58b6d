"""A headless Chromium for tests: one page that records what a reader's console would show."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import ConsoleMessage, Page

# Work as root in a container, and never reach for the network on the browser's own account.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
NAMES = ("chromium", "chromium-browser", "google-chrome")
SETTLED = "() => new Promise(done => requestAnimationFrame(() => setTimeout(done, 50)))"


class NoBrowser(Exception):
    """No Chromium to drive; the message says where one was looked for."""


def find_chromium() -> str:
    """The executable named by TORCHSHEAF_CHROMIUM, else the first usual name on the PATH."""
    if named := os.environ.get("TORCHSHEAF_CHROMIUM"):
        if not shutil.which(named):
            raise NoBrowser(f"TORCHSHEAF_CHROMIUM={named} is not an executable")
        return named
    for name in NAMES:
        if path := shutil.which(name):
            return path
    raise NoBrowser(f"no Chromium on the PATH (looked for {', '.join(NAMES)})")


@dataclass
class BrowserPage:
    """One tab and everything that went wrong in it since it was opened.

    `console` holds console messages of level warning and error, `exceptions` the uncaught ones,
    `requests` every address asked for that is neither a local file nor inline data, `failures` the
    requests that did not arrive.
    """

    page: "Page"
    shots: Path
    console: list[str] = field(default_factory=list)
    exceptions: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.exceptions.append(str(error)))
        self.page.on("requestfailed", lambda request: self.failures.append(request.url))
        self.page.on("request", lambda request: self._ask(request.url))

    def _hear(self, message: "ConsoleMessage") -> None:
        if message.type in {"warning", "error", "assert"}:
            self.console.append(f"{message.type}: {message.text}")

    def _ask(self, url: str) -> None:
        if not url.startswith(("file:", "data:", "blob:", "about:")):
            self.requests.append(url)

    def open(self, file: Path | str) -> "Page":
        """Load a local HTML file and wait until nothing is left to load; the tab for questions."""
        self.page.goto(Path(file).resolve().as_uri(), wait_until="load")
        # Rejected promises are reported a turn after loading: let the page draw once more.
        self.page.evaluate(SETTLED)
        return self.page

    def screenshot(self, name: str = "page.png", *, full_page: bool = True) -> Path:
        """A picture of the page as it stands, in the test's own folder."""
        path = self.shots / name
        self.page.screenshot(path=path, full_page=full_page)
        return path

    @property
    def troubles(self) -> list[str]:
        """All that a self-contained page must not do; empty on a sound page."""
        return [
            *(f"console {message}" for message in self.console),
            *(f"exception: {message}" for message in self.exceptions),
            *(f"network request: {url}" for url in self.requests),
            *(f"failed request: {url}" for url in self.failures),
        ]


@contextmanager
def open_browser(shots: Path, *, width: int = 1280, height: int = 900) -> Iterator[BrowserPage]:
    """A fresh browser with a fresh, empty profile and no network, closed on leaving."""
    chromium = find_chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        try:
            context = browser.new_context(
                viewport={"width": width, "height": height}, offline=True, accept_downloads=False
            )
            yield BrowserPage(context.new_page(), shots)
        finally:
            browser.close()
