"""Growth with the size: the fit, the table, and what becomes of a size that fails."""

import json
import subprocess
from pathlib import Path

import pytest

from pdrec_jax.benchmark import growth


def report(seconds: float, size: int) -> dict:
    row = {"name": f"dense, {size} slots", "per_unit": {"median": seconds}, "peak_bytes": 2**30}
    return {
        "comparisons": [
            {"stage": "reverse", "title": "loop, 5 users", "unit": "user", "rows": [row]}
        ]
    }


@pytest.fixture
def fake(monkeypatch):
    """Stands in for the benchmark: time goes with the root of the size, and 900 and more fail."""
    calls = []

    def run(words, **_):
        calls.append(words)
        given = dict(word.removeprefix("--").split("=") for word in words[3:] if "=" in word)
        size = int(given["items"])
        if given.get("hidden") == "x":
            return subprocess.CompletedProcess(words, 2, "", "note\nerror: --hidden: no\n")
        if size == 901:
            said = "error: out of memory on the device (9 GiB)\n"
            return subprocess.CompletedProcess(words, 2, "", said)
        if size == 900:
            return subprocess.CompletedProcess(words, 137, "", "Killed")
        text = json.dumps(report(size**0.5, size))
        (Path(given["out"]) / "benchmark.json").write_text(text)
        return subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr(growth.subprocess, "run", run)
    return calls


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_a_power_is_recovered(power):
    points = {size: 3.0 * size**power for size in (10, 100, 1000)}
    assert growth.exponent(points) == pytest.approx(power, abs=1e-12)


def test_names_leave_sizes_out():
    """Thousands have a comma too, and what is ranked differs in a later part of the name."""
    found: growth.Growth = {}
    for size in (10_000, 1_000_000):
        rows = [
            {"name": name, "per_unit": {"median": 1.0}, "peak_bytes": 1}
            for name in ("CL4SRec, sampled", f"CL4SRec, full, {size:,} items")
        ]
        title = f"{size:,} items, 99 sampled negatives"
        comparison = {"stage": "evaluation", "title": title, "unit": "user", "rows": rows}
        growth.collect(found, size, {"comparisons": [comparison]})
    assert list(found) == [
        "evaluation: CL4SRec, sampled, a user",
        "evaluation: CL4SRec, full, a user",
    ]
    assert all(list(sizes) == [10_000, 1_000_000] for sizes in found.values())


def test_one_point_has_no_power():
    assert growth.exponent({10: 1.0}) is None
    assert growth.exponent({10: 1.0, 20: 0.0}) is None


def test_the_table(fake, capsys, tmp_path):
    sizes = "--sizes=100,400,900,901"
    words = ["--along=items", sizes, "--stages=reverse", f"--out={tmp_path}/g"]
    assert growth.main([*words, "--hidden=8"]) == 0
    assert [words[-1] for words in fake] == ["--hidden=8"] * 4
    assert all("--fast" in words for words in fake)
    *_, line = capsys.readouterr().out.strip().splitlines()
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        "reverse: loop, dense, a user",
        "1e+04 ms, 1,024 MiB",
        "2e+04 ms, 1,024 MiB",
        "",
        "",
        "items^0.50",
        "items^0.00",
    ]
    kept = json.loads((tmp_path / "g" / "growth.json").read_text())
    assert kept["reverse: loop, dense, a user"]["400"]["seconds"] == 20
    assert (tmp_path / "g" / "growth.md").read_text().strip().endswith(line.strip())


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--sizes=5"], "--sizes: two or more rising whole numbers"),
        (["--sizes=5,4"], "--sizes"),
        (["--sizes=a,b"], "--sizes"),
        (["--sizes=5,6", "--hidden=x"], "--hidden: no"),
    ],
)
def test_mistakes(fake, capsys, words, complaint):
    assert growth.main(["--along=items", "--stages=reverse", *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: {complaint}")
