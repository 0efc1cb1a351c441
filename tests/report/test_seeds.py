"""The table and the report of several seeds."""

import pytest

from pdrec_jax.report.seeds import seeds_table, write_seeds_report


@pytest.fixture
def results():
    figures = {"NDCG@10": 0.2313, "AUC": 0.5783}
    comparison = {
        "key": "sasrec+hbr", "base": "sasrec", "block": "sampled", "metric": "NDCG@10",
        "difference": -0.0021, "low": -0.0042, "high": 0.0001, "p_users": 0.01, "p_seeds": None,
        "p_users_holm": 0.02, "p_seeds_holm": None,
    }  # fmt: skip
    return {
        "name": "toy", "protocol": "strict", "seed": 0, "seeds": [0, 1, 2],
        "data": {"source": "real", "files": []},
        "models": [
            {"key": "sasrec", "name": "SASRec", "users": 9, "sampled": figures,
             "deviation": {"sampled": {"NDCG@10": 0.0012}}},
            {"key": "sasrec+hbr", "name": "SASRec+HBR", "users": 9, "sampled": figures},
        ],
        "comparisons": [
            comparison,
            {**comparison, "metric": "AUC", "difference": 0.02, "p_users_holm": 0.0004},
        ],
    }  # fmt: skip


def test_table(results):
    lines = seeds_table(results).splitlines()
    assert lines[0] == "real data | toy | protocol strict | seeds 0 to 2"
    place, _ = (i for i, line in enumerate(lines) if line.startswith("SASRec   "))
    assert ".2313" in lines[place]
    assert lines[place + 1].split() == ["+-", "-", "-", ".0012", *["-"] * 9]
    begin = lines.index("SASRec+HBR less SASRec")
    rows = [line.split() for line in lines[begin + 1 :]]
    assert rows[0] == ["N@10", "AUC"]
    assert rows[1] == ["gain", "-.0021", "+.0200"]
    assert rows[4] == ["p,", "users", ".020*", "<.001*"]
    assert rows[5] == ["p,", "seeds", "-", "-"]
    assert max(map(len, lines)) <= 100


def test_without_comparisons(results):
    assert "gains over" not in seeds_table({**results, "comparisons": []})


def test_deviations_are_never_the_best(results, tmp_path):
    small = {"key": "a", "name": "A", "full": {"NDCG@1": 0.0004, "NDCG@5": 0.0002},
             "deviation": {"full": {"NDCG@1": 0.0006, "NDCG@5": 0.0001}}}  # fmt: skip
    text = write_seeds_report(
        tmp_path / "run", {**results, "models": [small], "comparisons": []}
    ).read_text()
    assert "**0" not in text
    large = {**small, "key": "b", "name": "B", "full": {"NDCG@1": 0.0003, "NDCG@5": 0.0005}}
    both = {**results, "models": [small, large], "comparisons": []}
    text = write_seeds_report(tmp_path / "run", both).read_text()
    bold = {line.split(" | ")[0]: line.count("**0") for line in text.splitlines() if "**0" in line}
    assert bold == {"| A": 1, "| B": 1}


def test_report(results, tmp_path):
    text = write_seeds_report(tmp_path / "run", results).read_text()
    assert text.startswith("# real data | toy | protocol strict | seeds 0 to 2\n")
    assert "[1](seed-1/report.md)" in text
    assert "| SASRec+HBR less SASRec: p, users | .020* | <.001* |" in text
    assert "Holm-corrected over the 2 comparisons of the ranking; * below" in text
    assert text.endswith("**Real data**\n")


def test_the_note_counts_tests_that_were_made(results):
    """Where all seeds differ alike there is none over seeds."""
    pair = zip(results["comparisons"], (None, 0.03), strict=False)
    made = [{**each, "p_seeds_holm": value} for each, value in pair]
    table = seeds_table({**results, "comparisons": made})
    words = " ".join(table.split())
    assert "over the 2 comparisons of the ranking, over the 1 of them where seeds differ;" in words
