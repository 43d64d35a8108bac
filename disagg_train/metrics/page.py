"""A page of HTML as a notebook's cell shows it."""

import html
from pathlib import Path

_MOST_BYTES = 4 * 2**20
"""Of a page that goes into the notebook's own file."""
_FRAME = '<iframe srcdoc="{content}" title="{title}" width="100%" height="640"></iframe>'


class Page:
    """A page that was written; a cell shows it in a frame, and everything else as its path.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return str(self.path)

    def _repr_html_(self) -> str:
        """Return a link and, unless the page is large, the page."""
        shown = html.escape(str(self.path))
        link = f'<p><a href="{shown}" target="_blank">{shown}</a></p>'
        if self.path.stat().st_size > _MOST_BYTES:
            return link
        content = html.escape(self.path.read_text())
        return link + _FRAME.format(content=content, title=shown)
