import errno
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pdrec_jax.errors import UserError
from pdrec_jax.report import plots
from pdrec_jax.report.report import is_written, write_report

Run = tuple[dict[str, Any], list[dict[str, Any]], dict[str, np.ndarray]]


@pytest.fixture
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes a second, and test_plots.py tests it."""
    monkeypatch.setattr(plots, "write_plots", lambda *_: [])


@pytest.mark.usefixtures("no_drawing")
def test_the_report_of_a_real_run(tmp_path: Path, run: Run) -> None:
    assert not is_written(tmp_path)
    (tmp_path / "config.json").write_text('{"seed": 0}\n')
    path = write_report(tmp_path, *run)
    assert path == tmp_path / "report.md"
    assert is_written(tmp_path)
    text = path.read_text()
    lines = text.rstrip("\n").split("\n")
    assert lines[0] == "# real data | toy | protocol strict | seed 0"
    assert lines[-1] == "**Real data: amazon_toy.inter.gz (sha256 1fb495cd346d)**"
    assert "sha256 1fb495cd346d1043" in text
    assert "| SASRec | 17 | 27 | " in text
    assert "| total | 27 min 51 s |" in text
    assert "| jax | 0.10.2 |" in text
    assert "| DPA: hit rate of the candidates | 0.0312 |" in text
    assert '```json\n{"seed": 0}\n```' in text
    assert "SIMULATED" not in text
    assert "\n\n\n" not in text


def test_links_are_relative_and_lead_somewhere(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "_DPI", 40)
    text = write_report(tmp_path, *run).read_text()
    links = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert len(links) == 4
    assert all((tmp_path / link).is_file() and not link.startswith("/") for link in links)
    assert str(tmp_path) not in text


@pytest.mark.usefixtures("no_drawing")
def test_simulated_data_is_labelled_first_and_last(tmp_path: Path, simulated_run: Run) -> None:
    lines = write_report(tmp_path, *simulated_run).read_text().rstrip("\n").split("\n")
    assert "SIMULATED DATA" in lines[0]
    assert "SIMULATED DATA" in lines[-1]
    assert any("no real log was found" in line for line in lines)


def test_without_matplotlib_the_report_says_how_to_get_it(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    text = write_report(tmp_path, *run).read_text()
    assert "pip install '.[plots]'" in text
    assert "![" not in text
    assert "## Results" in text
    assert [path.name for path in tmp_path.iterdir()] == ["report.md"]
    assert is_written(tmp_path)
    monkeypatch.undo()
    assert not is_written(tmp_path)  # now it can have its plots


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize("without", ["plugins", "models", "times", "data", "versions", "name"])
def test_a_missing_part_is_left_out(tmp_path: Path, run: Run, without: str) -> None:
    results, lines, per_user = run
    del results[without]
    text = write_report(tmp_path, results, lines, per_user).read_text()
    assert ("## Plugins" in text) is (without != "plugins")
    assert ("## Training" in text) is (without != "models")


@pytest.mark.usefixtures("no_drawing")
def test_an_empty_run_has_a_report(tmp_path: Path) -> None:
    text = write_report(tmp_path / "new", {}, [], None).read_text()
    assert text.startswith("# DATA OF UNKNOWN SOURCE")
    assert "No model has been evaluated." in text
    assert "## Plots" not in text


@pytest.mark.usefixtures("no_drawing")
def test_missing_metrics_are_dashes(tmp_path: Path, run: Run) -> None:
    results, lines, per_user = run
    results["models"][0] |= {"validation": None, "best_epoch": None, "sampled": {}}
    text = write_report(tmp_path, results, lines, per_user).read_text()
    assert "| TI-DiffRec | - | 60 | - | - | 580 |" in text


def test_a_full_disk_leaves_the_old_report(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "report.md").write_text("old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match="disk full"):
        write_report(tmp_path, *run)
    assert (tmp_path / "report.md").read_text() == "old"
    assert not list(tmp_path.rglob("*.tmp"))
