"""Encoders by name; a user's own joins with ``register``.

An encoder is a Flax NNX module made from (config section ``encoder``, number of items, rngs) with

- ``item_embedding``: an ``nnx.Param`` [I + 1, D], row 0 the padding id;
- ``__call__(vectors, rows, key)``: from embedded items [R, L, D] in packed ``Rows`` to a state per
  cell [R, L, D]; ``key`` is None in evaluation. A cell's state may depend only on the cells before
  it in its segment and itself.
"""

from collections.abc import Callable
from typing import Any

from pdrec_jax.encoders.sasrec import SASRec
from pdrec_jax.errors import UserError

_ENCODERS: dict[str, tuple[str, Callable[..., Any]]] = {"sasrec": ("SASRec", SASRec)}


def register(name: str, title: str, make: Callable[..., Any]) -> None:
    """Adds an encoder: ``config.encoder.name = name`` selects it, tables show ``title``."""
    _ENCODERS[name] = (title, make)


def find(name: str) -> tuple[str, Callable[..., Any]]:
    """Returns the title and the maker of an encoder.

    Raises:
      UserError: an unknown name.
    """
    if name not in _ENCODERS:
        raise UserError(f"encoder.name: expected one of {sorted(_ENCODERS)}, got {name!r}")
    return _ENCODERS[name]
