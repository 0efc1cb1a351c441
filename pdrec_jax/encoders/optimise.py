"""The optimiser's steps of the encoder stage, an epoch a dispatch: whole tables, or by rows."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from pdrec_jax.encoders.model import (
    Batch,
    EncoderModel,
    Params,
    TrainingData,
    flat_ids,
    split_lookup,
)
from pdrec_jax.encoders.step import ADAM, OPTIMISER, loss_of_vectors, step_keys, train_step
from pdrec_jax.encoders.step_inputs import step_inputs
from pdrec_jax.row_adam import (
    Rows,
    Table,
    Tails,
    caught_up,
    open_table,
    read_rows,
    settle,
    values_at,
    write_rows,
)
from pdrec_jax.sharding import constrain

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
        return train_step(state, data, batch, step_keys(base, number, batch), rate, model)

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
    """``train_epoch`` where a step costs what its rows of the table cost, see ``row_adam``.

    Rows that no step read stay behind, by ``state["row_age"]``: to bring all of them up to date
    would cost what the table costs, in every epoch.
    """
    base = jax.random.key(seed)
    params, other_moments, rows = _parted(state)

    def gradients(
        params: Params, table: Table, given: tuple[Batch, Array]
    ) -> tuple[Array, Params, tuple[Array, Rows, Array]]:
        """Loss, gradient of the parameters but the table; ids of rows, these and their gradient."""
        batch, number = given
        whole = {**params, _TABLE: table.values}
        inputs = step_inputs(whole, model, data, batch, *step_keys(base, number, batch))
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
    some = open_table(rows, state["row_age"], 0)
    count = jax.eval_shape(gradients, params, some, first_step)[2][0].shape[0]
    carried = params, other_moments, open_table(rows, state["row_age"], count)
    (params, optimiser, table), losses = jax.lax.scan(step, carried, inputs)
    table = settle(table)
    return _joined(params, optimiser, Rows(*table[:3]), table.age), losses


@jax.jit
def current_params(state: dict[str, Any], tail: Tails) -> Params:
    """Returns the parameters after a state's steps, rows that are behind brought up to date."""
    params, optimiser, rows = _parted(state)
    return {**params, _TABLE: values_at(ADAM, rows, state["row_age"], optimiser.count, tail)}


@functools.partial(jax.jit, static_argnums=2, donate_argnums=0)
def caught_up_state(state: dict[str, Any], tail: Tails, mesh: Mesh | None) -> dict[str, Any]:
    """Brings all rows of a state up to date with its steps, for steps on the whole table."""
    params, optimiser, rows = _parted(state)
    rows = caught_up(ADAM, rows, state["row_age"], optimiser.count, tail)
    age = jnp.full_like(state["row_age"], optimiser.count)
    return constrain(_joined(params, optimiser, rows, age), mesh)


def _parted(state: dict[str, Any]) -> tuple[Params, Any, Rows]:
    """Parameters and optimiser without the table, and the table with its moments."""

    def split(tree: dict[str, Any]) -> tuple[Array, dict[str, Any]]:
        return tree[_TABLE], {name: value for name, value in tree.items() if name != _TABLE}

    moments = state["optimiser"]
    (values, params), (first, mu), (second, nu) = map(
        split, (state["params"], moments.mu, moments.nu)
    )
    return params, moments._replace(mu=mu, nu=nu), Rows(values, first, second)


def _joined(params: Params, optimiser: Any, rows: Rows, age: Array) -> dict[str, Any]:
    """The state of the parts that ``_parted`` returns."""
    moments = optimiser._replace(
        mu={**optimiser.mu, _TABLE: rows.first}, nu={**optimiser.nu, _TABLE: rows.second}
    )
    return {"params": {**params, _TABLE: rows.values}, "optimiser": moments, "row_age": age}


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
