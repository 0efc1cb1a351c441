import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdrec_jax import xla_flags
from pdrec_jax.xla_flags import keep_sums_right


@pytest.fixture
def affected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xla_flags.metadata, "version", lambda name: "0.10.2")


@pytest.mark.parametrize("before", [{}, {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}])
def test_an_affected_release_gets_the_flag_once(affected: None, before: dict[str, str]) -> None:
    environ = dict(before)
    keep_sums_right(environ)
    keep_sums_right(environ)
    flags = environ["XLA_FLAGS"].split()
    assert flags.count("--xla_cpu_experimental_ynn_fusion_type=-reduce") == 1
    assert before.get("XLA_FLAGS", "").split() == flags[:-1]


def test_a_value_of_the_users_stays(affected: None) -> None:
    environ = {"XLA_FLAGS": "--xla_cpu_experimental_ynn_fusion_type="}
    keep_sums_right(environ)
    assert environ == {"XLA_FLAGS": "--xla_cpu_experimental_ynn_fusion_type="}


def test_other_releases_get_no_flag_they_may_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xla_flags.metadata, "version", lambda name: "0.10.1")
    environ: dict[str, str] = {}
    keep_sums_right(environ)
    assert environ == {}


def test_sums_of_broadcast_products_are_right_here() -> None:
    # A release with the fault that `xla_flags` does not know yet fails here.
    rows = jnp.arange(3 * 32_769, dtype=jnp.float32).reshape(-1, 3)
    matrix = jnp.eye(3)
    sums = jax.jit(jax.vmap(lambda row: jnp.sum((matrix @ row) ** 2)))(rows)
    expected = (np.asarray(rows, np.float64) ** 2).sum(1)
    np.testing.assert_allclose(sums, expected, rtol=1e-6)


def test_jacobian_of_a_norm_is_right_here() -> None:
    def normalise(x: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True))

    x = jax.random.normal(jax.random.key(0), (32, 8))
    backward, forward = jax.jit(jax.jacrev(normalise))(x), jax.jit(jax.jacfwd(normalise))(x)
    np.testing.assert_allclose(backward, forward, atol=1e-5)
