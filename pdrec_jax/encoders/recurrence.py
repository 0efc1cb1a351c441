"""A gated recurrent unit over left-padded histories of unequal length, without their padding.

All histories end together, so that a short one joins late, in the state that the padding before it
leaves. That state depends on the number of padded cells alone: one lane of padding, run along,
holds it for all. The steps come in phases, within which the number of lanes is constant; a phase
begins where the rows of the next shorter length join.

    r = sigmoid(a_r + h U_r),  z = sigmoid(a_z + h U_z)
    n = tanh(a_n + r q),       q = h U_n + b
    h <- (1 - z) n + z h

(Cho et al., 2014, with the reset gate behind the product, as PyTorch and cuDNN have it.) All but
the products with h is done for all steps at once, in the gradient too: with d the gradient of the
new state, those of a_r, a_z and q are d times factors that are known beforehand. The gates are
arrays of their own, because the CPU's compiler does not vectorise over slices of one.

Letters: T steps of a phase, N lanes, D width, C cells (step by step, of a step lane by lane).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import Array, lax

from pdrec_jax.encoders.layers import outer

PADDING_LANES = 2

Gates = tuple[Array, Array, Array]  # r, z, n


@dataclasses.dataclass(frozen=True)
class Phase:
    """Some steps with a constant number of lanes.

    Attributes:
      steps: T.
      lanes: N, those of padding and all that have joined.
      joined: which of the histories join at its start.
      cells: which of C are its own.
    """

    steps: int
    lanes: int
    joined: slice
    cells: slice


@dataclasses.dataclass(frozen=True)
class Stairs:
    """The shape of a batch.

    Attributes:
      lengths: of the rows of each group, longest first.
      rows: of each group.
    """

    lengths: tuple[int, ...]
    rows: tuple[int, ...]

    def phases(self) -> Iterator[Phase]:
        """Yields the phases in order."""
        joined, cells = 0, 0
        for length, following, rows in zip(
            self.lengths, (*self.lengths[1:], 0), self.rows, strict=True
        ):
            steps, lanes = length - following, PADDING_LANES + joined + rows
            size = steps * lanes
            yield Phase(steps, lanes, slice(joined, joined + rows), slice(cells, cells + size))
            joined, cells = joined + rows, cells + size


def _sigmoid(x: Array) -> Array:
    # The CPU's tanh is vectorised, its logistic function is not.
    return 0.5 * jnp.tanh(0.5 * x) + 0.5


def gates_of(h: Array, inputs: Gates, kernels: Gates, bias: Array) -> tuple[Array, ...]:
    """Returns r, z, q and n.

    Args:
      h: [N, D] states before the step.
      inputs: [N, D] each: a_r, a_z, a_n.
      kernels: [D, D] each: U_r, U_z, U_n.
      bias: [D], b.
    """
    r = _sigmoid(inputs[0] + jnp.dot(h, kernels[0]))
    z = _sigmoid(inputs[1] + jnp.dot(h, kernels[1]))
    q = jnp.dot(h, kernels[2]) + bias[None, :]
    return r, z, q, jnp.tanh(inputs[2] + r * q)


def step(h: Array, inputs: Gates, kernels: Gates, bias: Array) -> Array:
    """Takes one step; see ``gates_of`` for the arguments."""
    _, z, _, n = gates_of(h, inputs, kernels, bias)
    return n + z * (h - n)


def _cut(phase: Phase, cells: Array) -> Array:
    """The cells [C, D] of one phase, [T, N, D]."""
    return cells[phase.cells].reshape(phase.steps, phase.lanes, -1)


def _join(lanes: Array, late: Array) -> Array:
    return jnp.concatenate([lanes, jnp.where(late[:, None], lanes[1], lanes[0])])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def run(
    stairs: Stairs, start: Array, late: Array, inputs: Gates, kernels: Gates, bias: Array
) -> Array:
    """Runs the unit over a batch.

    Args:
      stairs: its shape.
      start: [2, D], the states of the two lanes of padding before the first step; the second is one
        step ahead.
      late: [histories] bool, which join in the state of the second lane, for they end one step
        before the others.
      inputs: [C, D] each, see ``gates_of``.
      kernels: [D, D] each.
      bias: [D].

    Returns:
      the states after each cell, [C, D].
    """
    return _forward(stairs, start, late, inputs, kernels, bias)[0]


def _forward(
    stairs: Stairs, start: Array, late: Array, inputs: Gates, kernels: Gates, bias: Array
) -> tuple[Array, Array]:
    """States after and before each cell, [C, D] each."""

    def advance(h: Array, given: Gates) -> tuple[Array, Array]:
        h = step(h, given, kernels, bias)
        return h, h

    lanes, after, before = start, [], []
    for phase in stairs.phases():
        lanes = _join(lanes, late[phase.joined])
        given: Gates = jax.tree.map(functools.partial(_cut, phase), inputs)
        states = lax.scan(advance, lanes, given)[1]
        before += [lanes, states[:-1].reshape(-1, lanes.shape[-1])]
        after.append(states.reshape(-1, lanes.shape[-1]))
        lanes = states[-1]
    return jnp.concatenate(after), jnp.concatenate(before)


def _run_forward(
    stairs: Stairs, start: Array, late: Array, inputs: Gates, kernels: Gates, bias: Array
) -> tuple[Array, tuple]:
    after, before = _forward(stairs, start, late, inputs, kernels, bias)
    return after, (before, late, inputs, kernels, bias)


def _run_backward(stairs: Stairs, kept: tuple, gradient: Array) -> tuple:
    before, late, inputs, kernels, bias = kept
    # Again, all steps at once, which costs less than to write the gates down step by step.
    r, z, q, n = gates_of(before, inputs, kernels, bias)
    of_n = (1 - z) * (1 - n * n)
    factors = (of_n * q * r * (1 - r), (before - n) * z * (1 - z), of_n * r)
    transposed = tuple(kernel.T for kernel in kernels)

    def retreat(d: Array, given: tuple) -> tuple[Array, Array]:
        own, factors, z = given
        d = d + own
        parts = [jnp.dot(d * f, kernel) for f, kernel in zip(factors, transposed, strict=True)]
        return d * z + sum(parts), d

    d = jnp.zeros((PADDING_LANES + len(late), before.shape[-1]), before.dtype)
    found: list[Array] = []
    for phase in reversed(list(stairs.phases())):
        given = jax.tree.map(functools.partial(_cut, phase), (gradient, factors, z))
        d, of_states = lax.scan(retreat, d, given, reverse=True)
        found.insert(0, of_states.reshape(-1, d.shape[-1]))
        keep = phase.lanes - (phase.joined.stop - phase.joined.start)
        joined, behind = d[keep:], late[phase.joined][:, None]
        of_padding = jnp.stack(
            [jnp.where(behind, 0, joined).sum(0), jnp.where(behind, joined, 0).sum(0)]
        )
        d = d[:keep].at[:PADDING_LANES].add(of_padding)
    all_d = jnp.concatenate(found)
    of_r, of_z, of_q = (all_d * factor for factor in factors)
    of_kernels = tuple(outer(before, g) for g in (of_r, of_z, of_q))
    none = jnp.zeros(late.shape, jax.dtypes.float0)
    return d, none, (of_r, of_z, all_d * of_n), of_kernels, jnp.sum(of_q, axis=0)


run.defvjp(_run_forward, _run_backward)
