"""HTML from templates: everything that is put into one is escaped, unless it is `Html` already."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cache
from html import escape
from pathlib import Path
from string import Template

_TEMPLATES = Path(__file__).parent / "templates"


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def render(name: str, /, **values: object) -> Html:
    """Fill a template."""
    return Html(_template(name).substitute({key: _html(value) for key, value in values.items()}))


def render_all(name: str, /, rows: Iterable[dict[str, object]]) -> Html:
    """Fill a template once for each row."""
    return Html("".join(render(name, **row) for row in rows))


def local_time(moment: datetime | None) -> Html:
    """A moment, which the page's script shows in the visitor's own time zone."""
    if moment is None:
        return Html("–")
    utc = moment.astimezone(UTC)
    return Html(f'<time datetime="{utc.isoformat()}">{utc:%d %b %Y, %H:%M:%S} UTC</time>')


def _html(value: object) -> Html:
    return value if isinstance(value, Html) else Html(escape(str(value)))


@cache
def _template(name: str) -> Template:
    return Template((_TEMPLATES / f"{name}.html").read_text("utf-8"))
