"""Rows in their files, and the plots that are drawn of them."""

from __future__ import annotations

import itertools
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perf import cases, plots, rows, sweep
from tests.measured import a_row

needs_matplotlib = pytest.mark.skipif(find_spec("matplotlib") is None, reason="needs matplotlib")


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", "no csv", ",".join(rows.COLUMNS) + "\n" + "x," * 26 + "x\n"])
def test_files_that_hold_no_rows_are_refused(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(content)
    assert sweep.main(["--plot", str(path)]) == 2
    assert str(path) in capsys.readouterr().err
    if content:
        with pytest.raises(rows.RowsError):
            rows.RowFile(path)
        assert path.read_text() == content


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    file = rows.RowFile(tmp_path / "rows.csv")
    written = [a_row(device='a "fast", GPU'), a_row(operator="slice", grid="sigma8")]
    for row in written:
        file.add(row)
    assert rows.read(file.path) == written == rows.RowFile(file.path).rows


@needs_matplotlib
def test_peers_and_predictions_are_drawn_beside_ours(tmp_path: Path) -> None:
    peer = a_row(implementation="fused-bilagrid", median_s=0.1)
    predicted = a_row(implementation=rows.PREDICTED, device="H100", repeats=0, median_s=2e-5, copy_bytes_per_s=3e12)
    written = plots.draw([a_row(), a_row(height=256, width=256), peer, predicted], tmp_path)
    assert len(written) == 4
    for path in written:
        if path.suffix == ".svg":
            text = path.read_text()
            for name in ("slice_apply -->", "slice_apply, fused-bilagrid -->", "slice_apply, H100 predicted -->"):
                assert name in text
    written = plots.draw([a_row(), a_row(device="another CPU")], tmp_path)
    assert len({path.name for path in written}) == 8


def texts_of(kind: str, drawn: list[rows.Row]) -> list[str]:
    """What is written in a figure, all of it inside and none on another."""
    from matplotlib import rc_context
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    with rc_context(plots._SETTINGS):
        figure = {"throughput": plots._throughput, "roofline": plots._roofline}[kind](drawn)
        assert figure is not None
        figure.draw_without_rendering()
    texts = [*figure.texts]
    for axes in figure.axes:
        xs, ys = axes.get_xticklabels(which="both"), axes.get_yticklabels(which="both")
        ticks = [tick for tick in xs if axes.viewLim.containsx(tick.get_position()[0])]
        ticks += [tick for tick in ys if axes.viewLim.containsy(tick.get_position()[1])]
        texts += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts, *ticks]
    texts = [text for text in texts if text.get_text()]
    places = {}
    for text in texts:
        place = Text.get_window_extent(text)
        lines = text.get_text().split("\n")
        # Of a label that was moved down, the line that it was moved to.
        places[text] = Bbox.from_extents(place.x0, place.y0, place.x1, place.y0 + place.height / len(lines))
    for text, place in places.items():
        assert figure.bbox.containsx(place.x0), text
        assert figure.bbox.containsx(place.x1), text
        assert figure.bbox.containsy(place.y0), text
        assert figure.bbox.containsy(place.y1), text
    for (one, first), (other, second) in itertools.combinations(places.items(), 2):
        assert Bbox.intersection(first.padded(-1), second.padded(-1)) is None, f"{one} lies on {other}"
    return [text.get_text() for text in texts]


@needs_matplotlib
@pytest.mark.parametrize("directions", [cases.DIRECTIONS, cases.DIRECTIONS[:1]])
@pytest.mark.parametrize("kind", ["throughput", "roofline"])
def test_no_text_of_a_crowded_plot_lies_on_another(kind: str, directions: tuple[str, ...]) -> None:
    sizes = [(256, 256), (1080, 1920), (1536, 2560), (2160, 3840), (3000, 4000)]
    drawn = []
    for direction, grid in itertools.product(directions, ("16x16x8", "sigma8")):
        for operator, (height, width) in itertools.product(cases.OPERATORS[:9], sizes):
            ours = a_row(operator=operator, direction=direction, grid=grid, height=height, width=width)
            drawn += [ours, replace(ours, implementation=rows.PREDICTED, device="RTX4090", repeats=0, median_s=1e-4)]
        other = "fused_bilagrid-irregular"
        drawn.append(
            a_row(operator="slice_apply_luma", direction=direction, grid=grid, height=840, implementation=other)
        )

    assert len(texts_of(kind, drawn)) > 40 * len(directions)


@needs_matplotlib
@pytest.mark.parametrize("kind", ["throughput", "roofline"])
def test_axes_of_unusual_rows_can_be_read(kind: str) -> None:
    # One mark alone, a speed far below a copy's, one far above the roof, sizes of as many pixels.
    few = texts_of(kind, [a_row(median_s=0.006)])
    assert {"throughput": {"100 %"}, "roofline": {"20", "50 G"}}[kind] < set(few), "an axis of less than a decade"
    drawn = [a_row(height=1, width=1, median_s=2e4), a_row(flops=10**12), a_row(), a_row(height=1920, width=1080)]
    found = texts_of(kind, drawn)
    if kind == "throughput":
        assert {"0.0001 %", "1080p, 1920x1080"} < set(found)
    assert not [text for text in (*few, *found) if "math" in text], "labels that matplotlib chose"


@needs_matplotlib
def test_no_mark_lies_outside_its_panel() -> None:
    figure = plots._roofline([a_row(flops=10**12), a_row(operator="slice")])
    assert figure is not None
    for axes in figure.axes:
        for line in axes.lines:
            assert axes.viewLim.containsy(line.get_ydata()[0])


@given(st.lists(st.floats(0, 1), max_size=12).map(sorted))
def test_names_keep_their_order_and_their_distance(wanted: list[float]) -> None:
    places = plots.spread(wanted, 0.05, (0.0, 1.0))
    for low, high in itertools.pairwise(places):
        assert high - low >= 0.05 - 1e-12
    for place in places:
        assert -1e-12 <= place <= 1 + 1e-12
    if all(high - low >= 0.05 for low, high in itertools.pairwise(wanted)):
        assert places == pytest.approx(wanted)
