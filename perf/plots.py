"""Throughput against resolution, and rooflines, drawn with matplotlib from rows alone.

Both have a panel for each grid and direction, and name each line and mark at its right, so that no legend has to be looked up.
"""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from perf import cases
from perf.inputs import GUIDES
from perf.rows import OURS, Row, case_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Paul Tol's muted scheme, which color-blind people can tell apart; marks differ too.
_COLOURS = ["#332288", "#88ccee", "#44aa99", "#ee8866", "#cc6677", "#882255", "#0077bb", "#661100", "#999933", "#117733", "#ddaa33", "#aa4499", "#b07d48", "#004488", "#997700", "#009988", "#ee3377", "#33bbee"]  # fmt: skip
_LOOKS = dict(
    zip(
        cases.OPERATORS,
        zip(
            _COLOURS,
            "osDh^vdp<>PX8HoDs^",
            strict=True,
        ),
        strict=True,
    )
)
_OTHER_LOOK = ("#777777", "*")
_INK = "#222222"
_SIZES = {size: name for name, size in cases.RESOLUTIONS.items()}

# In inches. Panels are as high, and the room for names beside them as wide, as the names need, but at least so.
_PANEL, _PANEL_HEIGHT, _NAMES = 4.0, 3.1, 3.2
_LEFT, _TOP, _BOTTOM, _BETWEEN = 0.95, 0.44, 0.6, 0.85
# An axis from end to end, of which powers of ten alone would label too little.
_FEW_DECADES = 50
# From a name to the next, of a line above the panels, of a character.
_NAME_GAP, _LINE, _CHARACTER = 0.18, 0.27, 0.07

