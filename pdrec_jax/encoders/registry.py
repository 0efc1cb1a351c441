"""Encoders by name; a user's own joins with ``register``, for instance in a config file."""

import re
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
_OURS = {name: title for name, (title, _) in _ENCODERS.items()}
# What a run keeps is named by encoders, plugins and these.
_OTHERS = ("data", "preferences")


def register(name: str, title: str, make: Callable[..., Encoder]) -> None:
    """Adds an encoder.

    Args:
      name: ``config.encoder.name = name`` selects it; letters, digits, ``.``, ``-`` and ``_``. An
        own encoder of that name is replaced.
      title: tables show it.
      make: a subclass of ``encoder.Encoder``, or a function that is called like one.

    Raises:
      UserError: a run could not tell it from something else by that name, or that title is the one
        of an encoder that is here already.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError(
            f"encoder {title}: a name of letters, digits, ., - and _ is expected, got {name!r}"
        )
    if name in (*_OURS, *_OTHERS) or name.startswith("diffusion"):
        raise UserError(f"encoder {title}: the name {name!r} is taken; choose another one")
    taken = {known: other for other, (known, _) in _ENCODERS.items() if other != name}
    if title in taken:
        raise UserError(f"encoder {name}: the title {title!r} is that of {taken[title]!r}")
    _ENCODERS[name] = (title, make)


def registered() -> dict[str, tuple[str, Callable[..., Encoder]]]:
    """Returns all encoders, title and maker by name, for ``put_back``."""
    return dict(_ENCODERS)


def put_back(encoders: dict[str, tuple[str, Callable[..., Encoder]]]) -> None:
    """Registers the encoders of an earlier moment again, in place of all that are here.

    A config file registers its own when it is read, and a file after it may do so by the same
    name, or none; the runs of each are of its own ones.

    Args:
      encoders: from ``registered``.
    """
    encoders = dict(encoders)
    _ENCODERS.clear()
    _ENCODERS.update(encoders)


def find(name: str) -> tuple[str, Callable[..., Encoder]]:
    """Returns the title and the maker of an encoder.

    Raises:
      UserError: an unknown name.
    """
    if name not in _ENCODERS:
        raise UserError(
            f"config.encoder.name: one of {', '.join(sorted(_ENCODERS))} is expected, or one that "
            f"the file of --config registers; got {name!r}"
        )
    return _ENCODERS[name]
