"""Scores of a trained diffusion model: the reverse loop applied to batches of users."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from pdrec_jax.diffusion import reverse
from pdrec_jax.diffusion.denoiser import Denoiser, Params, bind
from pdrec_jax.diffusion.process import Coefficients, coefficients
from pdrec_jax.diffusion.schedule import Schedule
from pdrec_jax.diffusion.sharded_vectors import (
    chosen_columns,
    chosen_scores,
    dense_vectors,
    sparse_product_on,
)
from pdrec_jax.diffusion.vectors import SparseBatch, densify, sparse_product
from pdrec_jax.sharding import DATA, MODEL, axis, round_up, spread


@dataclasses.dataclass(frozen=True)
class DiffusionModel:
    """Everything about a diffusion model but its parameters; static under jit.

    Attributes:
      graph: structure of the ``Denoiser``.
      num_slots: I.
      schedule: noise schedule.
      target: ``x0`` or ``epsilon``.
      reweight: weight the loss of timesteps by SNR.
      dropout: rate on the denoiser's input in training, a multiple of 1/512.
      normalise: whether the denoiser normalises its input.
      sampling_steps: forward steps before inference, 0 for none.
      sampling_noise: add noise in the reverse steps.
      noise_fraction: share of the slots that carry noise in a training step (``windows``).
      error_fraction: share of the slots whose error a training step looks at, beside the head.
      mesh: of the devices; None for one device. On a mesh the two tables have ``width`` rows and a
        batch is ``sharded_vectors.place_batch``'s.
    """

    graph: Any
    num_slots: int
    schedule: Schedule
    target: str = "x0"
    reweight: bool = True
    dropout: float = 0.5
    normalise: bool = False
    sampling_steps: int = 0
    sampling_noise: bool = False
    noise_fraction: float = 1.0
    error_fraction: float = 1.0
    mesh: Mesh | None = None

    @property
    def width(self) -> int:
        """Slots with the padding of a mesh."""
        return round_up(self.num_slots, axis(self.mesh, MODEL))

    def coefficients(self) -> Coefficients:
        """The schedule, cast for the device."""
        return coefficients(self.schedule, self.target, reweight=self.reweight)

    def denoiser(self, params: Params) -> Denoiser:
        """Binds parameters to the denoiser."""
        return bind(self.graph, params)

    @property
    def windowed(self) -> bool:
        """Whether a training step looks at a part of the slots."""
        return min(self.noise_fraction, self.error_fraction) < 1

    @property
    def affine(self) -> bool:
        """Whether the loop can run in H dimensions."""
        return not (self.normalise or self.sampling_noise)

    @property
    def factored(self) -> bool:
        """Whether a score is an inner product of a user's vector and an item's."""
        c = self.schedule.affine(self.target)[1]
        return self.affine and self.sampling_steps == 0 and float(np.prod(c)) == 0


def couple(model: DiffusionModel, params: Params) -> tuple[Array, Array] | None:
    """Precomputes what the H-space loop needs of the parameters, once a model (None if unused)."""
    if not model.affine:
        return None
    output = params["output"]
    return _couple(params["item_kernel"], output["kernel"], output["bias"])


_couple = jax.jit(reverse.couple)


def _start_noise(model: DiffusionModel, key: Array, users: Array) -> Array:
    """Noise of the start, [B, I]; a user's draw depends on the key and the user alone."""
    keys = jax.vmap(lambda user: jax.random.fold_in(key, user))(users)
    if model.mesh is not None:
        return _normal_on(model, keys)
    return jax.vmap(lambda k: jax.random.normal(k, (model.num_slots,)))(keys)


def _normal_on(model: DiffusionModel, keys: Array) -> Array:
    """Standard normals of keys [B] on the model's mesh, [B, ``width``], 0 in the padding.

    A key's draws are counters, so that each device makes those of its own columns, and those of I
    slots are the first I of more.
    """
    noise = jax.vmap(lambda key: jax.random.normal(key, (model.width,)))(keys)
    real = jnp.arange(model.width, dtype=jnp.int32) < model.num_slots
    return spread(jnp.where(real[None, :], noise, 0), model.mesh, DATA, MODEL)


def _dense_start(model: DiffusionModel, batch: SparseBatch, key: Array, users: Array) -> Array:
    if model.mesh is not None:
        x = dense_vectors(model.mesh, batch, users.shape[0], model.width)
    else:
        x = densify(batch, users.shape[0], model.num_slots)
    if model.sampling_steps == 0:
        return x
    noise = _start_noise(model, key, users)
    return reverse.start(model.coefficients(), model.sampling_steps, x, noise)


def _readout(
    model: DiffusionModel,
    params: Params,
    coupled: tuple[Array, Array],
    batch: SparseBatch,
    key: Array,
    users: Array,
) -> reverse.Readout:
    denoiser = model.denoiser(params)
    size = users.shape[0]
    if model.sampling_steps > 0:
        z = spread(denoiser.project(_dense_start(model, batch, key, users)), model.mesh, DATA)
    elif model.mesh is not None:
        z = sparse_product_on(model.mesh, batch, size, denoiser.item_kernel[...])
    else:
        z = sparse_product(batch, size, denoiser.item_kernel[...])
    a, c = model.schedule.affine(model.target)
    return reverse.reverse_hidden(denoiser.trunk, *coupled, a, c, z)


