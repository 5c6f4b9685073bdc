"""Tables of figures: a row for each picture or scene, its name first."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import numpy as np

Row = dict[str, str | float]


def with_means(rows: Sequence[Row]) -> list[Row]:
    """The rows, followed by one with the mean of each column."""
    label, *columns = rows[0]
    means: Row = {label: "mean"}
    means |= {name: float(np.mean([float(row[name]) for row in rows])) for name in columns}
    return [*rows, means]


def render(rows: Sequence[Row]) -> str:
    """The table as text for a terminal: SSIM with four decimals, decibels with two."""
    label, *columns = rows[0]
    first, wide = max(len(str(row[label])) for row in rows), max(map(len, columns))
    lines = [" " * first + "".join(f"  {name:>{wide}}" for name in columns)]
    for row in rows:
        figures = (f"{row[name]:.{4 if name.lower().startswith('ssim') else 2}f}" for name in columns)
        lines.append(f"{row[label]:<{first}}" + "".join(f"  {figure:>{wide}}" for figure in figures))
    return "\n".join(lines)


def as_csv(rows: Sequence[Row]) -> bytes:
    """The table as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: f"{value:.5f}" if isinstance(value, float) else value for name, value in row.items()} for row in rows)  # fmt: skip
    return text.getvalue().encode()
