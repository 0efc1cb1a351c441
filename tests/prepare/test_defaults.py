"""Settings that suit a log are always settings that the main job can take."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdrec_jax.overrides import fill, validate
from pdrec_jax.prepare.defaults import suggest
from pdrec_jax.prepare.figures import Figures
from pdrec_jax.settings import default_config

TOY = Figures(
    users=7_996,
    items=37_868,
    records=114_487,
    density=0.000378,
    shortest=3,
    median=8.0,
    mean=14.3,
    high=98,
    longest=480,
    widest=470,
    short_users=0,
    lone_users=0,
    single_items=17_400,
    repeats=3_651,
    first_time=974_678_400.0,
    last_time=1_538_006_400.0,
    ties=0.446,
    tied_ends=0.439,
    cold_tests=0.282,
    order=162.0,
)


def test_toy_gets_what_was_chosen_for_it() -> None:
    found = suggest(TOY, times=True)
    assert found["diffusion.hidden"] == (1000,)
    assert (found["dpa.coarse"], found["dpa.fine"]) == (500, 5)
    assert (found["encoder.batch_size"], found["evaluation.negatives"]) == (128, 99)
    assert found["diffusion.weighting"] == "time"
    # 63 steps an epoch rather than the public code's 56.
    assert (found["encoder.first_evaluation"], found["encoder.min_epochs"]) == (46, 89)
    assert found["encoder.max_length"] == 128


def test_without_times() -> None:
    assert suggest(TOY, times=False)["diffusion.weighting"] == "position"


def test_a_large_log_needs_fewer_epochs_and_larger_batches() -> None:
    found = suggest(dataclasses.replace(TOY, users=1_000_000), times=True)
    assert (found["encoder.batch_size"], found["encoder.first_evaluation"]) == (1024, 3)


def test_a_user_with_many_events_of_few_items_takes_no_room() -> None:
    small = dataclasses.replace(TOY, items=200, longest=10_000, widest=20)
    found = suggest(small, times=True)
    assert (found["evaluation.negatives"], found["dpa.coarse"], found["nns.kept"]) == (90, 8, 45)
    small = dataclasses.replace(small, widest=180)
    assert suggest(small, times=True)["evaluation.negatives"] == 10


@pytest.mark.parametrize("times", [True, False])
@given(st.integers(1, 10**8), st.integers(1, 10**8), st.integers(1, 10**6))
def test_always_valid(times, users, items, longest) -> None:
    figures = dataclasses.replace(TOY, users=users, items=items, longest=longest, high=longest)
    figures = dataclasses.replace(figures, widest=min(longest, items))
    validate(fill(default_config(), suggest(figures, times), ()))
