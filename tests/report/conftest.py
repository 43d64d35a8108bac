"""A browser that opens reports."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from disagg_train.report.page import write_report
from tests.report.runs import job_of, write_run

WIDTHS = {"phone": 390, "desktop": 1280}
OpenPage = Callable[..., Page]


def _chromium() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if found is None:
        refuse = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        refuse("no Chromium on the path; install the Debian package `chromium`")
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = _chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    job = job_of(folder, 2, {"pp": 2}, steps=8, microbatches=4)
    return write_report(write_run(folder, job))


@pytest.fixture
def opened(browser: Browser, report: Path) -> Iterator[OpenPage]:
    """Opens pages, and fails where one of them wrote to the console or asked for a file."""
    contexts, said = [], []

    def open_page(width: str = "desktop", scheme: Any = "light", path: Path = report) -> Page:
        size: Any = {"width": WIDTHS[width], "height": 800}
        context = browser.new_context(viewport=size, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.extend({request.url} - {path.as_uri(), "data:,"}))
        page.goto(path.as_uri())
        if page.locator("#rows").count():
            ranks = page.locator("#rank-table tbody tr").count()
            expect(page.locator("#rows")).to_have_attribute("data-rows", str(ranks))
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []
