"""The project's Markdown pages, taken apart: headings, blocks of code, tables, links and names in the text.

markdown-it-py reads them (CommonMark with tables, typed; Schemathesis brings it along), so that what stands in a block
of code or a table is not taken for text, nor the other way round.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
NOT_OURS = re.compile(r"https?://|mailto:")


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, its language, the anchor of its section, its first line, and its text."""

    page: str
    language: str
    section: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    def run(self) -> dict[str, Any]:
        """Execute Python by itself, with the page's line numbers, and return its names."""
        names: dict[str, Any] = {"__name__": f"page_{self.line}"}
        exec(compile("\n" * (self.line - 1) + self.text, self.page, "exec"), names)  # noqa: S102 - our own pages
        return names


@dataclass(frozen=True)
class Table:
    """A table's section, head and rows, as they are written."""

    section: str
    head: tuple[str, ...]
    rows: list[list[str]]


@dataclass
class Page:
    """A page. `codes` are the names in backticks, `links` the targets, `sections` the text under each anchor."""

    name: str
    file: Path
    anchors: list[str] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    codes: list[str] = field(default_factory=list)
    sections: dict[str, list[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    @property
    def prose(self) -> str:
        """All text but the blocks of code."""
        return "\n".join("\n".join(texts) for texts in self.sections.values())


@cache
def read(file: Path) -> Page:
    """Read a page."""
    page = Page(file.relative_to(ROOT).as_posix(), file)
    tokens = MarkdownIt("commonmark").enable("table").parse(file.read_text(encoding="utf-8"))
    section = ""
    for number, token in enumerate(tokens):
        match token.type:
            case "heading_open":
                section = _anchor(tokens[number + 1].content, page.anchors)
                page.anchors.append(section)
            case "fence":
                assert token.map is not None
                page.blocks.append(Block(page.name, token.info.strip(), section, token.map[0] + 2, token.content))
            case "table_open":
                page.tables.append(_table(section, tokens[number:]))
            case "inline":
                _read_text(page, section, token)
            case _:
                pass
    return page


def _read_text(page: Page, section: str, token: Token) -> None:
    page.sections.setdefault(section, []).append(token.content)
    for child in token.children or ():
        if child.type == "code_inline":
            page.codes.append(child.content)
        for name in ("href", "src"):
            if (target := child.attrs.get(name)) is not None:
                page.links.append(str(target))


def _anchor(heading: str, taken: list[str]) -> str:
    """Return the anchor of a heading, as GitHub makes it."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    slug = re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")
    count = sum(re.fullmatch(re.escape(slug) + r"(-\d+)?", other) is not None for other in taken)
    return f"{slug}-{count}" if count else slug


def _table(section: str, tokens: list[Token]) -> Table:
    rows: list[list[str]] = []
    for number, token in enumerate(tokens):
        if token.type == "table_close":
            break
        if token.type == "tr_open":
            rows.append([])
        elif token.type in {"th_open", "td_open"}:
            rows[-1].append(tokens[number + 1].content)
    return Table(section, tuple(rows[0]), rows[1:])


def pages() -> list[Page]:
    """Return the README and the pages of the documentation, in a fixed order."""
    return [read(file) for file in (README, *sorted(DOCS.glob("*.md")))]


def blocks(*languages: str, section: str | None = None) -> list[Block]:
    """Return the blocks of these languages, of all pages, or of the sections with this anchor."""
    return [
        block
        for page in pages()
        for block in page.blocks
        if block.language in languages and section in {None, block.section}
    ]


def tables(*head: str) -> Iterator[tuple[Page, Table]]:
    """Yield the tables with this head, of all pages."""
    for page in pages():
        for table in page.tables:
            if table.head == head:
                yield page, table
