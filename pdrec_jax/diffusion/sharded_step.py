"""The losses of a dense diffusion training step on a mesh.

Of a batch of B users by I slots a device holds B / data by I / model. What crosses the network on
``model`` is [B, H]: the first layer's sum, and its gradient. Draws are those of a single device.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

from pdrec_jax.diffusion.denoiser import Params
from pdrec_jax.diffusion.inference import DiffusionModel
from pdrec_jax.diffusion.process import denoising_loss, normal_from_bits, q_sample
from pdrec_jax.diffusion.sharded_vectors import held_vectors
from pdrec_jax.diffusion.vectors import SparseBatch
from pdrec_jax.diffusion.windows import keep_factors
from pdrec_jax.random_bits import hashed_bits_at
from pdrec_jax.sharding import DATA, MODEL, OF_DENOISER, axis, first_row, is_item_table, round_up


def dense_losses(
    params: Params,
    model: DiffusionModel,
    batch: SparseBatch,
    t: Array,
    size: int,
    key: Array,
) -> Array:
    """Weighted squared error of each user of a batch, [B], before division by T p_t.

    A padded slot has rows of zeros and no noise, so that its output is right and its gradient 0.

    Args:
      params: of the denoiser, the tables' rows on ``model``.
      model: static, with a mesh.
      batch: [d, P] each, from ``sharded_vectors.place_batch``.
      t: [B] int32.
      size: B.
      key: of the noise.
    """
    mesh = model.mesh
    assert mesh is not None
    places = axis(mesh, DATA)
    rows = round_up(size, places) // places
    t = jnp.pad(t, (0, rows * places - size))

    def own(params: Params, batch: SparseBatch, t: Array, key_data: Array) -> Array:
        key = jax.random.wrap_key_data(key_data)
        c, denoiser = model.coefficients(), model.denoiser(params)
        kernel = params["item_kernel"]
        width, first = kernel.shape[0], first_row(kernel)
        columns = first + jnp.arange(width, dtype=jnp.int32)
        row = jax.lax.axis_index(DATA).astype(jnp.int32) * rows + jnp.arange(rows, dtype=jnp.int32)
        mine = SparseBatch(batch.slots[0], batch.rows[0], batch.weights[0])
        x_0 = held_vectors(mine, rows, first, width)
        bits = hashed_bits_at(key, row, columns, model.num_slots)
        noise = jnp.where((columns < model.num_slots)[None, :], normal_from_bits(bits), 0)
        x_t = q_sample(c, x_0, t, noise)
        z = denoiser.project(denoiser.prepare(x_t, MODEL) * keep_factors(bits, model.dropout))
        output = denoiser.readout(denoiser.trunk(jax.lax.psum(z, MODEL), t))
        # It is a mean over the slots of this device.
        losses = denoising_loss(c, model.target, output, x_0, x_t, noise, t)
        return jax.lax.psum(losses * (width / model.num_slots), MODEL)

    def spec(path: Any, leaf: Any) -> PartitionSpec:
        del leaf
        return PartitionSpec(MODEL) if is_item_table(path, OF_DENOISER) else PartitionSpec()

    by_user = PartitionSpec(DATA)
    losses = jax.shard_map(
        own,
        mesh=mesh,
        in_specs=(
            jax.tree_util.tree_map_with_path(spec, params),
            by_user,
            by_user,
            PartitionSpec(),
        ),
        out_specs=by_user,
    )(params, batch, t, jax.random.key_data(key))
    return losses[:size]
