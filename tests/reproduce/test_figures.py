"""What a figure shows of a table."""

import numpy as np
import pytest
from matplotlib.axes import Axes

from pdrec_jax.reproduce.cells import Cell, Point, Row, Table
from pdrec_jax.reproduce.figures import draw


@pytest.fixture
def curves(monkeypatch) -> dict[str, list[tuple[str, float]]]:
    """The curves that are drawn, by their names in the legend."""
    drawn: dict[str, list[tuple[str, float]]] = {}
    real = Axes.errorbar

    def errorbar(self, x, y, *rest, label="", **more):
        drawn.setdefault(label, []).extend(zip(*map(np.atleast_1d, (x, y)), strict=True))
        return real(self, x, y, *rest, label=label, **more)

    monkeypatch.setattr(Axes, "errorbar", errorbar)
    return drawn


def swept(field: str, value: str, curve: str, ours: float | None) -> Row:
    return Row("toy", "a name", [Cell(ours=ours)], Point(field, value, curve))


def test_a_curve_for_each_field_and_variant(curves, tmp_path) -> None:
    rows = [
        swept("hbr.clip", "1.0", "base", 0.1),
        swept("hbr.clip", "1.0", "hbr", 0.2),
        swept("hbr.clip", "2.0", "base", 0.1),
        swept("hbr.clip", "2.0", "hbr", 0.3),
        swept("hbr.clip", "3.0", "hbr", None),
        swept("dpa.fine", "1", "", 0.4),
    ]
    files = draw(
        Table("Sweep", "strict", "seed 0", "real", ("N@10",), rows), "N@10", tmp_path, "sweep"
    )
    assert [file.name for file in files] == ["sweep.png", "sweep.svg"]
    assert curves == {
        "hbr.clip (base)": [("hbr.clip\n1.0", 0.1), ("hbr.clip\n2.0", 0.1)],
        "hbr.clip (hbr)": [("hbr.clip\n1.0", 0.2), ("hbr.clip\n2.0", 0.3)],
        "dpa.fine": [("dpa.fine\n1", 0.4)],
    }


def test_models_that_are_no_curve(curves, tmp_path) -> None:
    rows = [Row("toy", "SASRec", [Cell(ours=0.1)]), Row("toy", "SASRec+HBR", [Cell(ours=0.2)])]
    assert (
        len(
            draw(
                Table("Figure 4", "strict", "seed 0", "real", ("N@10",), rows),
                "N@10",
                tmp_path,
                "figure4",
            )
        )
        == 2
    )
    assert curves == {"": [(0, 0.1), (1, 0.2)]}


def test_nothing_was_run(tmp_path) -> None:
    table = Table(
        "Sweep", "strict", "seed 0", "real", ("N@10",), [swept("hbr.clip", "1.0", "", None)]
    )
    (tmp_path / "sweep.png").touch()  # of runs that are gone
    assert draw(table, "N@10", tmp_path, "sweep") == []
    assert list(tmp_path.iterdir()) == []
