"""How large a log is, without the log."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import cast

import numpy as np
from ml_collections import ConfigDict

from pdrec_jax.data.sources import find_files, load
from pdrec_jax.data.splits import Split, leave_one_out
from pdrec_jax.encoders.stage import title_of
from pdrec_jax.errors import UserError
from pdrec_jax.settings import get

_SAMPLE = 65_536  # users whose lengths stand for all


@dataclasses.dataclass(frozen=True, eq=False)
class Sizes:
    """Of the training part of a log.

    Attributes:
      users: U.
      items: I.
      lengths: training events of some users, who stand for all.
      source: where they come from, in words.
      simulated: whether none is of a real log or given.
    """

    users: int
    items: int
    lengths: np.ndarray
    source: str
    simulated: bool = False

    @property
    def longest(self) -> int:
        """Events of the user with the most."""
        return int(self.lengths.max())

    def split(self) -> Split:
        """What of a split the makers of models read: its sizes."""
        train = SimpleNamespace(num_items=self.items, num_target_items=self.items)
        return cast(Split, SimpleNamespace(train=train, num_source_items=0))

    def draw(self, shape: tuple[int, ...]) -> np.ndarray:
        """Lengths of users that are drawn at random, int64."""
        rng = np.random.default_rng(0)
        return self.lengths[rng.integers(0, len(self.lengths), shape)]


def sizes_of(config: ConfigDict, users: int | None, items: int | None, events: int | None) -> Sizes:
    """Takes the sizes that are given, and the others from the log that a run would read.

    Args:
      config: names the log.
      users: U, or None.
      items: I, or None.
      events: of each user, or None for the lengths of the log.

    Raises:
      UserError: a size that no job can have, or anything wrong with a log that is needed.
    """
    for name, value, least in (("users", users, 2), ("items", items, 200), ("events", events, 3)):
        if value is not None and value < least:
            raise UserError(f"--{name}: at least {least} is expected, got {value}")
    if users is not None and items is not None and events is not None:
        return Sizes(users, items, np.full(1, events - 2), "given")
    log, found = load(config, find_files(config))
    parts = leave_one_out(log)
    lengths = parts.train.lengths[parts.train.lengths > 0]
    if len(lengths) > _SAMPLE:
        lengths = np.random.default_rng(0).choice(lengths, _SAMPLE, replace=False)
    return Sizes(
        users or parts.train.num_users,
        items or parts.train.num_items,
        lengths if events is None else np.full(1, events - 2),
        f"{found['source']} log" + (", the rest given" if users or items or events else ""),
        found["source"] == "simulated" and not (users or items or events),
    )


def require_planned(config: ConfigDict) -> None:
    """Checks that a config asks for nothing that a plan would leave out, or that there is not.

    Raises:
      UserError: it does.
    """
    for variant in config.encoder.variants:
        title_of(config.encoder, variant)
    for field, planned in {
        "seeds": 1,
        "preferences_by": "diffusion",
        "diffusion_from": "",
        "diffusion.both": False,
        "diffusion.source_slots": False,
        "data.mixed": False,
    }.items():
        if get(config, field) != planned:
            raise UserError(
                f"config.{field}: {planned!r} is planned alone, got {get(config, field)!r}"
            )
