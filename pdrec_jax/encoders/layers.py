"""Layers shared by the encoders, on rows that hold several users' segments.

Letters: R rows, L cells of a row, D width, N heads, C width of a head.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from pdrec_jax.encoders.ends import Slots, most_of_cells, sum_of_cells, to_cells
from pdrec_jax.random_bits import hashed_bits, hashed_bits_of


class Rows(NamedTuple):
    """Packed histories, the input of every encoder.

    Attributes:
      items: [R, L] int32, 0 in an empty cell.
      segment: [R, L] int32, which user of the batch; cells of one user are neighbours in order.
      position: [R, L] int32, counted so that a history's last event has ``max_length - 1``.
      pads: [R, L] int32, ``max_length`` minus the length of the cell's history.
    """

    items: Array
    segment: Array
    position: Array
    pads: Array


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Zeroes entries at a rate and scales up the others; the identity without a key."""
    if key is None or rate == 0:
        return x
    return _keep(x, rate, hashed_bits(key, x.shape))


def _keep(x: Array, rate: float, bits: Array) -> Array:
    """``dropout`` by uniform 32-bit words of the same shape."""
    return jnp.where(bits >= jnp.uint32(round(rate * 2**32)), x / (1 - rate), 0)


def dropout_at(
    x: Array, rate: float, key: Array | None, rows: Array, columns: Array, width: int
) -> Array:
    """``dropout`` of some entries of a table, as if the whole of it were drawn.

    Args:
      x: the entries.
      rate: see ``dropout``.
      key: see ``dropout``.
      rows: int32, of each entry.
      columns: int32, of each entry.
      width: columns of the table.
    """
    if key is None or rate == 0:
        return x
    return _keep(x, rate, hashed_bits_of(key, rows, columns, width))


def normalise(x: Array) -> Array:
    """Scales vectors to length 1; a zero vector stays zero, with a finite gradient."""
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


def xavier_normal(key: Array, shape: tuple[int, ...], fans: tuple[int, int]) -> Array:
    """Draws initial values of variance 2 / (fan in + fan out) (Glorot and Bengio, 2010)."""
    return (2.0 / sum(fans)) ** 0.5 * jax.random.normal(key, shape)


def outer(x: Array, y: Array) -> Array:
    """Sums outer products over cells, ``x^T y``, [D, K].

    Args:
      x: [C, D].
      y: [C, K].
    """
    # The CPU's product over a first axis takes three times as long as one with the axes swapped
    # beforehand, and without the barrier the compiler folds the swap into it again.
    return jnp.dot(jax.lax.optimization_barrier(x.T), y)


@jax.custom_vjp
def project(x: Array, kernel: Array) -> Array:
    """Multiplies vectors by a matrix, with a gradient by ``outer``.

    It has no forward-mode derivative.

    Args:
      x: [..., D].
      kernel: [D, K].

    Returns:
      [..., K].
    """
    return jnp.dot(x, kernel)


def _project_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return jnp.dot(x, kernel), (x, kernel)


def _project_backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = kept
    inputs, outputs = kernel.shape
    of_kernel = outer(
        x.reshape(x.size // inputs, inputs), gradient.reshape(x.size // inputs, outputs)
    )
    return jnp.dot(gradient, kernel.T), of_kernel


project.defvjp(_project_forward, _project_backward)


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis, with the reference's epsilon of 1e-8."""

    def __init__(self, width: int, epsilon: float = 1e-8):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x: Array) -> Array:
        """Normalises [R, L, D]."""
        mean = jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(x - mean), axis=-1, keepdims=True)
        y = (x - mean) * jax.lax.rsqrt(variance + self.epsilon)
        return y * self.scale[...][None, None, :] + self.bias[...][None, None, :]


