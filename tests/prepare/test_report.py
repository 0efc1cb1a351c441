"""The report says what was done, in lines that fit a terminal, and warns of what matters alone."""

import dataclasses
from pathlib import Path

import pytest

from pdrec_jax.prepare.figures import Figures
from pdrec_jax.prepare.report import report, warnings

GOOD = Figures(
    users=1000,
    items=500,
    records=9000,
    density=0.018,
    shortest=3,
    median=8.0,
    mean=9.0,
    high=40,
    longest=90,
    widest=80,
    short_users=0,
    lone_users=0,
    single_items=4,
    repeats=2,
    first_time=0.0,
    last_time=86_400.0,
    ties=0.0,
    tied_ends=0.0,
    cold_tests=0.0,
    order=20.0,
)


def test_a_good_log_has_no_warnings() -> None:
    assert warnings(GOOD, times=True) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tied_ends": 0.5}, "50.0 % of the users have their last two records at the same time"),
        ({"order": 1.0}, "carries no signal"),
        ({"order": -2.0}, "carries no signal"),
        ({"order": -137.0}, "less often than after a shuffle (137.0 standard deviations)"),
        ({"order": None}, "too few records to tell"),
        ({"cold_tests": 0.3}, "30.0 % of the test items occur in no training part"),
        ({"short_users": 5}, "5 users have fewer than 3 records"),
        ({"lone_users": 5}, "5 users have 3 records, of which one is left to learn from"),
        ({"users": 90}, "fewer than 100 users"),
        ({"items": 50, "widest": 20}, "50 items: so small a catalogue"),
        ({"last_time": 0.0}, "all times are equal"),
        ({"widest": 310}, "a user has 310 of the 500 items: every user is ranked among fewer"),
        ({"widest": 499}, "a user has 499 of the 500 items: nothing is left"),
    ],
)
def test_each_warning(change, words) -> None:
    (found,) = warnings(dataclasses.replace(GOOD, **change), times=True)
    assert words in found
    assert "\n" not in found


def test_the_command_can_be_copied() -> None:
    out = Path("data/my log (1)")
    text = report(
        files=["a"], read=1, unit="", dropped={}, figures=GOOD, warnings=(), settings={}, out=out
    )
    assert text.endswith("--config.data.path='data/my log (1)'\n")


def test_text() -> None:
    text = report(
        files=["a.csv", "b.csv"],
        read=9100,
        unit="ms",
        dropped={"equal to an earlier record": 100},
        figures=GOOD,
        warnings=[],
        settings={"dpa.coarse": 3, "diffusion.hidden": (256,)},
        out=Path("data/mine"),
    )
    assert text.splitlines() == [
        "Read: 9,100 rows of a.csv, b.csv",
        "Times: milliseconds, UTC where they name no zone",
        "",
        "Dropped:",
        "           100  equal to an earlier record",
        "",
        "Left:",
        "  users                                 1,000",
        "  items                                 500",
        "  records                               9,000",
        "  density                               1.8000 %",
        "  records a user                        3 to 90, median 8, mean 9.0, 99 % up to 40",
        "  items with one record                 4",
        "  a user's repeats of an item           2",
        "  test items in no training part        0.0 %",
        "  time                                  1970-01-01 to 1970-01-02",
        "  at the time of the record before      0.0 %",
        "  users whose last two records tie      0.0 %",
        "  shuffle test                          20.0 standard deviations above a random order",
        "",
        "Warnings: none",
        "",
        "Settings chosen for it (any --config.FIELD=VALUE wins):",
        "  dpa.coarse = 3",
        "  diffusion.hidden = (256,)",
        "",
        "Train on it:",
        "  python -m pdrec_jax.main --config=configs/custom.py --config.data.path=data/mine",
    ]
