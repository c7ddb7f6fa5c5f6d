"""A play as a picture: time from left to right, a lane for each of those who take part, below them the memory.

SVG, written by hand, so that nothing but the standard library is needed; the same plays give the same bytes. Marks that
fall on the same pixel are drawn once.
"""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

from holdfast.sim.lab.scenario import Play
from holdfast.units import format_size

WIDTH = 960
LEFT, RIGHT = 100, 20
LANE_HEIGHT, MEMORY_HEIGHT, TITLE_HEIGHT, AXIS_HEIGHT, LEGEND_HEIGHT = 26, 56, 40, 34, 46
MEMORY_LANE = "memory"
INK, FAINT = "#333333", "#dddddd"
# A wait that is shorter than this part of the picture is no more than its answer.
WAIT_SHOWN = 0.004

# kind -> shape, colour, what the legend says. Later ones are drawn over earlier ones.
KINDS: dict[str, tuple[str, str, str]] = {
    "written": ("tick", "#9aa7b4", "written to disk"),
    "answered": ("tick", "#4c9a5b", "acknowledged"),
    "waits": ("bar", "#e3b341", "waits"),
    "waits for ever": ("bar", "#d1453b", "waits at the end, too"),
    "leaves": ("square", "#8a8a8a", "leaves"),
    "flushed": ("diamond", "#2f6fb3", "flushed"),
    "trimmed": ("diamond", "#7a5bb0", "trimmed"),
    "fails": ("cross", "#c77d2e", "attempt fails"),
    "told an error": ("triangle", "#c77d2e", "is told an error"),
    "lost": ("dot", "#d1453b", "acknowledged data lost"),
    "killed": ("cross", "#000000", "SIGKILL"),
}
_ORDER = {kind: at for at, kind in enumerate(KINDS)}
_LEGEND_COLUMNS = 5


def draw(plays: Sequence[Play]) -> str:
    """The plays one below the other, on one scale of time."""
    end_ns = max(1, *(play.result.duration_ns for play in plays))
    shown = [kind for kind in KINDS if any(kind in _kinds(play, end_ns) for play in plays)]
    legend_rows = -(-len(shown) // _LEGEND_COLUMNS)
    height = sum(map(_height, plays)) + LEGEND_HEIGHT - 20 + 20 * legend_rows
    svg = ElementTree.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {WIDTH} {height}",
            "width": str(WIDTH),
            "height": str(height),
            "font-family": "system-ui, sans-serif",
            "font-size": "12",
            "fill": INK,
        },
    )
    first = plays[0].result
    _add(svg, "title", text=f"{first.scenario}, seed {first.seed}: " + " and ".join(p.result.policy for p in plays))
    _add(svg, "rect", x=0, y=0, width=WIDTH, height=height, fill="#ffffff")
    top = 0
    for play in plays:
        _panel(svg, play, top, end_ns)
        top += _height(play)
    _legend(svg, shown, top + 12)
    ElementTree.indent(svg, space=" ")
    return ElementTree.tostring(svg, encoding="unicode") + "\n"


def _height(play: Play) -> int:
    lanes = sum(lane != MEMORY_LANE for lane in play.lanes)
    return TITLE_HEIGHT + lanes * LANE_HEIGHT + MEMORY_HEIGHT * (MEMORY_LANE in play.lanes) + AXIS_HEIGHT


def _panel(svg: ElementTree.Element, play: Play, top: int, end_ns: int) -> None:
    _add(svg, "text", x=12, y=top + 26, font_size=15, font_weight="bold", text=play.result.policy)
    _add(svg, "text", x=LEFT, y=top + 26, text=_summary(play))
    y = top + TITLE_HEIGHT
    lanes: dict[str, int] = {}
    for lane in play.lanes:
        if lane == MEMORY_LANE:
            _memory(svg, play, y, end_ns)
            y += MEMORY_HEIGHT
            continue
        middle = lanes[lane] = y + LANE_HEIGHT // 2
        _add(svg, "line", x1=LEFT, x2=WIDTH - RIGHT, y1=middle, y2=middle, stroke=FAINT)
        _add(svg, "text", x=LEFT - 8, y=middle + 4, text_anchor="end", text=lane)
        y += LANE_HEIGHT
    drawn: dict[tuple[int, str, str, int], None] = {}
    for span in play.spans:
        if span.lane in lanes and _is_shown(span.end_ns - span.begin_ns, end_ns):
            begin = _x(span.begin_ns, end_ns)
            kind = "waits" if span.over else "waits for ever"
            drawn[_ORDER[kind], span.lane, kind, round(begin)] = None
            _shape(svg, kind, begin, lanes[span.lane], _x(span.end_ns, end_ns) - begin)
    for mark in play.marks:
        if mark.lane in lanes:
            drawn[_ORDER[mark.kind], mark.lane, mark.kind, round(_x(mark.at_ns, end_ns))] = None
    for _, lane, kind, x in sorted(drawn):
        if KINDS[kind][0] != "bar":
            _shape(svg, kind, x, lanes[lane])
    _axis(svg, y, end_ns)


def _summary(play: Play) -> str:
    result = play.result
    parts = [f"{format_size(result.acknowledged_bytes)} acknowledged", f"{format_size(result.lost_bytes)} lost"]
    if result.killed:
        parts.append(f"{len(result.killed)} killed")
    if result.unanswered:
        parts.append(f"{len(result.unanswered)} never answered")
    return ", ".join(parts)


