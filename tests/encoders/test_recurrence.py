"""The recurrence that short histories join late: each one alone is the oracle."""

import jax
import jax.numpy as jnp
import numpy as np

from pdrec_jax.encoders.recurrence import PADDING_LANES, Phase, Stairs, run, step

WIDTH = 4
STAIRS = Stairs((7, 3, 2), (2, 0, 3))
LATE = np.array([False, True, False, True, True])


def test_phases_follow_each_other():
    assert list(STAIRS.phases()) == [
        Phase(4, 4, slice(0, 2), slice(0, 16)),
        Phase(1, 4, slice(2, 2), slice(16, 20)),
        Phase(2, 7, slice(2, 5), slice(20, 34)),
    ]


def one_by_one(start, inputs, kernels, bias):
    """Each lane from the start or from where the padding has brought it, cell by cell."""
    out, h = [], start
    for phase in STAIRS.phases():
        joining = [h[1] if late else h[0] for late in LATE[phase.joined]]
        h = jnp.stack([*h, *joining])
        for number in range(phase.steps):
            first = phase.cells.start + number * phase.lanes
            h = step(h, tuple(gate[first : first + phase.lanes] for gate in inputs), kernels, bias)
            out.append(h)
    return jnp.concatenate(out)


def test_states_and_gradients():
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.normal(0, 0.7, shape), jnp.float32)

    start, bias = draw(PADDING_LANES, WIDTH), draw(WIDTH)
    inputs = tuple(draw(34, WIDTH) for _ in range(3))
    kernels = tuple(draw(WIDTH, WIDTH) for _ in range(3))
    weight = draw(34, WIDTH)

    def fast(*given):
        return jnp.sum(weight * run(STAIRS, given[0], jnp.asarray(LATE), *given[1:]))

    def slow(*given):
        return jnp.sum(weight * one_by_one(*given))

    found, wanted = (
        jax.jit(jax.value_and_grad(function, argnums=(0, 1, 2, 3)))(start, inputs, kernels, bias)
        for function in (fast, slow)
    )
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-5)