def score_all(
    model: DiffusionModel,
    params: Params,
    coupled: tuple[Array, Array] | None,
    batch: SparseBatch,
    key: Array,
    users: Array,
    first: int | None = None,
) -> Array:
    """Scores every slot for a batch of users: x_0 of the reverse loop.

    Args:
      model: static.
      params: of the denoiser.
      coupled: from ``couple``.
      batch: interaction vectors of the users.
      key: for the options that draw noise.
      users: [B] int32, indices; a draw depends on the key and the user.
      first: of which slots, static: the first so many, all for None. A mesh takes all.

    Returns:
      [B, I or ``first``] float32; on a mesh [B, ``width``], of which the columns from I on mean
      nothing.
    """
    if model.mesh is not None:
        first = None
    if coupled is not None:
        out = _readout(model, params, coupled, batch, key, users)
        denoiser = model.denoiser(params)
        scores = jnp.dot(out.s, denoiser.output.kernel[...][:first].T)
        scores = scores + out.r * denoiser.output.bias[...][None, :first]
        if out.k != 0:
            scores = scores + out.k * _dense_start(model, batch, key, users)[:, :first]
        return spread(scores, model.mesh, DATA, MODEL)
    return score_all_dense(model, params, batch, key, users)[:, :first]


def score_all_dense(
    model: DiffusionModel, params: Params, batch: SparseBatch, key: Array, users: Array
) -> Array:
    """The same by the dense loop, for every option; the slow twin of ``score_all``."""
    denoiser = model.denoiser(params)
    a, c = model.schedule.affine(model.target)
    log_variance = model.coefficients().posterior_log_variance if model.sampling_noise else None
    noise_key = jax.random.fold_in(key, 1)
    if model.mesh is not None:
        start = _dense_start(model, batch, key, users)
        return _dense_loop_on(model, denoiser, start, noise_key, users, log_variance)

    def one(x: Array, user: Array) -> Array:
        def denoise(x: Array, t: Array) -> Array:
            return denoiser(x[None, :], t[None])[0]

        def noise(t: Array) -> Array:
            step_key = jax.random.fold_in(jax.random.fold_in(noise_key, user), t)
            return jax.random.normal(step_key, (model.num_slots,))

        drawn = noise if model.sampling_noise else None
        return reverse.reverse_dense(denoise, a, c, x, noise=drawn, log_variance=log_variance)

    return jax.vmap(one)(_dense_start(model, batch, key, users), users)


def _dense_loop_on(
    model: DiffusionModel,
    denoiser: Denoiser,
    start: Array,
    noise_key: Array,
    users: Array,
    log_variance: Array | None,
) -> Array:
    """The dense loop of a block of users on the model's mesh, [B, ``width``] on both axes.

    In the padding the state stays 0: the tables have zeros there, and so has the noise.
    """
    a, c = model.schedule.affine(model.target)

    def denoise(x: Array, t: Array) -> Array:
        z = spread(denoiser.project(denoiser.prepare(x)), model.mesh, DATA)
        h = denoiser.trunk(z, jnp.full(x.shape[0], t, jnp.int32))
        return spread(denoiser.readout(h), model.mesh, DATA, MODEL)

    def noise(t: Array) -> Array:
        keys = jax.vmap(lambda user: jax.random.fold_in(noise_key, user))(users)
        return _normal_on(model, jax.vmap(lambda key: jax.random.fold_in(key, t))(keys))

    drawn = noise if model.sampling_noise else None
    return reverse.reverse_dense(denoise, a, c, start, noise=drawn, log_variance=log_variance)


def score_items(
    model: DiffusionModel,
    params: Params,
    coupled: tuple[Array, Array] | None,
    batch: SparseBatch,
    key: Array,
    users: Array,
    items: Array,
) -> Array:
    """Scores C chosen slots per user, [B, C], without touching the others where it can.

    Args:
      model: see ``score_all``; so are the next five.
      params: see there.
      coupled: see there.
      batch: see there.
      key: see there.
      users: see there.
      items: [B, C] int32.
    """
    if coupled is None:
        scores = score_all_dense(model, params, batch, key, users)
        if model.mesh is not None:
            return chosen_columns(model.mesh, scores, items)
        return jnp.take_along_axis(scores, items, axis=1)
    out = _readout(model, params, coupled, batch, key, users)
    output = params["output"]
    if model.mesh is not None:
        bias = out.r * output["bias"]
        scores = chosen_scores(model.mesh, out.s, output["kernel"], bias, items)
        if out.k != 0:
            start = _dense_start(model, batch, key, users)
            scores = scores + out.k * chosen_columns(model.mesh, start, items)
        return scores
    scores = jnp.einsum("bh,bch->bc", out.s, output["kernel"][items])
    scores = scores + out.r * output["bias"][items]
    if out.k != 0:
        start = _dense_start(model, batch, key, users)
        scores = scores + out.k * jnp.take_along_axis(start, items, axis=1)
    return scores


def user_factors(
    model: DiffusionModel,
    params: Params,
    coupled: tuple[Array, Array],
    batch: SparseBatch,
    size: int,
) -> Array:
    """The users' side of ``score_all`` of a factored model, [B, H' + 1].

    Args:
      model: static, ``factored``.
      params: of the denoiser.
      coupled: from ``couple``.
      batch: interaction vectors of the users.
      size: B.
    """
    # A factored model draws no noise: which users they are decides nothing.
    users = jnp.zeros((size,), jnp.int32)
    out = _readout(model, params, coupled, batch, jax.random.key(0), users)
    return jnp.concatenate([out.s, jnp.full((size, 1), out.r)], axis=1)


def item_factors(params: Params) -> Array:
    """The items' side, [I, H' + 1]: inner products with ``user_factors`` are the scores."""
    output = params["output"]
    return jnp.concatenate([output["kernel"], output["bias"][:, None]], axis=1)