def _kinds(play: Play, end_ns: int) -> set[str]:
    kinds = {mark.kind for mark in play.marks if mark.lane in play.lanes}
    for span in play.spans:
        if span.lane in play.lanes and _is_shown(span.end_ns - span.begin_ns, end_ns):
            kinds.add("waits" if span.over else "waits for ever")
    return kinds


def _is_shown(duration_ns: int, end_ns: int) -> bool:
    return duration_ns > end_ns * WAIT_SHOWN


def _x(at_ns: int, end_ns: int) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * at_ns / end_ns


# ---- parts


def _shape(svg: ElementTree.Element, kind: str, x: float, y: float, width: float = 0) -> None:
    shape, colour, _ = KINDS[kind]
    if shape == "tick":
        _add(svg, "line", x1=x, x2=x, y1=y - 6, y2=y + 6, stroke=colour)
    elif shape == "bar":
        _add(svg, "rect", x=x, y=y - 4, width=width, height=8, fill=colour)
    elif shape == "dot":
        _add(svg, "circle", cx=x, cy=y, r=4, fill=colour)
    elif shape == "square":
        _add(svg, "rect", x=x - 4, y=y - 4, width=8, height=8, fill=colour)
    elif shape == "cross":
        path = f"M{x - 4:g} {y - 4:g}l8 8m0 -8l-8 8"
        _add(svg, "path", d=path, stroke=colour, stroke_width=2)
    elif shape == "triangle":
        _add(svg, "path", d=f"M{x:g} {y - 7:g}l6 11h-12z", fill=colour)
    else:
        assert shape == "diamond", shape
        _add(svg, "path", d=f"M{x:g} {y - 6:g}l6 6l-6 6l-6 -6z", fill=colour)


def _memory(svg: ElementTree.Element, play: Play, top: int, end_ns: int) -> None:
    """Bytes in use over time, against the limit where there is one; of each pixel the most."""
    result = play.result
    full = max(result.memory_limit_bytes, result.peak_memory_bytes, 1)
    bottom, height = top + MEMORY_HEIGHT - 6, MEMORY_HEIGHT - 18
    most: dict[int, int] = {}
    last = 0
    for at_ns, used_bytes in play.memory:
        x = round(_x(at_ns, end_ns))
        most[x] = max(most.get(x, 0), used_bytes)
        last = used_bytes
    points = [f"M{LEFT} {bottom}"]
    points += [f"H{x}V{bottom - height * used_bytes / full:.1f}" for x, used_bytes in sorted(most.items())]
    points.append(f"V{bottom - height * last / full:.1f}H{_x(result.duration_ns, end_ns):.1f}V{bottom}z")
    _add(svg, "path", d="".join(points), fill="#c9dcef", stroke="#2f6fb3", stroke_width=0.5)
    _add(svg, "text", x=LEFT - 8, y=bottom - 8, text_anchor="end", text=MEMORY_LANE)
    _add(svg, "line", x1=LEFT, x2=WIDTH - RIGHT, y1=bottom, y2=bottom, stroke=FAINT)
    label = f"{format_size(result.peak_memory_bytes)} at most"
    if result.memory_limit_bytes:
        y = bottom - height * result.memory_limit_bytes / full
        _add(svg, "line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, stroke="#d1453b", stroke_dasharray="4 3")
        label += f", of {format_size(result.memory_limit_bytes)}"
    _add(svg, "text", x=WIDTH - RIGHT, y=top + 8, text_anchor="end", font_size=11, text=label)


def _axis(svg: ElementTree.Element, top: int, end_ns: int) -> None:
    step_ns = _step(end_ns)
    seconds = end_ns >= 2_000_000_000
    for at_ns in range(0, end_ns + 1, step_ns):
        x = _x(at_ns, end_ns)
        _add(svg, "line", x1=x, x2=x, y1=top, y2=top + 4, stroke=INK)
        text = f"{at_ns / 1e9:g} s" if seconds else f"{at_ns / 1e6:g} ms"
        _add(svg, "text", x=x, y=top + 17, text_anchor="middle", font_size=11, text=text)
    _add(svg, "line", x1=LEFT, x2=WIDTH - RIGHT, y1=top, y2=top, stroke=INK)


def _step(end_ns: int) -> int:
    """A round number of nanoseconds, such that some five to ten of them make the whole."""
    step_ns = 1
    while True:
        for factor in (1, 2, 5):
            if end_ns <= 10 * factor * step_ns:
                return factor * step_ns
        step_ns *= 10


def _legend(svg: ElementTree.Element, kinds: list[str], top: int) -> None:
    wide = (WIDTH - 24) // _LEGEND_COLUMNS
    for index, kind in enumerate(kinds):
        x, y = 24 + index % _LEGEND_COLUMNS * wide, top + index // _LEGEND_COLUMNS * 20
        _shape(svg, kind, x - 6 if KINDS[kind][0] == "bar" else x, y, 12)
        _add(svg, "text", x=x + 12, y=y + 4, font_size=11, text=KINDS[kind][2])


def _add(parent: ElementTree.Element, tag: str, *, text: str = "", **attributes: float | str) -> None:
    """An element; underscores in the names of attributes stand for dashes, numbers have one decimal at most."""
    written = {
        name.replace("_", "-"): value if isinstance(value, str) else f"{round(value, 1):g}"
        for name, value in attributes.items()
    }
    ElementTree.SubElement(parent, tag, written).text = text or None
