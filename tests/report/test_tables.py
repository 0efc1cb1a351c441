import math
from typing import Any

import pytest

from pdrec_jax.evaluation.metrics import CUTOFFS
from pdrec_jax.report import tables

Run = tuple[dict[str, Any], Any, Any]


def check_shape(text: str) -> list[str]:
    lines = text.split("\n")
    assert all(len(line) <= 100 for line in lines)
    assert all(line == line.rstrip() for line in lines)
    assert text.isascii()
    return lines


def test_the_table_of_a_real_run(run: Run) -> None:
    results = run[0]
    lines = check_shape(tables.results_table(results))
    assert lines[0] == "real data | toy | protocol strict | seed 0"
    assert lines[1] == (
        "7,996 users, 37,868 items, 114,487 events, 12 users with fewer than 3 events dropped"
    )
    assert lines[-1] == "Real data: amazon_toy.inter.gz (sha256 1fb495cd346d)"
    assert lines[-2] == "27 min 51 s in all, on cpu x1, peak memory 3.22 GiB"
    assert "SIMULATED" not in "\n".join(lines)
    heading = "model @1 @5 @10 paper @20 @50 @1 @5 @10 @20 @50 AUC MRR"
    assert [" ".join(line.split()) for line in lines].count(heading) == 1


@pytest.mark.parametrize("block", ["sampled", "full"])
def test_every_figure_stands_below_its_heading(run: Run, block: str) -> None:
    results = run[0]
    results["models"][1]["paper"] = {}
    lines = tables.results_table(results).split("\n")
    start = next(i for i, line in enumerate(lines) if line.lower().startswith(f"{block} ranking"))
    heading = lines[start + 2]
    for row, model in zip(lines[start + 3 : start + 6], results["models"], strict=True):
        assert row.startswith(model["name"].ljust(19))
        metrics = [f"NDCG@{k}" for k in CUTOFFS] + [f"HR@{k}" for k in CUTOFFS]
        figures = [f"{model[block][metric]:.4f}"[1:] for metric in [*metrics, "AUC", "MRR"]]
        if block == "sampled":
            paper = model["paper"].get("NDCG@10")
            figures.insert(3, f"{paper:.4f}"[1:] if paper else "-")
        assert row[19:].split() == figures
        ends = [
            i for i, sign in enumerate(heading) if sign != " " and heading[i + 1 : i + 2] in " "
        ]
        assert [i for i in range(19, len(row)) if row[i] != " " and row[i + 1 : i + 2] in " "] == (
            ends[1:]
        )


def test_simulated_data_is_labelled_first_and_last(simulated_run: Run) -> None:
    lines = check_shape(tables.results_table(simulated_run[0]))
    assert lines[0].startswith("SIMULATED DATA | toy")
    assert lines[-1].startswith("SIMULATED DATA")
    assert any("no real log was found" in line for line in lines)


def test_the_papers_figures_do_not_stand_beside_simulated_ones(simulated_run: Run) -> None:
    assert simulated_run[0]["models"][0]["paper"]
    assert "paper" not in tables.results_table(simulated_run[0])
    assert "paper" not in tables.markdown_table(simulated_run[0])


def test_an_unknown_source_is_not_called_real() -> None:
    assert tables.data_label({"data": {}}) == "DATA OF UNKNOWN SOURCE"
    assert tables.results_table({}).split("\n")[0].startswith("DATA OF UNKNOWN SOURCE")


def test_eight_models_with_long_names_fit(wide_run: Run) -> None:
    lines = check_shape(tables.results_table(wide_run[0]))
    at = lines.index("CL4SRec+HBR+NNS+DPA variant 5 of 5")
    assert lines[at + 1].startswith(" " * 19)
    assert len(lines[at + 1].split()) == 13


def test_long_texts_are_cut_or_wrapped(run: Run) -> None:
    results = run[0]
    results["name"] = "experiment " * 30
    results["device"] = "accelerator " * 30
    results["data"] |= {"note": "a long note " * 30}
    results["data"]["files"] *= 5
    results["models"][0]["name"] = "x" * 150
    lines = check_shape(tables.results_table(results))
    assert lines[0].startswith("real data | experiment")
    assert lines[0].endswith("... | protocol strict | seed 0")


