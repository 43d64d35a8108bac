"""A page is shown in the cell itself, unless it would bloat the notebook."""

import os
from pathlib import Path

import pytest

from disagg_train.metrics.page import Page


def test_a_cell_shows_the_page_whole_and_links_to_it(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text('<p title="x">a & b</p>')
    shown = Page(path)._repr_html_()
    assert f'href="{path}"' in shown
    assert "&lt;p title=&quot;x&quot;&gt;a &amp; b&lt;/p&gt;" in shown


def test_a_large_page_is_only_linked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("disagg_train.metrics.page._MOST_BYTES", 10)
    path = tmp_path / "report.html"
    path.write_text("x" * 11)
    assert "iframe" not in Page(path)._repr_html_()


def test_a_page_is_a_path(tmp_path: Path) -> None:
    page = Page(tmp_path / "report.html")
    assert os.fspath(page) == repr(page) == str(tmp_path / "report.html")
