"""Preferences of an encoder instead of a diffusion model: the ablation without TI-DiffRec."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import Array

from pdrec_jax.data.batches import blocks, enough_rows, pack
from pdrec_jax.data.splits import Split
from pdrec_jax.diffusion.preferences import PoolRules, Preferences, compute_preferences
from pdrec_jax.encoders.model import Batch, EncoderModel, Params, final_states, score_all
from pdrec_jax.encoders.on_mesh import as_the_only, cut_out, event_budget
from pdrec_jax.sharding import DATA, axis, round_up


@functools.partial(jax.jit, static_argnums=4)
def _score(
    params: Params, offsets: Array, items: Array, batch: Batch, model: EncoderModel
) -> Array:
    return score_all(params, model, final_states(params, model, offsets, items, batch))


def infer_preferences(
    model: EncoderModel,
    params: Params,
    split: Split,
    users: np.ndarray,
    rules: PoolRules,
    *,
    exclude_heldout: bool,
    seed: int,
    block: int,
    advance: Callable[[int], Any] = lambda count: None,
) -> Preferences:
    """Scores all items by the state after each user's last training event, and cuts the pools.

    The plugins then get what they get from a diffusion model, but of a recommender that has seen
    the order of the log alone (PDRec, 2024, Sec. 5.3, "w/o TI-DiffRec").

    Args:
      model: static.
      params: of the trained encoder.
      split: the data.
      users: [U] bool, who gets preferences; each has a training event.
      rules: how the pools are cut.
      exclude_heldout: negatives leave out the held-out items too.
      seed: of the draws.
      block: users at a time.
      advance: called with the number of users done.

    Raises:
      UserError: see ``compute_preferences``.
    """
    train = split.train
    index = np.flatnonzero(users)
    block = round_up(block, axis(model.mesh, DATA))
    full = blocks(index, block)
    rows = enough_rows(train.offsets, full, model.max_length)
    alone = model.mesh is None and not train.mapped
    if alone:
        histories = jax.device_put((train.offsets.astype(np.int32), train.items))
    else:
        budget = event_budget(train.offsets, np.stack(full))

    def score_blocks(some: np.ndarray) -> Array:
        cells = pack(train.offsets, some, model.max_length, rows)
        batch = Batch(some.astype(np.int32), cells.event, cells.segment, cells.last)
        if alone:
            return _score(params, *histories, batch, model)
        offsets, (items,) = cut_out(train.offsets, some, budget, train.items)
        return _score(params, offsets, items, as_the_only(batch, train.offsets), model)

    return compute_preferences(
        score_blocks,
        split,
        users,
        rules,
        exclude_heldout=exclude_heldout,
        seed=seed,
        block=block,
        advance=advance,
        mesh=model.mesh,
    )
