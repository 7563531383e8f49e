"""The picture of the table: a bar for each of what a request costs, × a bare FastAPI route.

Written by hand, because one file has to be good to read in light and in dark: it carries a media query, which no
plotting library writes, and its text stays text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from rows import BARE, TIMES, Result

SHOWN = (
    ("no-token", "refusal without a token"),
    ("unused-sent", "route that doesn't use the session"),
    ("believed", "signed in, row believed (STORE_TTL)"),
    ("validated", "OTPLESS asked each time (own cost)"),
    ("bad-signature", "refusal of a bad signature"),
    ("sqlite", "signed in, row read from SQLite"),
    ("first-stranger", "first sight of a token"),
)
LEFT_OUT = frozenset({"peer-users-redis", "peer-users-database"})
"""Most of these is SQLAlchemy looking up the user, and their bars would make all others short."""
WIDTH, LABELS, RIGHT, TOP = 860, 330, 70, 76
BAR, STEP = 16, 26
FEWEST_TICKS = 4
STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328 }
.page { fill: #ffffff } .title { font-size: 16px; font-weight: 600 } .quiet { fill: #59636e; font-size: 12px }
.ours { fill: #0969da } .peer { fill: #afb8c1 } .base { stroke: #1f2328; stroke-dasharray: 3 3 }
.grid { stroke: #d1d9e0 }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc } .page { fill: #0d1117 } .quiet { fill: #9198a1 }
.ours { fill: #4493f8 } .peer { fill: #656c76 } .base { stroke: #f0f6fc } .grid { stroke: #3d444d }
}
"""


@dataclass(frozen=True)
class _Bar:
    label: str
    value: float
    kind: str


def write(place: Path, results: Sequence[Result], others: Sequence[Result], about: str) -> None:
    """Write the picture, if there is anything to show. `about` says when and on what it was measured."""
    bars = _bars(results, others)
    if bars:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(_drawing(bars, about))


def _bars(results: Sequence[Result], others: Sequence[Result]) -> list[_Bar]:
    by_key = {each.key: each for each in results}
    ours = [_Bar(label, by_key[key].value or 0, "ours") for key, label in SHOWN if key in by_key]
    theirs = [_Bar(each.name, each.value or 0, "peer") for each in others if each.key not in LEFT_OUT]
    if not others and "starlette" in by_key:
        theirs = [_Bar("Starlette SessionMiddleware", by_key["starlette"].value or 0, "peer")]
    return sorted((bar for bar in (*ours, *theirs) if bar.value), key=lambda bar: bar.value)


def _drawing(bars: Sequence[_Bar], about: str) -> str:
    height = TOP + len(bars) * STEP + 34
    scale = (WIDTH - LABELS - RIGHT) / max(bar.value for bar in bars)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" role="img">',
            f"<title>What a request costs, {TIMES} {BARE}</title>",
            f"<style>{STYLE}</style>",
            f'<rect class="page" width="{WIDTH}" height="{height}" rx="6"/>',
            f'<text class="title" x="20" y="30">What a request costs, {TIMES} a bare FastAPI route</text>',
            _legend(),
            *_ticks(bars, scale),
            *(_bar(bar, TOP + place * STEP, scale) for place, bar in enumerate(bars)),
            f'<text class="quiet" x="20" y="{height - 12}">{escape(about)}</text>',
            "</svg>\n",
        ]
    )


def _legend() -> str:
    y = 44
    return (
        f'<rect class="ours" x="20" y="{y}" width="12" height="12"/><text class="quiet" x="38" y="{y + 10}">'
        f'fastapi-otpless-session</text><rect class="peer" x="190" y="{y}" width="12" height="12"/>'
        f'<text class="quiet" x="208" y="{y + 10}">what people use instead</text>'
    )


def _ticks(bars: Sequence[_Bar], scale: float) -> list[str]:
    most, bottom = max(bar.value for bar in bars), TOP + len(bars) * STEP
    step = next((size for size in (10, 5, 2, 1) if most / size >= FEWEST_TICKS), 1)
    lines = [
        f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 8}" y2="{bottom}"/>'
        for x in (LABELS + number * scale for number in range(0, int(most) + 1, step))
    ]
    one = LABELS + scale
    return [*lines, f'<line class="base" x1="{one:.1f}" x2="{one:.1f}" y1="{TOP - 8}" y2="{bottom}"/>']


def _bar(bar: _Bar, y: float, scale: float) -> str:
    length = bar.value * scale
    middle = y + BAR - 4
    return (
        f'<text x="{LABELS - 10}" y="{middle}" text-anchor="end">{escape(bar.label)}</text>'
        f'<rect class="{bar.kind}" x="{LABELS}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2"/>'
        f'<text x="{LABELS + length + 6:.1f}" y="{middle}">{bar.value:.2f}</text>'
    )