_SETTINGS: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.edgecolor": "#888888",
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#e4e4e4",
    # Else the same rows would not give the same file.
    "svg.hashsalt": "perf",
}
_METADATA = {".png": {"Software": None}, ".svg": {"Date": None}}


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draws what the rows hold, a figure of each kind for each device, type and guide, and returns the files that were written.

    Predicted rows are drawn into every device's figures.
    """
    import matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    rows = [row for row in rows if row.direction in cases.DIRECTIONS]
    # The last of each case, where it was measured with several versions.
    found = list({(row.implementation, row.device, case_of(row)): row for row in rows}.values())
    devices = list(dict.fromkeys(row.device for row in found if row.measured) or dict.fromkeys(r.device for r in found))
    written = []
    with matplotlib.rc_context(_SETTINGS):
        for number, device in enumerate(devices, 1):
            here = [row for row in found if row.device == device or not row.measured]
            for dtype, guide, chosen in _figures(here):
                for name, drawn in (("throughput", _throughput(chosen)), ("roofline", _roofline(chosen))):
                    if drawn is None:
                        continue
                    stem = f"{name}_{dtype}_{guide}" + (f"_{number}" if len(devices) > 1 else "")
                    for suffix, metadata in _METADATA.items():
                        written.append(folder / (stem + suffix))
                        drawn.savefig(written[-1], dpi=130, metadata=metadata)
    return written


def _figures(rows: Sequence[Row]) -> Iterator[tuple[str, str, list[Row]]]:
    """Type, guide and rows of each figure; what reads no guide belongs to all."""
    for dtype in cases.DTYPES:
        of_type = [row for row in rows if row.dtype == dtype]
        guides = [guide for guide in GUIDES if any(row.guide == guide for row in of_type)]
        for guide in guides or (["none"] if of_type else []):
            yield dtype, guide, [row for row in of_type if row.guide in (guide, "none")]


@dataclass(frozen=True)
class _Series:
    """What one line or mark stands for."""

    implementation: str
    device: str
    operator: str

    @classmethod
    def of(cls, row: Row) -> _Series:
        return cls(row.implementation, row.device if not row.measured else "", row.operator)

    @property
    def name(self) -> str:
        if self.device:
            return f"{self.operator}, {self.device} {self.implementation}"
        return self.operator if self.implementation == OURS else f"{self.operator}, {self.implementation}"

    @property
    def look(self) -> tuple[str, str]:
        """Colour and mark."""
        return _LOOKS.get(self.operator, _OTHER_LOOK)

    @property
    def line(self) -> str:
        if self.device:
            return "dashed"
        return "solid" if self.implementation == OURS else "dotted"


def _series(rows: Sequence[Row]) -> dict[_Series, list[Row]]:
    """Rows by what they stand for, small images first."""
    found: dict[_Series, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.height * row.width):
        found.setdefault(_Series.of(row), []).append(row)
    return found


def _panels(
    title: str, note: str, rows: Sequence[Row], label: Callable[[Row], str]
) -> tuple[Figure, list[tuple[Axes, list[Row]]]]:
    """A figure with a row of panels for each grid and a column for each direction, and what each panel shows; ``label`` is what is written beside a row's mark."""
    from matplotlib.figure import Figure

    grids = list(dict.fromkeys(row.grid for row in rows))
    directions = [direction for direction in cases.DIRECTIONS if any(row.direction == direction for row in rows)]
    named = {((row.grid, row.direction), label(row)) for row in rows}
    roofs = len({row.device for row in rows})
    most = max(Counter(panel for panel, _ in named).values()) + roofs
    panel_height = max(_PANEL_HEIGHT, _NAME_GAP * (most + 1))
    beside = max(_NAMES, _LEFT + _CHARACTER * max(len(text) for _, text in named))
    width = _LEFT + len(directions) * (_PANEL + beside)
    fitting = int((width - _LEFT) / _CHARACTER)
    about, notes = (textwrap.wrap(text, fitting) for text in (_about(rows), note))
    top = _TOP + _LINE * (1 + len(about) + len(notes))
    height = top + len(grids) * (panel_height + _BETWEEN) - _BETWEEN + _BOTTOM
    figure = Figure(figsize=(width, height))
    grid = figure.subplots(
        len(grids),
        len(directions),
        sharex=True,
        sharey=True,
        squeeze=False,
        gridspec_kw={
            "left": _LEFT / width,
            "right": 1 - beside / width,
            "top": 1 - top / height,
            "bottom": _BOTTOM / height,
            "wspace": beside / _PANEL,
            "hspace": _BETWEEN / panel_height,
        },
    )
    styled: list[tuple[str, dict[str, Any]]] = [(title, {"fontsize": 13, "weight": "bold"})]
    styled += [(text, {}) for text in about] + [(text, {"color": "#555555"}) for text in notes]
    for line, (text, style) in enumerate(styled):
        figure.text(0.12 / width, 1 - (0.12 + _LINE * line) / height, text, va="top", **style)
    panels = []
    for axes, (name, direction) in zip(
        grid.flat, ((name, direction) for name in grids for direction in directions), strict=True
    ):
        axes.set_title(f"{direction}, {_grid(name)}")
        axes.grid(True, which="major")
        axes.tick_params(labelbottom=True, labelleft=True, which="both", color="#888888")
        panels.append((axes, [row for row in rows if row.grid == name and row.direction == direction]))
    return figure, panels


def _grid(name: str) -> str:
    if name == cases.NO_GRID:
        return "no grid, or one of its own"
    return f"a filter's grid of {name}" if name.startswith("sigma") else f"grid {name}"


def _about(rows: Sequence[Row]) -> str:
    """Device, type, guide and versions, and what is dashed."""
    measured = [row for row in rows if row.measured]
    measured = [row for row in measured if row.implementation == OURS] or measured or list(rows)
    guides = {row.guide for row in rows} - {"none"}
    guide = {"photograph": "photographic guide", "random": "random guide"}.get("".join(guides), "no guide")
    versions = {
        f"Python {r.python}, torch {r.torch}, {r.backend} {getattr(r, r.backend, '')}".strip(): 0 for r in measured
    }
    about = f"{measured[0].device} · {measured[0].dtype} · {guide} · {'; '.join(versions)}"
    predicted = dict.fromkeys(row.device for row in rows if not row.measured)
    return f"{about} · dashed: predicted for {', '.join(predicted)}, not measured" if predicted else about


