"""One step of training on the whole table of items."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from pdrec_jax.encoders.model import Batch, EncoderModel, TrainingData, training_loss
from pdrec_jax.row_adam import AdamW

# Adam without the learning rate, which changes by the epoch; betas of the reference.
ADAM = AdamW(b1=0.9, b2=0.98)
OPTIMISER = optax.scale_by_adam(b1=ADAM.b1, b2=ADAM.b2)


def step_keys(base: Array, number: Array, batch: Batch) -> tuple[Array, Array | None]:
    """Returns the key of a step and, of a batch that may come again, that of what is drawn with it.

    Args:
      base: of the run.
      number: [] int32, of the step.
      batch: of the step.
    """
    key = jax.random.fold_in(base, number)
    return key, None if batch.again is None else jax.random.fold_in(base, number - batch.again)


def train_step(
    state: dict[str, Any],
    data: TrainingData,
    batch: Batch,
    keys: tuple[Array, Array | None],
    rate: Array | float,
    model: EncoderModel,
) -> tuple[dict[str, Any], Array]:
    """Takes one step of Adam on all parameters.

    Args:
      state: ``params``, ``optimiser`` and, of a large table, ``row_age``, see
        ``EncoderTask.initial``; all rows up to date.
      data: all users.
      batch: users and layout.
      keys: of ``step_keys``.
      rate: learning rate.
      model: static.

    Returns:
      the new state and the loss [].
    """
    loss, gradient = jax.value_and_grad(training_loss)(state["params"], model, data, batch, *keys)
    updates, optimiser = OPTIMISER.update(gradient, state["optimiser"])
    params = jax.tree.map(lambda p, u: p - rate * u, state["params"], updates)
    new = {"params": params, "optimiser": optimiser}
    if "row_age" in state:
        new["row_age"] = jnp.full_like(state["row_age"], optimiser.count)
    return new, loss
