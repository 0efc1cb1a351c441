"""The loss of one diffusion training step, dense and with noise on a window of the slots."""

import jax
import jax.numpy as jnp
from jax import Array

from pdrec_jax.diffusion.denoiser import Params
from pdrec_jax.diffusion.inference import DiffusionModel
from pdrec_jax.diffusion.process import Coefficients, denoising_loss, normal_from_bits, q_sample
from pdrec_jax.diffusion.timesteps import LossHistory, record, sample_timesteps
from pdrec_jax.diffusion.vectors import SparseBatch, densify, sparse_product
from pdrec_jax.random_bits import hashed_bits

_DROPOUT_LEVELS = 512  # dropout reads the 9 bits of a random word that the normal leaves


def _keep(bits: Array, rate: float) -> Array:
    """Dropout factors, 0 or 1 / (1 - rate), from the low bits of random words."""
    kept = (bits & (_DROPOUT_LEVELS - 1)) >= round(rate * _DROPOUT_LEVELS)
    return kept.astype(jnp.float32) / (1 - rate)


def _dense_forward(
    model: DiffusionModel,
    params: Params,
    c: Coefficients,
    x_0: Array,
    t: Array,
    key: Array,
) -> tuple[Array, Array, Array]:
    denoiser = model.denoiser(params)
    bits = hashed_bits(key, x_0.shape)
    noise = normal_from_bits(bits)
    x_t = q_sample(c, x_0, t, noise)
    z = denoiser.project(denoiser.prepare(x_t) * _keep(bits, model.dropout))
    return denoiser.readout(denoiser.trunk(z, t)), x_t, noise


def _window_forward(
    model: DiffusionModel,
    params: Params,
    c: Coefficients,
    batch: SparseBatch,
    x_0: Array,
    t: Array,
    key: Array,
) -> Array:
    """The denoiser's output where one random window of the slots carries all the noise.

    With ``q = noise_fraction`` the noise has variance 1/q on the window, so z keeps its mean and
    covariance over the draw of the window, as does the gradient; two of the five large matrix
    products shrink by q. The slots are split into windows of equal size, each equally likely.
    """
    denoiser = model.denoiser(params)
    size, num_slots = x_0.shape
    windows = round(1 / model.noise_fraction)
    width = -(-num_slots // windows)
    key_window, key_bits, key_tokens = jax.random.split(key, 3)
    start = jax.random.randint(key_window, (), 0, windows) * width
    begin = jnp.minimum(start, num_slots - width)  # the last window is cut, not shifted
    inside = (begin + jnp.arange(width) >= start)[None, :]
    bits = hashed_bits(key_bits, (size, width))
    scale = c.noise_scale[t][:, None] * windows**0.5
    noise = jnp.where(inside, normal_from_bits(bits) * _keep(bits, model.dropout) * scale, 0)
    kernel = denoiser.item_kernel[...]
    z = jnp.dot(noise, jax.lax.dynamic_slice_in_dim(kernel, begin, width, axis=0))

    token_keep = _keep(hashed_bits(key_tokens, batch.slots.shape), model.dropout)
    signal = jnp.concatenate([c.signal_scale[t], jnp.zeros(1)])[batch.rows]
    tokens = SparseBatch(batch.slots, batch.rows, batch.weights * token_keep * signal)
    z = z + sparse_product(tokens, size, kernel)
    return denoiser.readout(denoiser.trunk(z, t))


def training_loss(
    params: Params,
    model: DiffusionModel,
    history: LossHistory,
    batch: SparseBatch,
    size: int,
    key: Array,
) -> tuple[Array, tuple[LossHistory, Array]]:
    """Draws timesteps and noise, and returns the importance-weighted loss of a batch.

    Args:
      params: of the denoiser.
      model: static.
      history: losses so far, from which the timesteps' probabilities follow.
      batch: interaction vectors of the batch.
      size: B.
      key: of this step.

    Returns:
      the mean over the batch of loss / (T p_t); and the updated history with the mean loss before
      that division.
    """
    c = model.coefficients()
    key_t, key_noise = jax.random.split(key)
    t, scaled_probability = sample_timesteps(key_t, history, size)
    x_0 = densify(batch, size, model.num_slots)
    if model.noise_fraction < 1:
        output = _window_forward(model, params, c, batch, x_0, t, key_noise)
        losses = denoising_loss(c, model.target, output, x_0, x_0, x_0, t)
    else:
        output, x_t, noise = _dense_forward(model, params, c, x_0, t, key_noise)
        losses = denoising_loss(c, model.target, output, x_0, x_t, noise, t)
    history = record(history, t, losses)
    return jnp.mean(losses / scaled_probability), (history, jnp.mean(losses))
