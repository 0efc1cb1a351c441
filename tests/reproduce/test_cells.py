"""Cells of three lines, in three forms."""

import csv
import dataclasses
import io

from pdrec_jax.reproduce.cells import (
    Cell,
    Gain,
    Row,
    Table,
    comma_separated,
    latex,
    markdown,
    write,
)

TABLE = Table(
    "Table 1",
    "strict",
    "seeds 0 to 1",
    "real",
    ("N@10", "AUC"),
    [
        Row("toy", "SASRec", [Cell(0.2020, 0.2313, 0.0012), Cell(None, 0.5783)]),
        Row("toy", "A_B", [Cell(0.2286), Cell()]),
        Row("game", "SASRec", [Cell(), Cell()]),
    ],
    ["A note."],
)


GAINING = dataclasses.replace(
    TABLE,
    rows=[
        *TABLE.rows[:1],
        Row("toy", "SASRec+HBR", [Cell(None, 0.24, gain=Gain(0.0087, 0.0004, 0.0312)), Cell()]),
        *TABLE.rows[2:],
        Row("game", "A_B", [Cell(), Cell(gain=Gain(-0.001, float("nan"), 1.0))]),
    ],
)


def test_difference_and_flag():
    assert Cell(0.2, 0.20404).difference == 0.004
    assert str(Cell(0.2, 0.19999).difference) == "0.0"
    assert not Cell(0.2, 0.204).flagged
    assert not Cell(0.2, 0.20404).flagged  # which is shown as +0.0040
    assert Cell(0.2, 0.2041).flagged
    assert Cell(0.2, 0.1959).flagged
    assert not Cell(None, 0.1).flagged
    assert Cell(0.2).difference is None


def test_markdown():
    lines = markdown(TABLE).splitlines()
    assert lines[0] == "# Table 1 | protocol strict | seeds 0 to 1"
    assert "A note." in lines
    assert "| SASRec | 0.2020<br>0.2313 ± 0.0012<br>+0.0293 ! | <br>0.5783<br> |" in lines
    assert "| A_B | 0.2286<br><br> |  |" in lines
    assert "| SASRec |  |  |" in lines
    assert [line for line in lines if line.startswith("## ")] == ["## toy", "## game"]


def test_comma_separated():
    rows = list(csv.DictReader(io.StringIO(comma_separated(TABLE))))
    assert len(rows) == 6
    assert rows[0] == {
        "dataset": "toy", "model": "SASRec", "column": "N@10", "paper": "0.202",
        "ours": "0.2313", "deviation": "0.0012", "difference": "0.0293", "flagged": "true",
        "gain": "", "p_users": "", "p_seeds": "",
        "protocol": "strict", "seeds": "seeds 0 to 1", "data": "real",
    }  # fmt: skip
    assert rows[2]["paper"] == "0.2286"
    assert rows[2]["ours"] == rows[2]["difference"] == rows[2]["flagged"] == ""


def test_gains():
    lines = markdown(GAINING).splitlines()
    assert lines.count("| gain over the base | N@10 | AUC |") == 2
    assert "| SASRec+HBR | +0.0087<br>p <.001<br>p .031 |  |" in lines
    assert lines[-1] == "| A_B |  | -0.0010<br>p -<br>p 1.000 |"
    assert "gain over the base" not in markdown(TABLE)
    rows = list(csv.DictReader(io.StringIO(comma_separated(GAINING))))
    assert [rows[2][name] for name in ("gain", "p_users", "p_seeds")] == [
        "0.0087",
        "0.0004",
        "0.0312",
    ]
    assert [rows[-1][name] for name in ("gain", "p_users", "p_seeds")] == ["-0.001", "", "1.0"]
    first, second = latex(GAINING).split("\n\n")
    assert "gain over the base" not in first
    assert r"toy & SASRec+HBR & \shortstack[r]{+0.0087\\p \textless{}.001\\p .031} &  \\" in second
    assert second.count(r"\midrule") == 2
    assert "\n\n" not in latex(TABLE)


def test_latex():
    lines = latex(TABLE).splitlines()
    assert (
        r"toy & SASRec & \shortstack[r]{0.2020\\0.2313 $\pm$ 0.0012\\+0.0293 !} & "
        r"\shortstack[r]{\\0.5783\\} \\" in lines
    )
    assert r" & A\_B & \shortstack[r]{0.2286\\\\} &  \\" in lines
    assert lines.count(r"\midrule") == 2
    assert lines[-1] == r"\end{tabular}"


def test_simulated_data_is_said_in_every_form():
    table = dataclasses.replace(TABLE, source="simulated")
    assert markdown(table).startswith("# SIMULATED DATA | Table 1 | ")
    cells = csv.DictReader(io.StringIO(comma_separated(table)))
    assert {row["data"] for row in cells} == {"simulated"}
    lines = latex(table).splitlines()
    said = r"\multicolumn{4}{l}{SIMULATED DATA | Table 1 | protocol strict | seeds 0 to 1} \\"
    said = said.replace("|", r"\textbar{}")
    assert lines[lines.index(r"\toprule") + 1] == said


def test_odd_names():
    rows = [Row("t^y|<", "br>\\~", [Cell(), Cell()])]
    table = dataclasses.replace(TABLE, rows=rows)
    assert "| br>" in markdown(table)
    assert (
        r"t\textasciicircum{}y\textbar{}\textless{} & "
        r"br\textgreater{}\textbackslash{}\textasciitilde{} &"
    ) in latex(table)


def test_whole_numbers():
    table = dataclasses.replace(TABLE, rows=[Row("toy", "log", [Cell(ours=7.0, decimals=0)])])
    table = dataclasses.replace(table, columns=("users",))
    assert ",7,," in comma_separated(table)
    assert Cell(ours=37868.0, decimals=0).lines("±") == ["", "37,868", ""]
    # The paper's tolerance is one of metrics.
    cell = Cell(37868.0, 36868.0, decimals=0)
    assert (cell.lines("±"), cell.flagged) == (["37,868", "36,868", "-1,000"], False)
    table = dataclasses.replace(table, rows=[Row("toy", "log", [cell])])
    assert ",37868,36868,,-1000,,,,,strict" in comma_separated(table)


def test_files(tmp_path):
    files = write(TABLE, tmp_path / "new", "table1")
    assert [file.name for file in files] == ["table1.md", "table1.csv", "table1.tex"]
    assert all(file.read_text() for file in files)
    assert len(list((tmp_path / "new").iterdir())) == 3
