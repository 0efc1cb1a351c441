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


def _mix(word: Array) -> Array:
    word = (word ^ (word >> 16)) * jnp.uint32(0x7FEB352D)
    word = (word ^ (word >> 15)) * jnp.uint32(0x846CA68B)
    return word ^ (word >> 16)


def hashed_bits(key: Array, shape: tuple[int, ...]) -> Array:
    """Returns uniform 32-bit words.

    Args:
      key: a jax key of two words (Threefry's).
      shape: fewer than 2^32 words.

    Returns:
      uint32 of that shape.
    """
    words = jax.random.key_data(key)
    counter = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    return _mix(_mix(counter + words[0]) ^ words[1])
