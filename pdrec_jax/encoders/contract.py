"""Whether an encoder, a user's own above all, is what ``encoder.Encoder`` asks for.

All of it is found by tracing, before anything is trained.
"""

from __future__ import annotations

import contextlib
import functools
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from pdrec_jax.encoders.encoder import Encoder
from pdrec_jax.encoders.ends import Ends
from pdrec_jax.encoders.layers import Rows
from pdrec_jax.encoders.step import by_part, rows_by_part
from pdrec_jax.encoders.step_inputs import stack
from pdrec_jax.errors import UserError
from pdrec_jax.sharding import OF_DENOISER, OF_ENCODER, is_item_table

_PACKAGE = str(Path(__file__).resolve().parents[1])


def _misfit(title: str, expected: str, got: str) -> UserError:
    """Returns the error for an encoder that is something else than is expected."""
    return UserError(f"encoder {title}: {expected} is expected, got {got}")


def require_kind(title: str, kind: type, others: Sequence[nnx.State], odd: Sequence[str]) -> None:
    """Checks that an encoder is one, and holds nothing but parameters.

    Running statistics would never be updated, and random state is handed in with each step.

    Args:
      title: of the encoder.
      kind: its class.
      others: what of its state is no ``nnx.Param``.
      odd: see ``unhashable``.

    Raises:
      UserError: it is something else, or holds something else.
    """
    if not issubclass(kind, Encoder):
        raise _misfit(title, "a pdrec_jax.encoders.encoder.Encoder", kind.__name__)
    for path in (path for state in others for path, _ in nnx.to_flat_state(state)):
        raise _misfit(
            title,
            "nothing but nnx.Param (dropout is layers.dropout with the key of the call)",
            f"other state in {'.'.join(map(str, path))}",
        )
    if odd:
        expected = "nothing but numbers, text and tuples of them beside modules and nnx.Param"
        raise _misfit(title, expected, f"another kind in {', '.join(odd)}")


def unhashable(made: Any, graph: Any) -> list[str]:
    """Returns the names of attributes that ``jax.jit`` cannot tell apart, such as a whole config.

    Args:
      made: an encoder, while it is traced.
      graph: of it, which the compiled programs are for.
    """
    if _hashable(graph):
        return []
    modules = (each for _, each in nnx.iter_graph(made) if isinstance(each, nnx.Module))
    held = [pair for each in modules for pair in vars(each).items() if not _is_node(pair[1])]
    names = [name for name, value in held if isinstance(value, jax.Array) or not _hashable(value)]
    return names or [type(made).__name__]


def _is_node(value: Any) -> bool:
    return isinstance(value, nnx.Module | nnx.Variable)


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def require_states(
    title: str,
    encoder: Callable[[Any], Encoder],
    params: Any,
    lengths: Sequence[int],
    num_items: int,
) -> None:
    """Checks the table of items, and the states of a row of each length.

    Args:
      title: of the encoder.
      encoder: made of its parameters.
      params: shapes of them.
      lengths: of the rows that it gets.
      num_items: I.

    Raises:
      UserError: a parameter is empty or holds no floating-point numbers, the table has not I + 1
        rows, another parameter is called as if it had a row an item, or the states are not as wide
        as the table.
    """
    table = params.get("item_embedding")
    shape = getattr(table, "shape", None)
    if shape is None or len(shape) != 2 or shape[0] < num_items + 1:
        got = "none" if table is None else type(table).__name__ if shape is None else f"{shape}"
        expected = f"item_embedding, an nnx.Param [I + 1, D] (here of {num_items + 1} rows)"
        raise _misfit(title, expected, got)
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    for path, leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.floating) or leaf.size == 0:
            name = ".".join(str(part.key) for part in path)
            got = f"{leaf.dtype} {leaf.shape} in {name}"
            raise _misfit(title, "floating-point numbers, at least one, in every nnx.Param", got)
    # A mesh splits tables of items by these names.
    for path, leaf in leaves:
        named = is_item_table(path, (*OF_ENCODER, *OF_DENOISER[:1]))
        if named and (is_item_table(path, OF_DENOISER) or leaf.shape[:1] != shape[:1]):
            got = ".".join(str(part.key) for part in path)
            raise _misfit(title, "another name of what has no row for each item", got)

    def states(params: Any, key: jax.Array | None, to_ends: bool) -> list[jax.Array]:
        rows = [Rows(*4 * [jnp.zeros((2, length), jnp.int32)]) for length in lengths]
        vectors = [params["item_embedding"][row.items] for row in rows]
        if to_ends:
            ends = [Ends(1, 1) for _ in lengths]
            return encoder(params).encode_to_ends(vectors, rows, key, ends)
        return encoder(params).encode(vectors, rows, key)

    expected_shapes = [(2, length, shape[1]) for length in lengths]
    # In training, there where a part is read at its ends, and in evaluation.
    for key, to_ends in ((jax.random.key(0), False), (jax.random.key(0), True), (None, False)):
        made = jax.eval_shape(functools.partial(states, to_ends=to_ends), params, key)
        found = [getattr(each, "shape", None) for each in made]
        if found != expected_shapes:
            raise _misfit(
                title,
                f"a state as wide as item_embedding ({shape[1]}) for each cell of a row, shapes "
                f"{_listed(expected_shapes)},",
                _listed(found),
            )


