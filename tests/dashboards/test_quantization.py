"""The picture of temporal errors: a line a method in both halves, and a file that is whole or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from fewstep.dashboards import quantization
from fewstep.dashboards.quantization import draw_temporal
from fewstep.errors import ConfigurationError, StorageError

METHODS = ("w4a8-naive-paper", "w4a8-tfmq-paper", "w4a8-tfmq-paper+tib=table")
TEXT = (
    "# command: fewstep quantization-table\n# seeds: {'report': 1000000}\nmethod,time,cosine,relative_error\n"
    + "".join(
        f"{method},{time},{1 - error},{error}\n"
        for error, method in ((0.1, METHODS[0]), (0.01, METHODS[1]), (0.0, METHODS[2]))
        for time in (999, 0, 500)
    )
)


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_a_picture_is_written_where_it_is_asked_for_and_is_the_same_every_time(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / f"temporal.{suffix}"
    assert draw_temporal(TEXT, path) == path
    first = path.read_bytes()
    assert draw_temporal(TEXT, path).read_bytes() == first
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_each_method_is_a_line_by_rising_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(quantization, "save_figure", lambda figure, path: drawn.append(figure) or path)
    draw_temporal(TEXT, tmp_path / "temporal.png")
    (figure,) = drawn
    left, right = figure.axes
    for axes in (left, right):
        assert [line.get_label() for line in axes.lines] == list(METHODS)
        assert all(list(line.get_xdata()) == [0, 500, 999] for line in axes.lines)
        assert axes.get_yscale() == "log"
    assert list(left.lines[0].get_ydata()) == pytest.approx([0.1] * 3)
    assert list(right.lines[1].get_ydata()) == pytest.approx([0.01] * 3)
    # No error at all is still a place on a logarithmic scale.
    assert min(right.lines[2].get_ydata()) > 0


def test_another_kind_of_file_and_a_place_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"temporal\.txt"):
        draw_temporal(TEXT, tmp_path / "temporal.txt")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        draw_temporal(TEXT, tmp_path / "file" / "temporal.png")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