def _throughput(rows: Sequence[Row]) -> Figure | None:
    """The bytes that must move, over the time, as a share of the bytes per second of a copy."""
    from matplotlib.ticker import NullLocator

    rows = [row for row in rows if row.height]
    if not rows:
        return None
    figure, panels = _panels(
        "Throughput against resolution",
        "The bytes that an operator must move, each once, over its time, as a share of what a copy moves on that device. Bands reach from the quantile 0.2 to 0.8.",
        rows,
        lambda row: _Series.of(row).name,
    )
    measured = [row for row in rows if row.measured] or rows
    copied = median(row.copy_bytes_per_s for row in measured)
    sizes = sorted({(row.height, row.width) for row in rows}, key=lambda size: (math.prod(size), size))
    labels: dict[int, str] = {}
    for size in sizes:
        labels[math.prod(size)] = ", ".join(filter(None, (labels.get(math.prod(size)), _size(size))))
    least, most = (end(row.fraction_of_copy for row in rows) for end in (min, max))
    left, right = 0.8 * math.prod(sizes[0]), 1.25 * math.prod(sizes[-1])
    places = [_PANEL * math.log(pixels / left) / math.log(right / left) for pixels in labels]
    ticks = list(labels), staggered(places, list(labels.values()))
    for axes, shown in panels:
        axes.set_xscale("log")
        axes.set_xlim(left, right)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(*ticks)
        _log_scale(axes, "y", 0.7 * least, max(1.6, 1.3 * most), lambda share: f"{100 * share:g} %")
        axes.set_ylabel("throughput, of a copy's")
        axes.axhline(1, color=_INK, linewidth=1.2)
        names = [(right, 1.0, f"a copy: {_si(copied)}B/s", _INK)]
        for series, line in _series(shown).items():
            color, mark = series.look
            x = [row.height * row.width for row in line]
            y = [row.fraction_of_copy for row in line]
            hollow = series.line != "solid"
            axes.plot(x, y, color=color, marker=mark, markersize=5, linewidth=1.4, linestyle=series.line, markerfacecolor="white" if hollow else color)  # fmt: skip
            slow, fast = ([row.fraction_of_copy * row.median_s / q for row, q in zip(line, qs, strict=True)] for qs in ([row.q80_s for row in line], [row.q20_s for row in line]))  # fmt: skip
            axes.fill_between(x, slow, fast, color=color, alpha=0.13, linewidth=0)
            names.append((x[-1], y[-1], series.name, color))
        _name(axes, names)
    return figure


def _roofline(rows: Sequence[Row]) -> Figure | None:
    """Arithmetic against its intensity, under what the copy and the matrix product allow, each operator on its largest image."""
    largest = {
        (_Series.of(row), row.grid, row.direction): row for row in sorted(rows, key=lambda r: r.height * r.width)
    }
    marks = list(largest.values())
    sizes = Counter((row.height, row.width) for row in marks if row.height)
    usual = max(sizes, key=lambda size: (sizes[size], math.prod(size)), default=None)

    def label(row: Row) -> str:
        size = (row.height, row.width)
        return _Series.of(row).name + (f", {_size(size)}" if row.height and size != usual else "")

    figure, panels = _panels(
        f"Roofline, images of {_size(usual)}" if usual else "Roofline",
        "Additions and multiplications of the formulas over the bytes that must move. Under the slope memory is the limit, under the level arithmetic.",
        marks,
        label,
    )
    roofs: dict[str, list[Row]] = {}
    for row in rows:
        roofs.setdefault(row.device, []).append(row)
    ridge = max(row.peak_flops_per_s / row.copy_bytes_per_s for row in rows)
    low = 0.5 * min(row.flops / row.bytes for row in marks)
    high = 4 * max(ridge, *(row.flops / row.bytes for row in marks))
    reached = [row.flops / row.median_s for row in marks]
    top = max(3 * max(row.peak_flops_per_s for row in rows), 1.3 * max(reached))
    for axes, shown in panels:
        _log_scale(axes, "x", low, high, lambda value: f"{value:g}")
        _log_scale(axes, "y", 0.5 * min(reached), top, lambda value: _si(value).strip())
        axes.set_xlabel("arithmetic intensity, FLOP a byte")
        axes.set_ylabel("FLOP/s")
        names = []
        for device, of_device in roofs.items():
            copied, peak = (
                median(getattr(r, name) for r in of_device) for name in ("copy_bytes_per_s", "peak_flops_per_s")
            )
            whose, style = ("", "solid") if of_device[0].measured else (f"{device}: ", "dashed")
            axes.plot(
                [low, peak / copied, high], [low * copied, peak, peak], color=_INK, linewidth=1.2, linestyle=style
            )
            names.append((high, peak, f"{whose}copy {_si(copied)}B/s, float32 {_si(peak)}FLOP/s", _INK))
        for row in shown:
            series = _Series.of(row)
            color, mark = series.look
            hollow = series.line != "solid"
            x, y = row.flops / row.bytes, row.flops / row.median_s
            axes.plot(x, y, mark, color=color, markersize=7, markerfacecolor="white" if hollow else color, zorder=3)
            names.append((x, y, label(row), color))
        _name(axes, names)
    return figure


