"""The optimiser's steps of the encoder stage, an epoch a dispatch: whole tables, or by rows."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from pdrec_jax.encoders.model import (
    Batch,
    EncoderModel,
    Params,
    TrainingData,
    flat_ids,
    loss_of_vectors,
    split_lookup,
    step_inputs,
)
from pdrec_jax.encoders.step import ADAM, OPTIMISER, train_step
from pdrec_jax.row_adam import (
    Rows,
    Table,
    Tails,
    close_table,
    open_table,
    read_rows,
    settle,
    write_rows,
)

_TABLE = "item_embedding"


# The seed is an argument like the others: seeds one after another share what was compiled.
@functools.partial(jax.jit, static_argnums=5, donate_argnums=0)
def train_epoch(
    state: dict[str, Any],
    data: TrainingData,
    batches: Batch,
    numbers: Array,
    rate: float,
    model: EncoderModel,
    seed: int,
) -> tuple[dict[str, Any], Array]:
    """Scans the steps of an epoch; returns the state and the loss of each step."""
    base = jax.random.key(seed)

    def step(state: dict[str, Any], inputs: tuple[Batch, Array]) -> tuple[dict[str, Any], Array]:
        batch, number = inputs
        return train_step(state, data, batch, jax.random.fold_in(base, number), rate, model)

    return jax.lax.scan(step, state, (batches, numbers))


@functools.partial(jax.jit, static_argnums=6, donate_argnums=0)
def train_epoch_by_rows(
    state: dict[str, Any],
    data: TrainingData,
    batches: Batch,
    numbers: Array,
    rate: float,
    tail: Tails,
    model: EncoderModel,
    seed: int,
) -> tuple[dict[str, Any], Array]:
    """``train_epoch`` where a step costs what its rows of the table cost, see ``row_adam``."""
    base = jax.random.key(seed)

    def split(tree: dict[str, Any]) -> tuple[Array, dict[str, Any]]:
        return tree[_TABLE], {name: value for name, value in tree.items() if name != _TABLE}

    moments = state["optimiser"]
    (values, params), (first, mu), (second, nu) = map(
        split, (state["params"], moments.mu, moments.nu)
    )
    rows, other_moments = Rows(values, first, second), moments._replace(mu=mu, nu=nu)

    def gradients(
        params: Params, table: Table, given: tuple[Batch, Array]
    ) -> tuple[Array, Params, tuple[Array, Rows, Array]]:
        """Loss, gradient of the parameters but the table; ids of rows, these and their gradient."""
        batch, number = given
        whole = {**params, _TABLE: table.values}
        inputs = step_inputs(whole, model, data, batch, jax.random.fold_in(base, number))
        ids = flat_ids(inputs.ids)
        read = read_rows(ADAM, table, ids, number, tail)

        def loss_of(params: Params, values: Array) -> tuple[Array, Array | None]:
            whole = {**params, _TABLE: jax.lax.stop_gradient(table.values)}
            return loss_of_vectors(whole, model, data, inputs, split_lookup(values, inputs.ids))

        (loss, soft), (gradient, row_gradient) = jax.value_and_grad(
            loss_of, argnums=(0, 1), has_aux=True
        )(params, read.values)
        rows = ids, read, row_gradient
        if soft is not None:
            kept = _with_gradient(inputs.ids, soft, model.dpa_fine)
            rows = jax.tree.map(lambda part: part[kept], rows)
        return loss, gradient, rows

    def step(
        carried: tuple[Params, Any, Table], given: tuple[Batch, Array]
    ) -> tuple[tuple[Params, Any, Table], Array]:
        params, optimiser, table = carried
        table = settle(table)
        loss, gradient, rows = gradients(params, table, given)
        updates, optimiser = OPTIMISER.update(gradient, optimiser)
        params = jax.tree.map(lambda p, u: p - rate * u, params, updates)
        table = write_rows(ADAM, table, *rows, given[1] + 1, jnp.float32(rate))
        return (params, optimiser, table), loss

    inputs = batches, numbers
    first_step = jax.tree.map(lambda leaf: leaf[0], inputs)
    some = open_table(rows, numbers[0], 0)
    count = jax.eval_shape(gradients, params, some, first_step)[2][0].shape[0]
    carried = params, other_moments, open_table(rows, numbers[0], count)
    (params, optimiser, table), losses = jax.lax.scan(step, carried, inputs)
    values, first, second = close_table(ADAM, table, numbers[-1] + 1, tail)
    state = {
        "params": {**params, _TABLE: values},
        "optimiser": optimiser._replace(
            mu={**optimiser.mu, _TABLE: first}, nu={**optimiser.nu, _TABLE: second}
        ),
    }
    return state, losses


def _with_gradient(ids: dict[str, Array], soft: Array, fine: int) -> Array:
    """Which of the looked-up vectors can have a gradient: of DPA's candidates the picks alone."""
    kept, begin = [], 0
    for name, some in ids.items():
        if name == "soft":
            users, most = soft.shape
            picks = jax.lax.top_k(soft, fine)[1] + jnp.arange(users)[:, None] * most
            kept.append(begin + picks.reshape(-1))
        else:
            kept.append(begin + jnp.arange(some.size))
        begin += some.size
    return jnp.concatenate(kept)
