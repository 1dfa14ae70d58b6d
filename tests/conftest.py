"""Fixtures that every folder of tests may ask for."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

from tests.browser import BrowserPage, NoBrowser, find_chromium, open_browser

# Shared machines are slow at times: a deadline would fail the machine, not the code.
hypothesis.settings.register_profile("torchsheaf", deadline=None, derandomize=True)
hypothesis.settings.load_profile("torchsheaf")


@pytest.fixture
def no_grad() -> Iterator[None]:
    """No autograd graph is recorded."""
    with torch.no_grad():
        yield


@pytest.fixture
def browser_page(tmp_path: Path) -> Iterator[BrowserPage]:
    """A headless Chromium tab that records console errors, exceptions and requests.

    Skips where no Chromium is found, unless TORCHSHEAF_REQUIRE_BROWSER is set: then it fails.

        browser_page.open(report)
        assert browser_page.troubles == []
        picture = browser_page.screenshot("report.png")
    """
    try:
        find_chromium()
    except NoBrowser as missing:
        if os.environ.get("TORCHSHEAF_REQUIRE_BROWSER"):
            pytest.fail(f"TORCHSHEAF_REQUIRE_BROWSER is set, but {missing}")
        pytest.skip(str(missing))
    with open_browser(tmp_path) as page:
        yield page


@pytest.fixture
def generator() -> torch.Generator:
    """A source of random numbers that is the same in every run and touches no global state."""
    return torch.Generator().manual_seed(20260314)
