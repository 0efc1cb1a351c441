"""The losses of a dense training step on one device, in the form that moves the fewest bytes.

With x0 prediction the target is a dozen non-zeros a row. Neither it nor the signal in x_t is ever
written out as [B, I]: both are added where they are. There are two arrays of that size, what enters
the first layer and the error e; the mean square of e comes from products that its gradient needs.
"""

import jax
import jax.numpy as jnp
from jax import Array

from pdrec_jax.diffusion.denoiser import Params
from pdrec_jax.diffusion.inference import DiffusionModel
from pdrec_jax.diffusion.process import normal_from_bits
from pdrec_jax.diffusion.vectors import SparseBatch
from pdrec_jax.diffusion.windows import keep_factors
from pdrec_jax.random_bits import hashed_bits, hashed_bits_of

_Kept = tuple[Array, Array, Array]


def dense_losses(
    params: Params, model: DiffusionModel, batch: SparseBatch, t: Array, size: int, key: Array
) -> Array:
    """Weighted squared error of each user, [B], before division by T p_t.

    It is ``process.denoising_loss`` of the denoiser's output, with the same draws.

    Args:
      params: of the denoiser.
      model: static; x0 prediction without input normalisation.
      batch: interaction vectors.
      t: [B] int32.
      size: B.
      key: of the noise.
    """
    c, denoiser = model.coefficients(), model.denoiser(params)
    bits = hashed_bits(key, (size, model.num_slots))
    noise = normal_from_bits(bits) * keep_factors(bits, model.dropout)
    x = noise * c.noise_scale[t][:, None]
    rows, slots = jnp.asarray(batch.rows), jnp.asarray(batch.slots)
    own_bits = hashed_bits_of(key, rows, slots, model.num_slots)
    signal = jnp.append(c.signal_scale[t], 0)[rows] * batch.weights
    signal = signal * keep_factors(own_bits, model.dropout)
    x = x.at[rows, slots].add(signal, mode="drop")
    h = denoiser.trunk(denoiser.project(x), t)
    kernel, bias = denoiser.output.kernel[...], denoiser.output.bias[...]
    return c.loss_weight[t] * mean_square_error(h, kernel, bias, batch)


@jax.custom_vjp
def mean_square_error(h: Array, kernel: Array, bias: Array, batch: SparseBatch) -> Array:
    """Computes ``mean_i (h W^T + b - x)^2`` of each row, [B], for a sparse x.

    Args:
      h: [B, H].
      kernel: W, [I, H].
      bias: b, [I].
      batch: x; no gradient goes to it.
    """
    return _forward(h, kernel, bias, batch)[0]


def _forward(h: Array, kernel: Array, bias: Array, batch: SparseBatch) -> tuple[Array, _Kept]:
    error = jnp.dot(h, kernel.T) + bias[None, :]
    error = error.at[batch.rows, batch.slots].add(-batch.weights, mode="drop")
    # e . e = h . (e W) + e . b - e . x, and the gradient needs e W: so a pass over e is saved.
    product = jnp.dot(error, kernel)
    at_tokens = error.at[batch.rows, batch.slots].get(mode="fill", fill_value=0) * batch.weights
    own = jax.ops.segment_sum(
        at_tokens, batch.rows, num_segments=error.shape[0], indices_are_sorted=True
    )
    square = jnp.sum(h * product, axis=1) + jnp.dot(error, bias) - own
    return square / error.shape[1], (h, error, product)


def _backward(kept: _Kept, slope: Array) -> tuple[Array, Array, Array, None]:
    h, error, product = kept
    # The rows' factors go onto the narrow arrays.
    factor = slope * (2.0 / error.shape[1])
    narrow = factor[:, None] * h
    return factor[:, None] * product, jnp.dot(error.T, narrow), jnp.dot(factor, error), None


mean_square_error.defvjp(_forward, _backward)
