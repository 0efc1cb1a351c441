"""Recommends with a trained model: histories in, the best unseen items out.

Letters: B users of a block, k items of each, W width of the vectors.
"""

from __future__ import annotations

import contextlib
import dataclasses
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pdrec_jax import compilation
from pdrec_jax.data import sources
from pdrec_jax.data.catalogue import Catalogue, load_catalogue
from pdrec_jax.data.interactions import Interactions
from pdrec_jax.data.log_of_run import log_files, require_same_log
from pdrec_jax.data.splits import target_only
from pdrec_jax.errors import UserError
from pdrec_jax.evaluation.ranking import distinct_rows
from pdrec_jax.recommend.fused import KEY, Recipe
from pdrec_jax.recommend.histories import Faults, Histories, UsersOfLog, from_ids
from pdrec_jax.recommend.models import Trained, VectorModel, choose, load_model
from pdrec_jax.recommend.output import BASES, Ranked
from pdrec_jax.recommend.top_items import in_blocks, top_items
from pdrec_jax.workdir import Workdir

BLOCK = 512
_NO_ITEM = np.zeros((1, 1), np.int32)


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """What is recommended to one user.

    Attributes:
      items: external ids, best first, integers or text as in the log; k of them, or all that are
        left.
      scores: of each item, higher is better: inner products of the model's vectors, comparable
        within a user. NaN where ``basis`` is ``popularity``.
      basis: ``history``, or ``popularity`` where the history holds no item that the model knows:
        then the items are the most popular ones of the log.
      unknown_items: events of the history that were left out, because the model does not know their
        item.
    """

    items: tuple[int | str, ...]
    scores: tuple[float, ...]
    basis: str
    unknown_items: int


