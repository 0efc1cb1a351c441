"""The optimiser's steps of the diffusion stage, many to a dispatch: dense, or on windows."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from pdrec_jax.diffusion.denoiser import Params
from pdrec_jax.diffusion.inference import DiffusionModel
from pdrec_jax.diffusion.step import training_loss, windowed_loss, windowed_training_loss
from pdrec_jax.diffusion.timesteps import LossHistory
from pdrec_jax.diffusion.vectors import SparseBatch
from pdrec_jax.diffusion.window_tables import (
    close_window_table,
    open_window_table,
    read_window_table,
    settle_window_table,
    write_window_table,
)
from pdrec_jax.diffusion.windows import (
    Head,
    SplitBatch,
    TableRows,
    WindowedStep,
    draw_step,
    number_of_windows,
    width_of_windows,
)
from pdrec_jax.row_adam import AdamW, Rows, Tails
from pdrec_jax.sharding import MODEL, axis, constrain, spread

State = dict[str, Any]


def make_optimiser(weight_decay: float) -> optax.GradientTransformation:
    """AdamW without the learning rate, which changes by the epoch."""
    return optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(weight_decay))


def moved(
    optimiser: optax.GradientTransformation,
    state: State,
    gradient: Params,
    history: LossHistory,
    rate: float | Array,
) -> State:
    """The state after a step of the optimiser that moves every row.

    Args:
      optimiser: from ``make_optimiser``.
      state: before.
      gradient: of the parameters.
      history: of the losses, the step's included.
      rate: learning rate.
    """
    # No parameter is moved while another's gradient still reads it, or XLA copies the table.
    gradient = jax.lax.optimization_barrier(gradient)
    updates, optimiser_state = optimiser.update(gradient, state["optimiser"], state["params"])
    params = jax.tree.map(lambda p, u: p - rate * u, state["params"], updates)
    return {"params": params, "optimiser": optimiser_state, "history": history}


def _scan(
    loss: Callable[..., Any], state: State, inputs: Any, rate: float, weight_decay: float
) -> tuple[State, Array]:
    """Scans steps of a loss of (params, history, input)."""
    optimiser = make_optimiser(weight_decay)

    def step(state: State, one: Any) -> tuple[State, Array]:
        gradient, (history, mean) = jax.grad(loss, has_aux=True)(
            state["params"], state["history"], one
        )
        return moved(optimiser, state, gradient, history, rate), mean

    return jax.lax.scan(step, state, inputs)


# The seed is an argument like the others: seeds one after another share what was compiled.
@functools.partial(jax.jit, static_argnums=(4, 5, 7), donate_argnums=0)
def train_steps(
    state: State,
    batches: SparseBatch,
    numbers: Array,
    rate: float,
    model: DiffusionModel,
    weight_decay: float,
    seed: int,
    size: int,
) -> tuple[State, Array]:
    """Scans training steps; returns the state and the mean loss of each, before division by p."""
    key = jax.random.key(seed)

    def loss(params: Params, history: Any, one: tuple[SparseBatch, Array]) -> Any:
        batch, number = one
        step_key = jax.random.fold_in(key, number)
        return training_loss(params, model, history, batch, size, step_key)

    return _scan(loss, state, (batches, numbers), rate, weight_decay)


@functools.partial(jax.jit, static_argnums=(4, 5, 7), donate_argnums=0)
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


@functools.partial(jax.jit, static_argnums=(5, 6, 8), donate_argnums=0)
def train_steps_on_windows(
    state: State,
    batches: SplitBatch,
    numbers: Array,
    rate: float,
    head: Head,
    model: DiffusionModel,
    weight_decay: float,
    seed: int,
    size: int,
) -> tuple[State, Array]:
    """``train_steps`` on windows of the slots, moving all rows in every step."""
    key = jax.random.key(seed)

    def loss(params: Params, history: Any, one: tuple[SplitBatch, Array]) -> Any:
        batch, number = one
        step_key = jax.random.fold_in(key, number)
        return windowed_training_loss(params, model, head, history, batch, size, step_key)

    return _scan(loss, state, (batches, numbers), rate, weight_decay)


def split_tables(tree: Params) -> tuple[Params, tuple[Array, Array]]:
    """The parameters but the two tables, which leave an empty one behind, and the tables."""
    entry, output = tree["item_kernel"], tree["output"]
    rest = {
        **tree,
        "item_kernel": jnp.zeros((0, entry.shape[1])),
        "output": {**output, "kernel": jnp.zeros((0, output["kernel"].shape[1]))},
    }
    return rest, (entry, output["kernel"])


def join_tables(rest: Params, entry: Array, exit: Array) -> Params:
    """Undoes ``split_tables``."""
    return {**rest, "item_kernel": entry, "output": {**rest["output"], "kernel": exit}}


class Slopes(NamedTuple):
    """What a step on windows finds out.

    Attributes:
      params: gradient of the parameters but the tables.
      entry: gradient of the rows of W_x.
      exit: gradient of the rows of W_o.
      far: [F] int32, the slots that the far rows of both belong to.
      history: the losses so far.
      loss: [] the mean loss.
    """

    params: Params
    entry: TableRows
    exit: TableRows
    far: Array
    history: LossHistory
    loss: Array


def steps_by_rows(
    state: State,
    batches: SplitBatch,
    numbers: Array,
    rate: Array | float,
    head: Head,
    tail: Tails,
    model: DiffusionModel,
    weight_decay: float,
    *,
    widths: tuple[int, int],
    far_tokens: int,
    draw: Callable[[LossHistory, SplitBatch, Array], WindowedStep],
    differentiate: Callable[..., Slopes],
) -> tuple[State, Array]:
    """Scans steps on windows that move the rows that they read, on a device's part of the tables.

    Args:
      state: of the training.
      batches: with a leading axis of steps.
      numbers: of the steps.
      rate: learning rate.
      head: its slots.
      tail: of ``row_adam.tails``.
      model: static.
      weight_decay: of AdamW.
      widths: V and W.
      far_tokens: F, of ``Slopes``.
      draw: makes a step of the losses so far, a batch and its number.
      differentiate: finds its slopes, of parameters, the losses so far, the step, and the rows of
        both tables.
    """
    optimiser, adam = make_optimiser(weight_decay), AdamW(decay=weight_decay)
    part = axis(model.mesh, MODEL) > 1
    moments, *others = state["optimiser"]
    params, values = split_tables(state["params"])
    (mu, firsts), (nu, seconds) = split_tables(moments.mu), split_tables(moments.nu)
    opened = tuple(
        open_window_table(Rows(*parts), head, numbers[0], width, far_tokens, part=part)
        for *parts, width in zip(values, firsts, seconds, widths, strict=True)
    )
    optimiser_state = (moments._replace(mu=mu, nu=nu), *others)

    def step(carried: Any, inputs: tuple[SplitBatch, Array]) -> tuple[Any, Array]:
        (params, optimiser_state, history, tables), (batch, number) = carried, inputs
        drawn = draw(history, batch, number)
        far, begins = jnp.asarray(drawn.batch.far.slots), (drawn.entry, drawn.exit)
        tables = tuple(settle_window_table(table) for table in tables)
        rows = (
            read_window_table(adam, table, begin, width, far, number, tail)
            for table, begin, width in zip(tables, begins, widths, strict=True)
        )
        found = differentiate(params, history, drawn, *rows)
        updates, optimiser_state = optimiser.update(found.params, optimiser_state, params)
        params = jax.tree.map(lambda p, u: p - rate * u, params, updates)
        done, learning = number + 1, jnp.float32(rate)
        helds = (None, None) if drawn.held is None else (drawn.held.entry, drawn.held.exit)
        # Of the noise every window has its share of the variance, so that squares need no care.
        windows = (1, number_of_windows(model.error_fraction))
        tables = tuple(
            write_window_table(
                adam, table, begin, found.far, slope, done, learning, tail, times=times, held=held
            )
            for table, begin, slope, times, held in zip(
                tables, begins, (found.entry, found.exit), windows, helds, strict=True
            )
        )
        return (params, optimiser_state, found.history, tables), found.loss

    carried = params, optimiser_state, state["history"], opened
    carried, losses = jax.lax.scan(step, carried, (batches, numbers))
    params, (moments, *others), history, tables = carried
    values, firsts, seconds = zip(
        *(close_window_table(adam, table, head, numbers[-1] + 1, tail) for table in tables),
        strict=True,
    )
    mu, nu = join_tables(moments.mu, *firsts), join_tables(moments.nu, *seconds)
    state = {
        "params": join_tables(params, *values),
        "optimiser": (moments._replace(mu=mu, nu=nu), *others),
        "history": history,
    }
    return state, losses


@functools.partial(jax.jit, static_argnums=(6, 7, 9), donate_argnums=0)
def train_steps_by_rows(
    state: State,
    batches: SplitBatch,
    numbers: Array,
    rate: float,
    head: Head,
    tail: Tails,
    model: DiffusionModel,
    weight_decay: float,
    seed: int,
    size: int,
) -> tuple[State, Array]:
    """``train_steps_on_windows`` where a step moves the rows that it reads (``row_adam``).

    Of a window of the error the second moment is kept as ``write_window_table`` says.
    """
    key = jax.random.key(seed)

    def draw(history: LossHistory, batch: SplitBatch, number: Array) -> WindowedStep:
        return draw_step(model, head, history, batch, size, jax.random.fold_in(key, number))

    def differentiate(
        params: Params, history: LossHistory, drawn: WindowedStep, *rows: TableRows
    ) -> Slopes:
        (gradient, entry, exit), (history, loss) = jax.grad(
            windowed_loss, argnums=(0, 5, 6), has_aux=True
        )(params, model, head, history, drawn, *rows)
        far = jnp.asarray(drawn.batch.far.slots)
        return Slopes(gradient, entry, exit, far, history, loss)

    return steps_by_rows(
        state,
        batches,
        numbers,
        rate,
        head,
        tail,
        model,
        weight_decay,
        widths=(
            width_of_windows(model.num_slots, model.noise_fraction),
            width_of_windows(model.num_slots, model.error_fraction),
        ),
        far_tokens=batches.far.slots.shape[-1],
        draw=draw,
        differentiate=differentiate,
    )
