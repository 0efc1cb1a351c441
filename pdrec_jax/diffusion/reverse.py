"""The reverse loop, dense and in H dimensions.

One noise-free reverse step is affine in the state and the denoiser's output, ``x <- a_t f(x, t) +
c_t x`` (``Schedule.affine``), and the denoiser touches x only through ``z = x W_x``. So z can be
followed without ever forming x, and the catalogue is met twice: where the sparse start is
projected, and where the wanted scores are read out (docs/design.md, "The reverse loop").

The dense loop covers what breaks the affinity (input normalisation, sampling noise) and is the
oracle of the other's tests.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pdrec_jax.diffusion.process import Coefficients


def reverse_dense(
    denoise: Callable[[Array, Array], Array],
    a: np.ndarray,
    c: np.ndarray,
    x: Array,
    *,
    noise: Callable[[Array], Array] | None = None,
    log_variance: Array | None = None,
) -> Array:
    """Runs all T reverse steps on one dense vector, or on several in one array.

    Args:
      denoise: f, from (x [I], t []) to [I].
      a: [T], see ``Schedule.affine``.
      c: [T].
      x: [I], the start x_T.
      noise: from t [] to standard normal noise [I], to add sampling noise of the posterior's
        variance at every step but the last.
      log_variance: [T], the posterior's, needed with ``noise``.

    Returns:
      x_0 [I].
    """
    steps = len(a)
    a_t, c_t = jnp.asarray(a, x.dtype), jnp.asarray(c, x.dtype)

    def step(x: Array, t: Array) -> tuple[Array, None]:
        x = a_t[t] * denoise(x, t) + c_t[t] * x
        if noise is not None and log_variance is not None:
            x = x + jnp.where(t > 0, jnp.exp(0.5 * log_variance[t]), 0) * noise(t)
        return x, None

    x, _ = jax.lax.scan(step, x, jnp.arange(steps - 1, -1, -1))
    return x


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Readout:
    """x_0 in factored form: ``x_0 = s W_o + r b_o + k x_T``.

    Attributes:
      s: [B, H'].
      r: [] sum of the output bias' coefficients.
      k: static, product of the c_t; exactly 0 with x0 prediction.
    """

    s: Array
    r: Array
    k: float = dataclasses.field(metadata={"static": True})


def couple(item_kernel: Array, output_kernel: Array, output_bias: Array) -> tuple[Array, Array]:
    """Composes the last layer with the first: ``G = W_o W_x`` [H', H] and ``g = b_o W_x`` [H].

    Args:
      item_kernel: W_x, [I, H].
      output_kernel: W_o transposed, [I, H'].
      output_bias: b_o, [I].
    """
    return jnp.dot(output_kernel.T, item_kernel), jnp.dot(output_bias, item_kernel)


def reverse_hidden(
    trunk: Callable[[Array, Array], Array],
    gain: Array,
    shift: Array,
    a: np.ndarray,
    c: np.ndarray,
    z: Array,
) -> Readout:
    """Runs all T reverse steps in H dimensions, for a batch of users.

    ``z <- a_t (h G + g) + c_t z``, ``s <- a_t h + c_t s``, ``r <- a_t + c_t r``, ``k <- c_t k``.

    Args:
      trunk: from (z [B, H], t [B]) to h [B, H'].
      gain: G, [H', H].
      shift: g, [H].
      a: [T], see ``Schedule.affine``.
      c: [T].
      z: [B, H], the projected start x_T W_x.
    """
    steps, batch = len(a), z.shape[0]
    a_t, c_t = jnp.asarray(a, z.dtype), jnp.asarray(c, z.dtype)
    s = jnp.zeros((batch, gain.shape[0]), z.dtype)

    def step(carry: tuple[Array, Array, Array], t: Array) -> tuple[tuple, None]:
        z, s, r = carry
        h = trunk(z, jnp.full((batch,), t, jnp.int32))
        z = a_t[t] * (jnp.dot(h, gain) + shift[None, :]) + c_t[t] * z
        return (z, a_t[t] * h + c_t[t] * s, a_t[t] + c_t[t] * r), None

    order = jnp.arange(steps - 1, -1, -1)
    (_, s, r), _ = jax.lax.scan(step, (z, s, jnp.zeros((), z.dtype)), order)
    return Readout(s, r, float(np.prod(c)))


def start(c: Coefficients, sampling_steps: int, x: Array, noise: Array) -> Array:
    """Returns the start of inference, x_T, from the observed vectors.

    Args:
      c: the schedule.
      sampling_steps: 0 starts from x itself (the paper's choice); n > 0 from q(x_{n-1} | x).
      x: [B, I].
      noise: [B, I] standard normal, used where ``sampling_steps`` > 0.
    """
    if sampling_steps == 0:
        return x
    t = sampling_steps - 1
    return c.signal_scale[t] * x + c.noise_scale[t] * noise