class Attention(nnx.Module):
    """Causal attention within segments, equal to the reference's over left-padded rows.

    Not in how dropout treats the value bias: here it is spared.

    The reference does not mask its left padding. A padded key is the zero vector: against the real
    keys' ``q (W_k x + b_k)`` it scores ``q b_k``, so the softmax is that of ``q W_k x`` with n_pad
    extra entries of exp(0) in the denominator, and a padded value adds ``b_v`` alone. Hence the key
    bias drops out (there is none here) and the value bias passes through.

    Args:
      width: D.
      heads: N, a divisor of D.
      rate: dropout on the attention weights.
      rngs: source of the initial values.
    """

    def __init__(self, width: int, heads: int, rate: float, *, rngs: nnx.Rngs):
        self.heads, self.rate = heads, rate
        shape = (width, width)

        def kernel(fans: tuple[int, int]) -> nnx.Param:
            return nnx.Param(xavier_normal(rngs.params(), shape, fans))

        # The reference draws the three input projections as one matrix of [3 D, D].
        self.query = kernel((width, 3 * width))
        self.key = kernel((width, 3 * width))
        self.value = kernel((width, 3 * width))
        self.output = kernel((width, width))
        self.query_bias = nnx.Param(jnp.zeros(width))
        self.value_bias = nnx.Param(jnp.zeros(width))
        self.output_bias = nnx.Param(jnp.zeros(width))

    def _split(self, x: Array) -> Array:
        """Folds the heads into the rows, [R, L, D] to [R N, L, C]: CPU has no fast 4-D product."""
        rows, length, width = x.shape
        heads = x.reshape(rows, length, self.heads, width // self.heads)
        return jnp.swapaxes(heads, 1, 2).reshape(rows * self.heads, length, width // self.heads)

    def _merge(self, x: Array) -> Array:
        """The inverse of ``_split``."""
        length, width = x.shape[1:]
        heads = x.reshape(-1, self.heads, length, width)
        return jnp.swapaxes(heads, 1, 2).reshape(-1, length, self.heads * width)

    def __call__(
        self, queries: Array, x: Array, visible: Array, pads: Array, key: Array | None
    ) -> Array:
        """Attends.

        Args:
          queries: [R, L, D].
          x: [R, L, D], zero in empty cells; source of keys and values.
          visible: [R, L, L] bool, which cells (last axis) a cell may attend to.
          pads: [R, L] float32, how many padded positions each cell attends to besides.
          key: for dropout.

        Returns:
          [R, L, D].
        """
        q = self._split(project(queries, self.query[...]) + self.query_bias[...][None, None, :])
        k = self._split(project(x, self.key[...]))
        v = self._split(project(x, self.value[...]))
        logits = jnp.einsum("rqc,rkc->rqk", q, k) * (q.shape[-1] ** -0.5)
        logits = jnp.where(jnp.repeat(visible, self.heads, axis=0), logits, -jnp.inf)
        pads = jnp.repeat(pads, self.heads, axis=0)[:, :, None]
        peak, padded = _with_padding(jnp.max(logits, axis=-1, keepdims=True), pads)
        weight = jnp.exp(logits - peak)
        total = jnp.sum(weight, axis=-1, keepdims=True) + padded
        weight = weight / jnp.where(total > 0, total, 1)
        weight = dropout(weight, self.rate, key)
        mixed = self._merge(jnp.einsum("rqk,rkc->rqc", weight, v))
        mixed = mixed + self.value_bias[...][None, None, :]
        return project(mixed, self.output[...]) + self.output_bias[...][None, None, :]

    def of_ends(
        self, queries: Array, x: Array, slots: Slots, pads: Array, key: Array | None
    ) -> Array:
        """Attends from the end of each history alone: all its cells are visible from there.

        Args:
          queries: [S, D], of the ends.
          x: [C, D], zero in empty cells; source of keys and values.
          slots: of the C cells.
          pads: [S] float32, see ``__call__``.
          key: for dropout.

        Returns:
          [S, D].
        """
        by_head = (-1, self.heads, x.shape[-1] // self.heads)
        q = (project(queries, self.query[...]) + self.query_bias[...][None, :]).reshape(by_head)
        k = project(x, self.key[...]).reshape(by_head)
        v = project(x, self.value[...]).reshape(by_head)
        logits = jnp.sum(to_cells(q, slots) * k, axis=-1) * (q.shape[-1] ** -0.5)
        occupied = slots.of_cell < len(slots.last)
        logits = jnp.where(occupied[:, None], logits, -jnp.inf)
        peak, padded = _with_padding(most_of_cells(logits, slots), pads[:, None])
        weight = jnp.exp(logits - to_cells(peak, slots))
        total = sum_of_cells(weight, slots) + padded
        weight = weight / to_cells(jnp.where(total > 0, total, 1), slots)
        where = slots.weights_of(self.heads)
        weight = dropout_at(weight, self.rate, key, *where, slots.length)
        mixed = sum_of_cells(weight[:, :, None] * v, slots).reshape(queries.shape)
        mixed = mixed + self.value_bias[...][None, :]
        return project(mixed, self.output[...]) + self.output_bias[...][None, :]


def _with_padding(peak: Array, pads: Array) -> tuple[Array, Array]:
    """Counts padded keys, whose logit is 0, in a softmax.

    Args:
      peak: the largest logit of the others, -inf where there is none.
      pads: how many padded ones there are besides.

    Returns:
      the largest of all, finite even where there is nothing at all; what the padded ones add to the
      denominator.
    """
    peak = jnp.maximum(peak, jnp.where(pads > 0, 0.0, -jnp.inf))
    peak = jax.lax.stop_gradient(jnp.where(peak > -jnp.inf, peak, 0.0))
    return peak, pads * jnp.exp(jnp.minimum(-peak, 0.0))  # not 0 times infinity without padding


class FeedForward(nnx.Module):
    """Two affine layers with a ReLU between, dropout after each, and a residual."""

    def __init__(self, width: int, rate: float, *, rngs: nnx.Rngs):
        self.rate = rate
        bound = width**-0.5

        def kernel() -> nnx.Param:
            return nnx.Param(xavier_normal(rngs.params(), (width, width), (width, width)))

        def bias() -> nnx.Param:
            return nnx.Param(
                jax.random.uniform(rngs.params(), (width,), minval=-bound, maxval=bound)
            )

        self.inner, self.inner_bias = kernel(), bias()
        self.outer, self.outer_bias = kernel(), bias()

    def __call__(self, x: Array, key: Array | None) -> Array:
        """Maps [R, L, D] to [R, L, D]; ``key`` is for dropout."""
        return self._map(x, key, lambda x, key: dropout(x, self.rate, key))

    def of_cells(self, x: Array, cells: Array, key: Array | None) -> Array:
        """Maps [S, D] to [S, D], some ``cells`` [S] of the R L, with the dropout that is theirs."""
        width = x.shape[-1]
        columns = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32)[None, :], x.shape)
        rows = jnp.broadcast_to(cells[:, None], x.shape)

        def drop(x: Array, key: Array | None) -> Array:
            return dropout_at(x[0], self.rate, key, rows, columns, width)[None]

        return self._map(x[None], key, drop)[0]

    def _map(
        self, x: Array, key: Array | None, drop: Callable[[Array, Array | None], Array]
    ) -> Array:
        keys = (None, None) if key is None else jax.random.split(key)
        hidden = project(x, self.inner[...]) + self.inner_bias[...][None, None, :]
        hidden = jax.nn.relu(drop(hidden, keys[0]))
        out = project(hidden, self.outer[...]) + self.outer_bias[...][None, None, :]
        return drop(out, keys[1]) + x


def visible_cells(segment: Array, occupied: Array) -> Array:
    """Marks what each cell may attend to: earlier cells of its own segment, and itself.

    Args:
      segment: [R, L] int32.
      occupied: [R, L] bool.

    Returns:
      [R, L, L] bool.
    """
    cells = jnp.arange(segment.shape[1])
    causal = (cells[:, None] >= cells[None, :])[None]
    same = segment[:, :, None] == segment[:, None, :]
    return causal & same & occupied[:, None, :]
