"""The browser fixture itself: it must hear what goes wrong in a page, and stay silent otherwise."""

from pathlib import Path

import matplotlib.image
import pytest

from tests.browser import BrowserPage, NoBrowser, find_chromium

pytestmark = pytest.mark.browser

PAGE = "<!doctype html><meta charset='utf-8'><title>t</title><body>{body}</body>"


def write(folder: Path, body: str) -> Path:
    file = folder / "page.html"
    file.write_text(PAGE.format(body=body), encoding="utf-8")
    return file


def test_a_sound_page_has_no_troubles(browser_page: BrowserPage, tmp_path: Path) -> None:
    script = "<script>console.log('all is well'); document.title = 'ran'</script>"
    page = browser_page.open(write(tmp_path, "<h1>δ</h1>" + script))
    assert page.title() == "ran"
    assert page.inner_text("h1") == "δ"
    assert browser_page.troubles == []


@pytest.mark.parametrize(
    ("body", "kind", "expected"),
    [
        ("<script>throw new Error('boom')</script>", "exceptions", "boom"),
        ("<script>Promise.reject(new Error('late'))</script>", "exceptions", "late"),
        ("<script>console.error('bad')</script>", "console", "error: bad"),
        ("<script>console.warn('odd')</script>", "console", "warning: odd"),
        ("<script>let = ;</script>", "exceptions", "Unexpected token"),
        ("<img src='gone.png'>", "failures", "gone.png"),
        ("<img src='http://localhost:9/x.png'>", "requests", "http://localhost:9/x.png"),
    ],
)
def test_a_faulty_page_is_heard(
    browser_page: BrowserPage, tmp_path: Path, body: str, kind: str, expected: str
) -> None:
    browser_page.open(write(tmp_path, body))
    heard = getattr(browser_page, kind)
    assert any(expected in message for message in heard), browser_page
    assert browser_page.troubles


def test_the_screenshot_shows_the_page(browser_page: BrowserPage, tmp_path: Path) -> None:
    style = "<style>body { margin: 0; background: rgb(255, 0, 0) } div { height: 2000px }</style>"
    browser_page.open(write(tmp_path, style + "<div></div>"))
    picture = matplotlib.image.imread(browser_page.screenshot())
    assert picture.shape[:2] == (2000, 1280)
    assert picture[1500, 600, :3].tolist() == [1.0, 0.0, 0.0]


def test_a_browser_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHSHEAF_CHROMIUM", "/no/such/chromium")
    with pytest.raises(NoBrowser, match="/no/such/chromium"):
        find_chromium()


def test_without_a_browser_the_fixture_skips_or_fails_as_told(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("from tests.conftest import browser_page")
    pytester.makepyfile("def test_page(browser_page):\n    raise AssertionError('must not run')")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHSHEAF_CHROMIUM", "/no/such/chromium")
        patch.delenv("TORCHSHEAF_REQUIRE_BROWSER", raising=False)
        pytester.runpytest_inprocess("-p", "no:xdist").assert_outcomes(skipped=1)
        patch.setenv("TORCHSHEAF_REQUIRE_BROWSER", "1")
        pytester.runpytest_inprocess("-p", "no:xdist").assert_outcomes(errors=1)