class Recommender:
    """A trained model of a run, ready to recommend; see ``load``.

    Attributes:
      place: the run.
      trained: which of its models.
      catalogue: its items.
      others: runs whose models have a part in it.
    """

    def __init__(
        self,
        place: Workdir,
        trained: Trained,
        catalogue: Catalogue,
        model: VectorModel,
        others: Sequence[Workdir] = (),
    ) -> None:
        self.place, self.trained, self.catalogue = place, trained, catalogue
        self.others = tuple(others)
        self._model = model
        vectors = model.item_vectors()[: catalogue.num_target_items + 1]
        self._blocks = in_blocks(vectors)
        self._log: UsersOfLog | None = None

    @classmethod
    def load(cls, workdir: str | Path, variant: str | None = None) -> Recommender:
        """Loads a model from the directory of a run.

        Args:
          workdir: of a run of ``pdrec_jax.main``, of one seed; or what ``pdrec_jax.fuse`` has made
            of two models, which then lie where they were trained.
          variant: of the encoder, such as ``base`` or ``hbr+nns+dpa``, or ``diffusion`` for the
            diffusion model itself; by default the encoder with the best validation figure (under
            the protocol ``reference``, which has none, the best test figure).

        Raises:
          UserError: no run, nothing trained yet, no such variant, a broken file, or 64 bits.
        """
        compilation.require_32_bits()
        compilation.drop_if_many()  # of the models before it, in a service that loads many
        recipe = Recipe.read(Path(workdir))
        if recipe is not None:
            if variant not in (None, KEY):
                raise UserError(f"--variant: {workdir} has {KEY} alone, got {variant!r}")
            (place, *others), trained, catalogue, model = recipe.load(Path(workdir), BLOCK)
            return cls(place, trained, catalogue, model, others)
        place = Workdir.open(workdir)
        trained = choose(place, variant)
        catalogue = load_catalogue(place.path)
        return cls(place, trained, catalogue, load_model(place, trained, catalogue, BLOCK))

    @property
    def simulated(self) -> bool:
        """Whether the run was on a simulated log: then what it recommends means nothing."""
        return self.place.data.get("source") == "simulated"

    @property
    def title(self) -> str:
        """Source of the data, run, model and catalogue in one line."""
        label = "SIMULATED DATA" if self.simulated else "real data"
        trained = self.trained
        return (
            f"{label} | {self.place.config.name} | {trained.name} ({trained.chosen_by} NDCG@10 "
            f"{trained.figure:.4f}) | {self.catalogue.num_target_items:,} items"
        )

    def recommend(
        self,
        histories: Iterable[Iterable[int | str]],
        k: int = 20,
        *,
        times: Iterable[Iterable[float]] | None = None,
        include_seen: bool = False,
    ) -> list[Recommendation]:
        """Recommends to users by what they did, whether the run has met them or not.

        Args:
          histories: of each user the external ids of its items, oldest first (or see ``times``).
            Unknown ones are left out.
          k: items wanted of each.
          times: of each user the times of its items, numbers in any one unit (of dates give
            their timestamps); they settle the order, and the weights of TI-DiffRec. Without them
            items stand in order.
          include_seen: recommend items of the history again.

        Returns:
          One ``Recommendation`` a user, in order.

        Raises:
          UserError: histories that are no lists of lists, k that is no integer of at least 1, or
            times that are no numbers or do not fit the histories.
        """
        _require_count(k)
        of_users = _lists(histories, "histories", "items")
        moments_of = None if times is None else _lists(times, "times", "numbers")
        if moments_of is not None and len(moments_of) != len(of_users):
            raise UserError("times: one for each item of each history is expected")
        found: list[Recommendation] = []
        for begin in range(0, len(of_users), BLOCK):
            some = of_users[begin : begin + BLOCK]
            moments = None if moments_of is None else moments_of[begin : begin + BLOCK]
            users = np.arange(begin, begin + len(some)).astype(str)
            block = from_ids(users, some, moments, self.catalogue, Faults())
            given = np.array([len(history) for history in some])
            ranked = self.rank(block, k, include_seen=include_seen)
            found += self._listed(ranked, given - block.lengths)
        return found

    def recommend_users(
        self, users: Iterable[int | str], k: int = 20, *, include_seen: bool = False
    ) -> list[Recommendation]:
        """Recommends to users of the run's log by all that they did in it, test item included.

        Args:
          users: external ids; one that is not in the log has no history.
          k: items wanted of each.
          include_seen: recommend items of the history again.

        Raises:
          UserError: users that are no list, k that is no integer of at least 1, or the log is gone
            or another one than the run was trained on.
        """
        _require_count(k)
        ids = _listed(users, "users: a list of ids")
        log, found = self.users_of_log(), []
        for begin in range(0, len(ids), BLOCK):
            wanted = np.array([str(user).strip() for user in ids[begin : begin + BLOCK]])
            block = log.histories(wanted, Faults())
            ranked = self.rank(block, k, include_seen=include_seen)
            found += self._listed(ranked, np.zeros(len(block), np.int64))
        return found

    def users_of_log(self, files: Sequence[Path] | None = None) -> UsersOfLog:
        """Reads the log that the run was trained on, or simulates it again; once.

        Args:
          files: where it is now, if not where it was; of a prepared log also its directory.

        Raises:
          UserError: it is gone, or another one by its checksum.
        """
        if self._log is None:
            self._log = UsersOfLog(self._read_log(files))
        return self._log

    def _read_log(self, files: Sequence[Path] | None) -> Interactions:
        config = self.place.config
        places = log_files(self.place, [Path(name) for name in files or ()])
        log, source = sources.load(config, places)
        require_same_log(self.place, source)
        if log.domains is not None and not config.data.mixed:
            log = target_only(log.take(log.items <= log.num_target_items))
        if log.num_items != self.catalogue.num_items:
            raise UserError(f"{self.place.path}: its catalogue is that of another log")
        return log

    def blocks(
        self, histories: Iterator[Histories], k: int, *, include_seen: bool = False
    ) -> Iterator[Ranked]:
        """Recommends to any number of users, a block at a time; see ``rank``."""
        for block in histories:
            yield self.rank(block, k, include_seen=include_seen)

    def rank(self, histories: Histories, k: int, *, include_seen: bool = False) -> Ranked:
        """Recommends to a block of users.

        Args:
          histories: of at most ``BLOCK`` users.
          k: items wanted of each.
          include_seen: recommend items of the history again.

        Raises:
          UserError: k that is no integer of at least 1, or a score that is not finite.
        """
        _require_count(k)
        k = min(k, self.catalogue.num_target_items)
        known = histories.lengths > 0
        items = np.zeros((len(histories), k), np.int32)
        items[~known] = self.catalogue.popular[:k]
        scores = np.full(items.shape, np.nan, np.float32)
        if known.any():
            some = histories.select(np.flatnonzero(known))
            vectors = self._model.user_vectors(some)
            seen = _NO_ITEM.repeat(len(some), axis=0) if include_seen else _seen(some)
            padding = ((0, BLOCK - len(some)), (0, 0))
            best, figures = top_items(
                np.pad(vectors, padding),
                self._blocks,
                np.pad(seen, padding),
                count=min(_computed(k), self.catalogue.num_target_items),
                last_item=self.catalogue.num_target_items,
            )
            wanted = np.s_[: len(some), :k]
            items[known], scores[known] = (np.asarray(x)[wanted] for x in (best, figures))
            if np.isnan(scores[known]).any():
                raise UserError(
                    f"{self.place.path}: {self.trained.key} gives a score that is not a number, it "
                    "diverged in training"
                )
        return Ranked(histories.users, items, scores, known)

    def _listed(self, ranked: Ranked, unknown: np.ndarray) -> list[Recommendation]:
        ids = self.catalogue.item_ids
        found = []
        for items, scores, known, missed in zip(
            ranked.items, ranked.scores, ranked.known, unknown.tolist(), strict=True
        ):
            there = items > 0
            found.append(
                Recommendation(
                    tuple(ids[items[there]].tolist()),
                    tuple(scores[there].tolist()),
                    BASES[int(known)],
                    missed,
                )
            )
        return found


def _require_count(k: object) -> None:
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise UserError(f"k: an integer of at least 1 is expected, got {reprlib.repr(k)}")


def _computed(k: int) -> int:
    """How many items are computed where k are wanted: one of few numbers, each a program."""
    return max(32, 1 << (int(k) - 1).bit_length())


def _lists(given: Any, what: str, of: str) -> list[list[Any]]:
    """Lists an argument that holds a list of each user."""
    users = _listed(given, f"{what}: a list with a list of {of} for each user")
    return [_listed(own, f"{what}: user {n}: a list of {of}") for n, own in enumerate(users)]


def _listed(given: Any, expected: str) -> list[Any]:
    # Text can be iterated too, and each of its letters would be taken for an id.
    if not isinstance(given, str | bytes):
        with contextlib.suppress(TypeError):
            return list(iter(given))
    raise UserError(f"{expected} is expected, got {reprlib.repr(given)}")


def _seen(histories: Histories) -> np.ndarray:
    """Distinct items of each user, [B, K] int32, of one of few widths K."""
    width = max(64, 1 << (int(histories.lengths.max()) - 1).bit_length())
    return distinct_rows(histories.offsets, histories.items, np.arange(len(histories)), width)