def _log_scale(axes: Axes, which: Literal["x", "y"], low: float, high: float, label: Callable[[float], str]) -> None:
    """A logarithmic axis, labelled at the powers of ten; where it shows but one or two of them, at 2 and 5 times these too."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set(**{f"{which}scale": "log", f"{which}lim": (low, high)})
    axis = axes.xaxis if which == "x" else axes.yaxis
    if high / low < _FEW_DECADES:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: label(value)))
    axis.set_minor_formatter(NullFormatter())


def _name(axes: Axes, names: Sequence[tuple[float, float, str, str]]) -> None:
    """Writes each name at the panel's right, as near to the height of its point (x, y) as the others let it, with a thin line to the point in its colour."""
    to_panel = axes.transData + axes.transAxes.inverted()
    ordered = sorted(names, key=lambda name: name[1])
    gap = _NAME_GAP * axes.figure.dpi / axes.bbox.height  # type: ignore[union-attr]
    heights = spread([to_panel.transform((x, y))[1] for x, y, _, _ in ordered], gap, (0.02, 1.0))
    for (x, y, text, color), height in zip(ordered, heights, strict=True):
        axes.annotate(
            text,
            (x, y),
            (1.06, height),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": color,
                "linewidth": 0.7,
                "relpos": (0, 0.5),
                "shrinkA": 1,
                "shrinkB": 3,
            },
        )


def spread(wanted: Sequence[float], gap: float, within: tuple[float, float]) -> list[float]:
    """The places nearest to ``wanted``, which ascend, that are at least ``gap`` apart and ``within`` its ends while these hold them all.

    The least sum of squared moves, by pooling neighbours.
    """
    pools: list[list[float]] = []
    for number, place in enumerate(wanted):
        pools.append([place - number * gap])
        while len(pools) > 1 and _mean(pools[-2]) > _mean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    low, high = within[0], within[1] - (len(wanted) - 1) * gap
    level = [max(min(_mean(pool), high), low) for pool in pools for _ in pool]
    return [place + number * gap for number, place in enumerate(level)]


def staggered(places: Sequence[float], labels: Sequence[str]) -> list[str]:
    """Labels that are centred at ``places``, which ascend, each moved down by as many lines as it would meet the one before it."""
    ends: list[float] = []
    lines = []
    for place, label in zip(places, labels, strict=True):
        half = _CHARACTER * (len(label) + 2) / 2
        line = next((number for number, end in enumerate(ends) if end <= place - half), len(ends))
        ends[line : line + 1] = [place + half]
        lines.append("\n" * line + label)
    return lines


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _size(size: tuple[int, int]) -> str:
    name = _SIZES.get(size, f"{size[0]}x{size[1]}")
    return f"{name}²" if name.isdigit() else name


def _si(value: float) -> str:
    """Three digits and a prefix: ``18.2 G``."""
    power = max(math.floor(math.log10(value) / 3), 0) if value > 0 else 0
    return f"{value / 1000**power:.3g} {['', 'k', 'M', 'G', 'T', 'P'][power]}"
