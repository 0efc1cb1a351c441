"""The strictness that all other tests rely on is in force, and its exceptions are exact."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pytest


def add_ranks() -> jax.Array:
    return jnp.ones((2, 3)) + jnp.ones(3)


def add_dtypes() -> jax.Array:
    return jnp.ones(3) + jnp.ones(3, jnp.int32)


def test_both_rules_hold_without_a_marker() -> None:
    with pytest.raises(ValueError, match="rank_promotion"):
        add_ranks()
    with pytest.raises(ValueError, match="dtype promotion"):
        add_dtypes()


@pytest.mark.loose_jax("dtypes")
def test_one_rule_can_be_lifted_alone() -> None:
    assert add_dtypes().dtype == jnp.float32
    with pytest.raises(ValueError, match="rank_promotion"):
        add_ranks()


@pytest.mark.loose_jax
def test_both_rules_can_be_lifted() -> None:
    assert add_ranks().shape == (2, 3)
    assert add_dtypes().dtype == jnp.float32


def test_goldens_are_read_only(goldens: Callable[[str], Mapping[str, np.ndarray]]) -> None:
    betas = goldens("schedules")["toy/betas"]
    assert betas.dtype == np.float64
    with pytest.raises(ValueError, match="read-only"):
        betas[0] = 0.0