def require_step(
    title: str,
    encoder: Callable[[Any], Encoder],
    params: Any,
    lengths: Sequence[int],
    users: int,
) -> bool:
    """Checks the views and the own loss, as a training step has them.

    Args:
      title: of the encoder.
      encoder: made of its parameters.
      params: shapes of them.
      lengths: of the rows that it gets.
      users: B, of a batch; here each has a row of each length.

    Returns:
      whether a step has a gradient of the table of items beside that of the vectors that it is
      handed.

    Raises:
      UserError: a view is no rows, or the loss is no number.
    """
    table = params["item_embedding"]

    def step(table: jax.Array, params: Any, key: jax.Array) -> jax.Array:
        made = encoder({**params, "item_embedding": table})
        groups: list[tuple[Rows, ...]] = []
        for length in lengths:
            rows = Rows(*4 * [jnp.zeros((users, length), jnp.int32)])
            views: Any = made.views(rows, key)  # a user's own, so of any kind
            several = isinstance(views, tuple | list)
            if not several or not all(_are_rows(view) for view in views):
                raise _misfit(title, "a tuple of layers.Rows [R, L] from views", repr(views))
            groups.append((rows, *views))
        if len({len(parts) for parts in groups}) > 1:
            counts = _listed([len(parts) - 1 for parts in groups])
            raise _misfit(title, "the same number of views of rows of any length", counts)
        stacked = [stack(*parts) for parts in groups]
        vectors = [jnp.zeros((*rows.items.shape, table.shape[1])) for rows in stacked]
        own, *states = by_part(made.encode(vectors, stacked, key), groups)
        loss = made.own_loss(states, rows_by_part(groups)[1:], jnp.zeros(users, jnp.int32))
        if jnp.shape(loss) != ():
            raise _misfit(title, "one number from own_loss, shape (),", f"{jnp.shape(loss)}")
        return jnp.sum(own) + loss

    key = jax.random.key(0)
    jax.eval_shape(step, table, params, key)
    traced = jax.make_jaxpr(jax.grad(step))(table, params, key).jaxpr
    made_by = next(each for each in reversed(traced.eqns) if traced.outvars[0] in each.outvars)
    # Without any there is nothing but zeros to return, made of the literal 0.
    return not all(getattr(given, "val", None) == 0 for given in made_by.invars)


def _are_rows(view: Any) -> bool:
    if not isinstance(view, Rows):
        return False
    shapes = {jnp.shape(cells) for cells in view}
    return len(shapes) == 1 and len(shapes.pop()) == 2


def is_ours(make: Callable[..., Any]) -> bool:
    """Whether an encoder's class, or what makes it, is one of this package."""
    return str(getattr(make, "__module__", "")).startswith("pdrec_jax.")


@contextlib.contextmanager
def one_line(title: str, make: Callable[..., Any]) -> Iterator[None]:
    """Says in one line, with the file and the row, what a user's own encoder raises.

    Args:
      title: of the encoder.
      make: its class, or what makes it. What one of this package raises is a bug and stays whole.

    Raises:
      UserError: it has raised something.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_ours(make):
            raise
        own = [
            f"{frame.filename}: row {frame.lineno}: "
            for frame in traceback.extract_tb(error.__traceback__)
            if "site-packages" not in frame.filename and not frame.filename.startswith(_PACKAGE)
        ]
        said = str(error).partition("\n")[0]
        where = own[-1] if own else ""
        raise UserError(f"encoder {title}: {where}{type(error).__name__}: {said}") from error


def _listed(shapes: Sequence[Any]) -> str:
    return ", ".join(map(str, shapes))
