"""The loss of one diffusion training step, dense or on windows of the slots (``windows``)."""

import jax
import jax.numpy as jnp
from jax import Array

from pdrec_jax.diffusion import sharded_step
from pdrec_jax.diffusion.denoiser import Params
from pdrec_jax.diffusion.dense_step import dense_losses
from pdrec_jax.diffusion.inference import DiffusionModel
from pdrec_jax.diffusion.process import Coefficients, denoising_loss, normal_from_bits, q_sample
from pdrec_jax.diffusion.timesteps import LossHistory, record, sample_timesteps
from pdrec_jax.diffusion.vectors import SparseBatch, densify
from pdrec_jax.diffusion.windows import (
    Head,
    SplitBatch,
    TableRows,
    WindowedStep,
    draw_step,
    gather_rows,
    keep_factors,
    losses_of_rows,
)
from pdrec_jax.random_bits import hashed_bits
from pdrec_jax.sharding import spread


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
    z = denoiser.project(denoiser.prepare(x_t) * keep_factors(bits, model.dropout))
    return denoiser.readout(denoiser.trunk(z, t)), x_t, noise


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
    t, probability = sample_timesteps(key_t, history, size)
    if model.mesh is not None:
        losses = sharded_step.dense_losses(params, model, batch, t, size, key_noise)
        return _weighted(history, t, probability, spread(losses, model.mesh))
    if model.target == "x0" and not model.normalise:
        losses = dense_losses(params, model, batch, t, size, key_noise)
        return _weighted(history, t, probability, losses)
    x_0 = densify(batch, size, model.num_slots)
    output, x_t, noise = _dense_forward(model, params, c, x_0, t, key_noise)
    losses = denoising_loss(c, model.target, output, x_0, x_t, noise, t)
    return _weighted(history, t, probability, losses)


def windowed_loss(
    params: Params,
    model: DiffusionModel,
    head: Head,
    history: LossHistory,
    step: WindowedStep,
    entry: TableRows,
    exit: TableRows,
) -> tuple[Array, tuple[LossHistory, Array]]:
    """``training_loss`` from the rows of the two tables that a step on windows reads.

    Args:
      params: of the denoiser; of its two tables nothing is read.
      model: static.
      head: slots that every step looks at.
      history: losses so far.
      step: from ``windows.draw_step``.
      entry: of W_x.
      exit: of W_o.
    """
    losses = losses_of_rows(model, params, head, step, entry, exit)
    return _weighted(history, step.t, step.probability, losses)


def windowed_training_loss(
    params: Params,
    model: DiffusionModel,
    head: Head,
    history: LossHistory,
    batch: SplitBatch,
    size: int,
    key: Array,
) -> tuple[Array, tuple[LossHistory, Array]]:
    """``training_loss`` on windows of the slots.

    Args:
      params: see ``training_loss``.
      model: static.
      head: slots that every step looks at.
      history: see ``training_loss``.
      batch: interaction vectors of the batch.
      size: B.
      key: of this step.
    """
    step = draw_step(model, head, history, batch, size, key)
    far = jnp.asarray(batch.far.slots)
    entry = gather_rows(params["item_kernel"], head, step.entry, step.noise.shape[1], far)
    kernel = params["output"]["kernel"]
    exit = gather_rows(kernel, head, step.exit, step.share.shape[0], far)
    return windowed_loss(params, model, head, history, step, entry, exit)


def _weighted(
    history: LossHistory, t: Array, probability: Array, losses: Array
) -> tuple[Array, tuple[LossHistory, Array]]:
    history = record(history, t, losses)
    return jnp.mean(losses / probability), (history, jnp.mean(losses))
