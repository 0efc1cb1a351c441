"""Fixtures for every test, and a strictness that none escapes by accident."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import jax
import numpy as np
import pytest
from absl import flags

from pdrec_jax import compilation

GOLDENS = Path(__file__).parent / "goldens"


def pytest_configure() -> None:
    # absl, and with it grain, raises on a look at a flag while no command line was parsed.
    flags.FLAGS.mark_as_parsed()
    # Of this process and those that it starts: tests leave nothing in the user's cache.
    os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")
    jax.config.update("jax_enable_compilation_cache", False)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Before pytest selects by marker, so that `-m data` finds every test that asks for the logs.
    for item in items:
        if "real_data" in getattr(item, "fixturenames", ()):
            item.add_marker("data")


@pytest.fixture(scope="module", autouse=True)
def few_programs() -> Iterator[None]:
    """Lets one process run all tests, whose programs are more than Linux maps for a process."""
    yield
    compilation.drop_if_many()


@pytest.fixture(autouse=True)
def strict_jax(request: pytest.FixtureRequest) -> Iterator[None]:
    """Raises where JAX would broadcast arrays of unequal rank or mix dtypes in silence.

    `@pytest.mark.loose_jax("dtypes")` lifts the rule on dtypes (for a step of optax's Adam, which
    raises a float to an integer count), `loose_jax("ranks")` that on ranks, `loose_jax` alone both.
    """
    rules = {
        "dtypes": lambda: jax.numpy_dtype_promotion("strict"),
        "ranks": lambda: jax.numpy_rank_promotion("raise"),
    }
    lifted: set[str] = set()
    for marker in request.node.iter_markers("loose_jax"):
        if unknown := set(marker.args) - set(rules):
            raise pytest.UsageError(f"loose_jax knows {sorted(rules)}, not {sorted(unknown)}")
        lifted |= set(marker.args or rules)
    with contextlib.ExitStack() as stack:
        for name, rule in rules.items():
            if name not in lifted:
                stack.enter_context(rule())
        yield


@functools.cache
def _golden(name: str) -> Mapping[str, np.ndarray]:
    with np.load(GOLDENS / f"{name}.npz", allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    for array in arrays.values():
        array.setflags(write=False)
    return MappingProxyType(arrays)


@pytest.fixture(scope="session")
def goldens() -> Callable[[str], Mapping[str, np.ndarray]]:
    """`goldens(name)` is the content of tests/goldens/<name>.npz, read-only arrays by key."""
    return _golden


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The directory of the real logs; the test is skipped where $PDREC_DATA names none."""
    directory = os.environ.get("PDREC_DATA")
    if not directory:
        pytest.skip("PDREC_DATA is not set: no real logs")
    if not Path(directory).is_dir():
        pytest.fail(f"PDREC_DATA={directory} is not a directory")
    return Path(directory)
