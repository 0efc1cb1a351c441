"""The page in headless Chromium, at the width of a phone and of a desktop.

Skipped without Playwright's Python package or Chromium; docs/development.md has the command.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pdrec_jax.inspect.page import as_page

pytestmark = pytest.mark.browser
SIZES = {"phone": (390, 844), "desktop": (1280, 900)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if not found:
        pytest.skip("no Chromium: install it, or name it in $CHROMIUM")
    with playwright.sync_playwright() as started:
        # Its sandbox does not run for root, as in most containers; the page is our own.
        chromium = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_the_page_in_a_browser(browser, told, tmp_path: Path, size: str, scheme: str) -> None:
    path = tmp_path / "page.html"
    path.write_text(as_page(told), encoding="utf-8")
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    said, asked, dialogs = [], [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    page.goto(path.as_uri())
    wide = page.evaluate("document.documentElement.scrollWidth")
    small = page.evaluate(
        "[...document.querySelectorAll('td, th, p, a, figcaption')]"
        ".filter(e => parseFloat(getComputedStyle(e).fontSize) < 12).length"
    )
    # The width of a plot's letters on the screen, in CSS pixels.
    letters = page.evaluate(
        "Math.min(...[...document.querySelectorAll('svg.plot')]"
        ".map(s => 11 * s.getBoundingClientRect().width / 360))"
    )
    ground, ink = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    context.close()
    assert said == []
    assert dialogs == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert wide <= width
    assert small == 0
    assert letters >= 10
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
    assert ground != ink
