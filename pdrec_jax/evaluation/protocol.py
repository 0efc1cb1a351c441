"""The two protocols: which users, which inputs, which candidates, and what chooses the epoch.

``strict`` is free of leakage; ``reference`` does what the authors' code does, so that its figures
can be held against the paper's Table 1. docs/design.md has them side by side.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from ml_collections import ConfigDict

from pdrec_jax.data import scratch
from pdrec_jax.data.splits import Split
from pdrec_jax.errors import UserError

NEGATIVES = 99


@dataclasses.dataclass(frozen=True)
class Protocol:
    """A named set of choices.

    Attributes:
      name: printed with every figure.
      select_on_test: choose the epoch by the test item (True) or the validation item.
      nns_excludes_heldout: the negatives' pool leaves out validation and test items too.
      nns_last_fraction: where the negatives' pool ends in the ranking, see ``PoolRules``.
      dpa_unobserved: soft positives come from unobserved items only.
      hbr_floor: ``observed`` or ``shifted`` (``plugins.hbr``).
      half_ties: a tied candidate counts half a place.
      test_among_negatives: the test item can be drawn as one of its own negatives.
      trains_between: in the cross-domain task, source events between the validation and the test
        item are trained on.
    """

    name: str
    select_on_test: bool
    nns_excludes_heldout: bool
    nns_last_fraction: float
    dpa_unobserved: bool
    hbr_floor: str
    half_ties: bool
    test_among_negatives: bool
    trains_between: bool


STRICT = Protocol(
    name="strict",
    select_on_test=False,
    nns_excludes_heldout=False,
    nns_last_fraction=1.0,
    dpa_unobserved=True,
    hbr_floor="observed",
    half_ties=True,
    test_among_negatives=False,
    trains_between=False,
)
REFERENCE = Protocol(
    name="reference",
    select_on_test=True,
    nns_excludes_heldout=True,
    nns_last_fraction=0.99,
    dpa_unobserved=False,
    hbr_floor="shifted",
    half_ties=False,
    test_among_negatives=True,
    trains_between=True,
)


def get_protocol(name: str) -> Protocol:
    """Returns the protocol of that name; raises UserError for another."""
    for protocol in (STRICT, REFERENCE):
        if protocol.name == name:
            return protocol
    raise UserError(f"protocol: expected 'strict' or 'reference', got {name!r}")


def protocol_of(config: ConfigDict) -> Protocol:
    """Returns the protocol of a config, with the choices that the plugins' own fields make.

    Neither ``hbr.floor`` nor ``dpa.pool`` decides on what training may see.

    Args:
      config: the whole config.
    """
    protocol = get_protocol(config.protocol)
    if config.hbr.floor != "protocol":
        protocol = dataclasses.replace(protocol, hbr_floor=config.hbr.floor)
    if config.dpa.pool != "protocol":
        protocol = dataclasses.replace(protocol, dpa_unobserved=config.dpa.pool == "unobserved")
    return protocol


@dataclasses.dataclass(frozen=True, eq=False)
class UserSets:
    """Which users take part where, [U] bool each.

    Attributes:
      diffusion: train and evaluate the diffusion model.
      preferences: have preferences computed, and are drawn by the encoder's batches.
      encoder: evaluate the encoder.
    """

    diffusion: np.ndarray
    preferences: np.ndarray
    encoder: np.ndarray


def user_sets(protocol: Protocol, split: Split) -> UserSets:
    """Selects users as the protocol says.

    ``strict``: every user with a pair of training events. ``reference``: the public code's filters,
    which ask for source-domain events although the task has one domain, and leave out the user with
    the highest id from the encoder's evaluation. A log of one domain has no source events to ask
    for, so that part of the filter falls away.
    """
    train = split.train.target_lengths
    if protocol.name == "strict":
        pair = train >= 2
        return UserSets(pair, pair, pair)
    source = split.source_lengths if split.mixed is not None else np.full(len(train), 2)
    encoder = (train >= 2) & (source >= 1)
    encoder[-1] = False
    return UserSets(
        (train >= 2) & (source >= 2),
        (train >= 1) & (source >= 1),
        encoder,
    )


def draw_candidates(
    protocol: Protocol, split: Split, seed: int, *, heldout: str, negatives: int = NEGATIVES
) -> np.ndarray:
    """Draws the sampled candidates of every user once, for all models and epochs.

    They are items of the target domain, also where the input holds others.

    A user's draw depends on the seed, the user and what is held out. Never drawn: what the model is
    given as input, and the held-out item itself, but that under ``reference`` the test item can be
    (the public code lets it). Those of the validation are drawn apart from those of the test, and
    may hold the test item, so that nothing of the test has a say in which epoch is chosen.

    Args:
      protocol: decides on the test item.
      split: the data.
      seed: of the draw.
      heldout: ``valid`` or ``test``: whose item goes to column 0.
      negatives: N.

    Returns:
      [U, 1 + N] int32; the relevant item in column 0, then N distinct others.

    Raises:
      UserError: a user has fewer than N items to draw from.
    """
    drawn = DrawnCandidates(protocol, split, seed, heldout, negatives)
    drawn.require_items()  # before there is a table for them
    table = np.zeros(drawn.shape, np.int32)
    users = np.arange(len(table))
    table[:, 0] = drawn[users, 0]
    drawn.fill(table[:, 1:], users)
    return table


@dataclasses.dataclass(frozen=True, eq=False)
class DrawnCandidates:
    """The table of ``draw_candidates`` whose rows are drawn when they are asked for.

    With 99 negatives a user's row is as long as a history of 33 events with times, so the table of
    a log that need not fit in memory would not fit either. What was drawn lies on the disk, see
    ``data.scratch``, for to read a row takes a fraction of the time of its draw. The table is read
    as one in memory would be, by ``table[users]``, [B, 1 + N] int32, or by ``table[users, 0]`` for
    the relevant items alone.

    Attributes:
      protocol: see ``draw_candidates``, as for all others.
      split: the data.
      seed: of the draw.
      heldout: ``valid`` or ``test``.
      negatives: N.
    """

    protocol: Protocol
    split: Split
    seed: int
    heldout: str
    negatives: int

    @property
    def shape(self) -> tuple[int, int]:
        """(U, 1 + N)."""
        return self.split.train.num_users, 1 + self.negatives

    def __getitem__(self, which: np.ndarray | tuple[np.ndarray, int]) -> np.ndarray:
        split = self.split
        positives = split.valid_items if self.heldout == "valid" else split.test_items
        if isinstance(which, tuple):
            users, column = which
            return positives[users] if column == 0 else self[users][:, column]
        negatives, drawn = self._kept
        missing = np.unique(which[~drawn[which]])
        self.fill(negatives, missing)
        drawn[missing] = True
        return np.concatenate((positives[which, None], negatives[which]), axis=1, dtype=np.int32)

    @functools.cached_property
    def _kept(self) -> tuple[np.ndarray, np.ndarray]:
        """The negatives, [U, N] int32 on the disk, and whose are there, [U] bool."""
        users = self.split.train.num_users
        negatives = scratch.zeros(users * self.negatives, np.int32)
        return negatives.reshape(users, self.negatives), np.zeros(users, bool)

    def require_items(self) -> None:
        """Checks that every user has N items to draw from, without drawing all of them.

        Raises:
          UserError: one has not.
        """
        most = self.split.train.lengths + 2
        short = self.split.train.num_target_items - most < self.negatives
        for user in np.flatnonzero(short).tolist():  # who may have: some items may be repeated
            self._draw(user)

    def require_room(self) -> None:
        """Claims the disk that the table will take.

        Raises:
          UserError: there is not enough of it.
        """
        _ = self._kept

    def fill(self, table: np.ndarray, users: np.ndarray) -> None:
        """Draws the negatives of some users into their rows of a table, [U, N]."""
        for user in users.tolist():
            table[user] = self._draw(user)

    def _draw(self, user: int) -> np.ndarray:
        split, negatives = self.split, self.negatives
        train, num_items = split.train, split.train.num_target_items
        own = train.items[train.offsets[user] : train.offsets[user + 1]]
        excluded = np.append(own, split.valid_items[user])
        of_test = self.heldout == "test"
        if of_test and not self.protocol.test_among_negatives:
            excluded = np.append(excluded, split.test_items[user])
        excluded = np.unique(excluded[excluded <= num_items])
        if num_items - len(excluded) < negatives:
            raise UserError(
                f"evaluation: user {split.train.user_ids[user]} leaves {num_items - len(excluded)} "
                f"items to draw {negatives} negatives from; a larger catalogue is needed"
            )
        rng = np.random.default_rng((self.seed, user) if of_test else (self.seed, user, 1))
        # Distinct ranks among the items that are not excluded, shifted past the excluded ones.
        ranks = rng.choice(num_items - len(excluded), negatives, replace=False)
        return complement(excluded, ranks)


# Of all users: the table, or what draws its rows.
Candidates = np.ndarray | DrawnCandidates


def complement(excluded: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Returns the items of the given ranks (from 0) among those not excluded, ids counting from 1.

    Args:
      excluded: sorted distinct ids.
      ranks: any shape.
    """
    below = excluded - np.arange(len(excluded)) - 1  # how many kept items precede each excluded one
    return ranks + 1 + np.searchsorted(below, ranks, side="right")
