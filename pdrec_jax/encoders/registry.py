"""Encoders by name; a user's own joins with ``register``, for instance in a config file."""

from collections.abc import Callable

from pdrec_jax.encoders.cl4srec import CL4SRec
from pdrec_jax.encoders.encoder import Encoder
from pdrec_jax.encoders.gru4rec import GRU4Rec
from pdrec_jax.encoders.sasrec import SASRec
from pdrec_jax.errors import UserError

_ENCODERS: dict[str, tuple[str, Callable[..., Encoder]]] = {
    "cl4srec": ("CL4SRec", CL4SRec),
    "gru4rec": ("GRU4Rec", GRU4Rec),
    "sasrec": ("SASRec", SASRec),
}


def register(name: str, title: str, make: Callable[..., Encoder]) -> None:
    """Adds an encoder.

    Args:
      name: ``config.encoder.name = name`` selects it.
      title: tables show it.
      make: a subclass of ``encoder.Encoder``, or a function that is called like one.
    """
    _ENCODERS[name] = (title, make)


def find(name: str) -> tuple[str, Callable[..., Encoder]]:
    """Returns the title and the maker of an encoder.

    Raises:
      UserError: an unknown name.
    """
    if name not in _ENCODERS:
        raise UserError(f"encoder.name: expected one of {sorted(_ENCODERS)}, got {name!r}")
    return _ENCODERS[name]
