"""Whether a tree of arrays that was saved is that of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding

from pdrec_jax.errors import UserError
from pdrec_jax.sharding import MODEL, is_item_table, tables_in

Tree = Any


def check_same(place: Path, saved: Tree, like: Tree) -> bool:
    """Compares names, shapes and types, since Orbax would pad or cast some differences.

    Args:
      place: of the save, for messages.
      saved: what Orbax tells of the saved arrays.
      like: a tree of arrays or of ``ShapeDtypeStruct``.

    Returns:
      whether tables have other numbers of rows for the sake of another mesh alone.

    Raises:
      UserError: a tree of another structure, shape or type.
    """
    found, expected, other = _leaves(saved), _leaves(like), False
    tables = tables_in(like)
    for name in sorted(expected.keys() | found.keys()):
        old, new = found.get(name), expected.get(name)
        if old and new and old[:2] == new[:2]:
            continue
        table = is_item_table(name.split("."), tables)
        if not (old and new and table and _is_padding(old, new)):
            raise UserError(
                f"{place}: checkpoint of another model: {name} is {_shown(old)}, "
                f"expected {_shown(new)}"
            )
        other = True
    return other


class _Leaf(NamedTuple):
    """What is compared of an array: shape, type, and the parts of its first axis."""

    shape: tuple[int, ...]
    kind: str
    parts: int


def _leaves(tree: Tree) -> dict[str, _Leaf]:
    """Names each leaf by its path."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    names = {}
    for path, leaf in leaves:
        parts = (getattr(p, "key", getattr(p, "idx", getattr(p, "name", p))) for p in path)
        name, kind = ".".join(map(str, parts)), np.dtype(leaf.dtype).name
        names[name] = _Leaf(tuple(leaf.shape), kind, _parts(getattr(leaf, "sharding", None)))
    return names


def _parts(sharding: Any) -> int:
    """Into how many parts the axis ``model`` splits an array, saved or to be restored."""
    if isinstance(sharding, NamedSharding):
        return int(sharding.mesh.shape.get(MODEL, 1))
    names = list(getattr(sharding, "axis_names", None) or [])
    return int(sharding.shape[names.index(MODEL)]) if MODEL in names else 1


def _shown(leaf: _Leaf | None) -> str:
    return "absent" if leaf is None else f"{leaf.shape} {leaf.kind}"


def _is_padding(found: _Leaf, expected: _Leaf) -> bool:
    """Whether an item table is the same but for the rows that fill it up to its mesh."""
    if found.shape[1:] != expected.shape[1:]:
        return False
    # Some number of real rows must have led to both.
    least = max(leaf.shape[0] - leaf.parts for leaf in (found, expected))
    return found.kind == expected.kind and least < min(found.shape[0], expected.shape[0])
