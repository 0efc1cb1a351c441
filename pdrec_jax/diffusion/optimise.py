"""The optimiser's steps of the diffusion stage, many to a dispatch, on whole tables or by rows."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from pdrec_jax.diffusion.denoiser import Params
from pdrec_jax.diffusion.inference import DiffusionModel
from pdrec_jax.diffusion.step import training_loss, windowed_loss
from pdrec_jax.diffusion.vectors import SparseBatch
from pdrec_jax.diffusion.windows import TableRows, draw_step, number_of_windows
from pdrec_jax.row_adam import (
    AdamW,
    Tails,
    close_table,
    open_table,
    read_rows,
    write_rows,
)
from pdrec_jax.sharding import constrain, spread

State = dict[str, Any]


def make_optimiser(weight_decay: float) -> optax.GradientTransformation:
    """AdamW without the learning rate, which changes by the epoch."""
    return optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(weight_decay))


@functools.partial(jax.jit, static_argnums=(4, 5, 6, 7), donate_argnums=0)
def train_steps(
    state: dict[str, Any],
    batches: SparseBatch,
    numbers: Array,
    rate: float,
    model: DiffusionModel,
    weight_decay: float,
    seed: int,
    size: int,
) -> tuple[dict[str, Any], Array]:
    """Scans training steps; returns the state and the mean loss of each, before division by p."""
    optimiser = make_optimiser(weight_decay)
    key = jax.random.key(seed)

    def step(
        state: dict[str, Any], inputs: tuple[SparseBatch, Array]
    ) -> tuple[dict[str, Any], Array]:
        batch, number = inputs
        gradient, (history, loss) = jax.grad(training_loss, has_aux=True)(
            state["params"], model, state["history"], batch, size, jax.random.fold_in(key, number)
        )
        updates, optimiser_state = optimiser.update(gradient, state["optimiser"], state["params"])
        params = jax.tree.map(lambda p, u: p - rate * u, state["params"], updates)
        return {"params": params, "optimiser": optimiser_state, "history": history}, loss

    return jax.lax.scan(step, state, (batches, numbers))


@functools.partial(jax.jit, static_argnums=(4, 5, 6, 7), donate_argnums=0)
def train_steps_on(
    state: dict[str, Any],
    batches: SparseBatch,
    numbers: Array,
    rate: float,
    model: DiffusionModel,
    weight_decay: float,
    seed: int,
    size: int,
) -> tuple[dict[str, Any], Array]:
    """``train_steps`` on the model's mesh; batches are [steps, d, P] each."""
    state, losses = train_steps(state, batches, numbers, rate, model, weight_decay, seed, size)
    return constrain(state, model.mesh), spread(losses, model.mesh)


@functools.partial(jax.jit, static_argnums=(5, 6, 7, 8), donate_argnums=0)
def train_steps_by_rows(
    state: dict[str, Any],
    batches: SparseBatch,
    numbers: Array,
    rate: float,
    tail: Tails,
    model: DiffusionModel,
    weight_decay: float,
    seed: int,
    size: int,
) -> tuple[dict[str, Any], Array]:
    """``train_steps`` where a step moves the rows that it reads, see ``row_adam``."""
    optimiser, adam = make_optimiser(weight_decay), AdamW(decay=weight_decay)
    key, windows = jax.random.key(seed), number_of_windows(model.error_fraction)

    def split(tree: Params) -> tuple[Params, tuple[Array, Array]]:
        """The parameters but the tables, which leave an empty one behind, and the tables."""
        entry, output = tree["item_kernel"], tree["output"]
        rest = {
            **tree,
            "item_kernel": jnp.zeros((0, entry.shape[1])),
            "output": {**output, "kernel": jnp.zeros((0, output["kernel"].shape[1]))},
        }
        return rest, (entry, output["kernel"])

    def join(rest: Params, entry: Array, exit: Array) -> Params:
        return {**rest, "item_kernel": entry, "output": {**rest["output"], "kernel": exit}}

    moments, *others = state["optimiser"]
    params, values = split(state["params"])
    (mu, firsts), (nu, seconds) = split(moments.mu), split(moments.nu)
    opened = tuple(
        open_table(*parts, numbers[0]) for parts in zip(values, firsts, seconds, strict=True)
    )
    optimiser_state = (moments._replace(mu=mu, nu=nu), *others)

    def step(carried: Any, inputs: tuple[SparseBatch, Array]) -> tuple[Any, Array]:
        (params, optimiser_state, history, tables), (batch, number) = carried, inputs
        drawn = draw_step(model, history, batch, size, jax.random.fold_in(key, number))
        own = jnp.asarray(batch.slots)
        ids = (drawn.entries, own), (drawn.exits, own)
        rows = TableRows(
            *(
                read_rows(adam, table, some, number, tail)
                for table, parts in zip(tables, ids, strict=True)
                for some in parts
            )
        )
        (gradient, slopes), (history, loss) = jax.grad(windowed_loss, argnums=(0, 4), has_aux=True)(
            params, model, history, drawn, rows
        )
        updates, optimiser_state = optimiser.update(gradient, optimiser_state, params)
        params = jax.tree.map(lambda p, u: p - rate * u, params, updates)
        # Of the noise every window has its share of the variance, so that squares need no care.
        taken = number + 1, jnp.float32(rate), tail
        tables = (
            write_rows(adam, tables[0], ids[0], (slopes.entry, slopes.own_entry), *taken),
            write_rows(
                adam,
                tables[1],
                ids[1],
                (slopes.exit, slopes.own_exit),
                *taken,
                rare=drawn.share > 1,
                times=windows,
            ),
        )
        return (params, optimiser_state, history, tables), loss

    carried = params, optimiser_state, state["history"], opened
    carried, losses = jax.lax.scan(step, carried, (batches, numbers))
    params, (moments, *others), history, tables = carried
    values, firsts, seconds = zip(
        *(close_table(adam, table, numbers[-1] + 1, tail) for table in tables), strict=True
    )
    moments = moments._replace(mu=join(moments.mu, *firsts), nu=join(moments.nu, *seconds))
    state = {
        "params": join(params, *values),
        "optimiser": (moments, *others),
        "history": history,
    }
    return state, losses
