"""The least time that a program takes, and what binds it."""

import pytest

from pdrec_jax.plan.cost import Collective, Cost
from pdrec_jax.plan.hardware import parse_topology
from pdrec_jax.plan.roofline import hours, times


def test_the_longest_of_three_binds(program) -> None:
    v5e = parse_topology("v5e:4x4")
    reduce = Collective("all-reduce", 1000, 4, 10)
    found = times(Cost(197e12, 819e9 / 2, (reduce,)), v5e)
    assert (found.compute, found.memory, found.least, found.binds) == (1, 0.5, 1, "compute")
    assert found.network == pytest.approx(10 * 1000 * 1.5 / 100e9)
    assert times(Cost(0, 819e9, ()), v5e).binds == "memory"
    assert hours(program(cost=Cost(0, 819e9, ()), runs=7200), v5e) == 2


def test_between_machines_gpus_are_slower() -> None:
    h100 = parse_topology("h100:8x2")
    assert h100.sending(8) == 450e9
    assert h100.sending(16) == 50e9
    inside = Collective("all-reduce", 1000, 4, 1)
    across = Collective("all-reduce", 1000, 4, 1, span=16)
    fast, slow = (times(Cost(0, 0, (one,)), h100).network for one in (inside, across))
    assert slow == pytest.approx(9 * fast)
