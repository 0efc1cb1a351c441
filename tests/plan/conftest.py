"""A program of a job, of any size and cost."""

from collections.abc import Callable

import pytest

from pdrec_jax.plan.cost import Cost
from pdrec_jax.plan.roofline import Memory, Program


@pytest.fixture
def program() -> Callable[..., Program]:
    """`program(total, cost, runs)` needs `total` bytes a device."""

    def program(total: float = 1e9, cost: Cost | None = None, runs: float = 1) -> Program:
        cost = Cost(0, 0, ()) if cost is None else cost
        return Program("stage: step", runs, "a step", Memory(int(total), 0, 0), cost)

    return program
