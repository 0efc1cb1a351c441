"""What variants gain over their bases, in a table: one family of comparisons."""

import csv
from pathlib import Path

import pytest


def comparison(key: str, metric: str, p_users: float, p_seeds: float | None, block="sampled"):
    return {
        "key": key, "base": "sasrec", "block": block, "metric": metric, "difference": 0.01,
        "p_users": p_users, "p_seeds": p_seeds, "p_users_holm": 0.5, "p_seeds_holm": 0.5,
    }  # fmt: skip


def test_p_values_are_corrected_over_the_table(reproduce, runs, real_log):
    runs.comparisons = [
        comparison("sasrec+hbr", "NDCG@10", 0.01, None),
        comparison("sasrec+hbr+nns", "AUC", 0.02, 0.2),
        # No gains of this table: another ranking, and a metric that it does not show.
        comparison("sasrec+hbr", "NDCG@10", 1e-9, 1e-9, "full"),
        comparison("sasrec+hbr", "MRR", 1e-9, 1e-9),
    ]
    Path("configs/other.py").write_text(Path("configs/toy.py").read_text())
    flags = ("--table=1", "--encoders=sasrec", "--seeds=2", "--share-diffusion", real_log)
    done = reproduce(*flags, "--datasets=toy,other", "--config.data.target=amazon_toy.csv")
    assert (done.status, done.err) == (0, "")
    (file,) = Path("runs/reproduce/strict").glob("*.csv")
    rows = [row for row in csv.DictReader(file.read_text().splitlines()) if row["gain"]]
    found = {
        (row["dataset"], row["model"], row["column"]): (row["p_users"], row["p_seeds"])
        for row in rows
    }
    # Four of each: the smallest counts four times, the next likewise, and none is below another.
    assert {each[0] for each in found} == {"toy", "other"}
    for (_, model, column), (p_users, p_seeds) in found.items():
        of_hbr = (model, column) == ("SASRec+HBR", "N@10")
        assert of_hbr or (model, column) == ("SASRec+HBR+NNS", "AUC")
        assert float(p_users) == pytest.approx(0.04)
        assert p_seeds == "" if of_hbr else float(p_seeds) == pytest.approx(0.4)
    text = file.with_suffix(".md").read_text()
    assert "each corrected (Holm) over the 4 gains of this table" in text
    assert text.count("gain over the base") == 2


def test_a_table_of_one_seed_has_none(reproduce, runs, real_log):
    assert reproduce("--table=1", "--encoders=sasrec", real_log).status == 0
    (file,) = Path("runs/reproduce/strict").glob("*.md")
    assert "gain" not in file.read_text()