def test_a_name_as_wide_as_its_column_stays_on_its_line(run: Run) -> None:
    run[0]["models"][0]["name"] = "CL4SRec+HBR+NNS+DPA"
    row = next(line for line in tables.results_table(run[0]).split("\n") if line.startswith("CL4"))
    assert row.startswith("CL4SRec+HBR+NNS+DPA  .")


@pytest.mark.parametrize("missing", [None, math.nan, math.inf])
def test_missing_figures_are_dashes(run: Run, missing: float | None) -> None:
    results = run[0]
    results["models"][0]["sampled"] = {"NDCG@10": missing, "AUC": 0.5}
    results["models"][0]["full"] = None
    results["models"][0]["paper"] = {}
    rows = [line for line in tables.results_table(results).split("\n") if line[:5] == "TI-Di"]
    assert rows[0].split() == ["TI-DiffRec", *"-" * 11, ".5000", "-"]
    assert rows[1].split() == ["TI-DiffRec", *"-" * 12]
    markdown = tables.markdown_table(results)
    assert f"| TI-DiffRec | {'- | ' * 11}0.5000 | - |" in markdown


def test_different_numbers_of_users_are_said(run: Run) -> None:
    results = run[0]
    assert "99 drawn items, 580 to 600 users" in tables.results_table(results)
    for model in results["models"]:
        model["users"] = 7159
    assert "99 drawn items, 7,159 users" in tables.results_table(results)
    for model in results["models"]:
        del model["users"]
    assert "99 drawn items\n" in tables.results_table(results)


@pytest.mark.parametrize("results", [{}, {"models": []}, {"models": None, "data": None}])
def test_nothing_evaluated(results: dict[str, Any]) -> None:
    lines = check_shape(tables.results_table(results))
    assert "No model has been evaluated." in lines
    assert tables.markdown_table(results) == "No model has been evaluated."


def test_markdown_marks_the_best_figure_of_a_column(run: Run) -> None:
    results = run[0]
    results["models"][0]["name"] = "a|b"
    for model, value in zip(results["models"], (0.5, 0.25, 0.5), strict=True):
        model["sampled"]["MRR"] = value
    sampled, full = (
        part.split("\n") for part in tables.markdown_table(results).split("\n\n") if part[0] == "|"
    )
    assert sampled[0].startswith("| model | NDCG@1 | NDCG@5 | NDCG@10 | paper's NDCG@10 | NDCG@20")
    assert full[0].startswith("| model | NDCG@1 | NDCG@5 | NDCG@10 | NDCG@20")
    assert sampled[2].startswith("| a\\|b | ")
    assert [row.endswith("**0.5000** |") for row in sampled[2:]] == [True, False, True]
    assert [row.endswith("0.2500 |") for row in sampled[2:]] == [False, True, False]
    assert {row.replace("\\|", "").count("|") for row in sampled} == {15}
    assert {row.replace("\\|", "").count("|") for row in full} == {14}


def test_a_single_model_has_no_best(run: Run) -> None:
    run[0]["models"] = run[0]["models"][:1]
    assert "**" not in tables.markdown_table(run[0])


@pytest.mark.parametrize(
    ("value", "short", "text"),
    [
        (0.18234, True, ".1823"),
        (0.18234, False, "0.1823"),
        (1.0, True, "1.000"),
        (0.99999, True, "1.000"),
        (0, True, ".0000"),
        (None, True, "-"),
        (math.nan, False, "-"),
    ],
)
def test_numbers(value: float | None, short: bool, text: str) -> None:
    assert tables.number(value, short) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.94, "59.9 s"), (59.96, "1 min 00 s"), (754, "12 min 34 s"),
     (3599.6, "1 h 00 min"), (3725, "1 h 02 min")],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert tables.duration(seconds) == text
