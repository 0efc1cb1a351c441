"""Cheap random bits for dropout and noise, where a cryptographic generator is most of the work.

JAX's Threefry spends about 20 rounds on two words. A mask needs far less: here every word is a
finalised counter, ``mix(mix(i + k0) ^ k1)`` with the two words of a JAX key and the multiply-shift
mixer of Ellis ("lowbias32", 2018), whose bias per bit is below 0.2 %. Draws depend on the key and
the index alone, so they repeat exactly on every device count.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array

_WORDS = 1 << 32  # after as many a counter of one word begins anew


def _mix(word: Array) -> Array:
    word = (word ^ (word >> 16)) * jnp.uint32(0x7FEB352D)
    word = (word ^ (word >> 15)) * jnp.uint32(0x846CA68B)
    return word ^ (word >> 16)


def hashed_bits(key: Array, shape: tuple[int, ...]) -> Array:
    """Returns uniform 32-bit words.

    Args:
      key: a jax key of two words (Threefry's).
      shape: its last axis and the others together have fewer than 2^32 places each.

    Returns:
      uint32 of that shape.
    """
    if math.prod(shape) > _WORDS:
        rows = jax.lax.iota(jnp.uint32, math.prod(shape[:-1]))
        columns = jax.lax.iota(jnp.uint32, shape[-1])
        return hashed_bits_at(key, rows, columns, shape[-1]).reshape(shape)
    words = jax.random.key_data(key)
    counter = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    return _mix(_mix(counter + words[0]) ^ words[1])


def hashed_bits_of(key: Array, rows: Array, columns: Array, width: int) -> Array:
    """Returns the words of ``hashed_bits(key, (R, width))`` at pairs of a row and a column.

    Args:
      key: see ``hashed_bits``.
      rows: [N] int32.
      columns: [N] int32, below ``width``.
      width: of the whole table.

    Returns:
      uint32 [N].
    """
    return _bits_at(key, rows.astype(jnp.uint32), columns.astype(jnp.uint32), width)


def hashed_bits_at(key: Array, rows: Array, columns: Array, width: int) -> Array:
    """Returns ``hashed_bits(key, (R, width))`` at some rows and columns alone.

    So devices that share a table of words draw what one of them would draw.

    Args:
      key: see ``hashed_bits``.
      rows: [r] int32.
      columns: [c] int32, below ``width``.
      width: of the whole table.

    Returns:
      uint32 [r, c].
    """
    row, column = rows.astype(jnp.uint32)[:, None], columns.astype(jnp.uint32)[None, :]
    return _bits_at(key, row, column, width)


def _bits_at(key: Array, row: Array, column: Array, width: int) -> Array:
    """The words at rows and columns, uint32, that are combined by broadcasting."""
    words = jax.random.key_data(key)
    high, low = _product(row, width)
    counter = low + column
    # Beyond 2^32 words another key goes on.
    high = (high + (counter < low).astype(jnp.uint32)) * jnp.uint32(0x9E3779B9)
    return _mix(_mix(counter + words[0]) ^ (words[1] + high))


def _product(x: Array, y: int) -> tuple[Array, Array]:
    """Multiplies uint32 by a number below 2^32: the upper and the lower word."""
    x_high, x_low = x >> 16, x & 0xFFFF
    y_high, y_low = jnp.uint32(y >> 16), jnp.uint32(y & 0xFFFF)
    middle = x_high * y_low + ((x_low * y_low) >> 16)
    other = x_low * y_high + (middle & 0xFFFF)
    return x_high * y_high + (middle >> 16) + (other >> 16), x * jnp.uint32(y)
