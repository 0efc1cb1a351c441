"""What there is to say of a user of a run; ``explain`` fills it, ``text`` and ``page`` show it."""

from __future__ import annotations

import dataclasses

import numpy as np

TRAIN, VALIDATION, TEST = "training", "validation", "test"


@dataclasses.dataclass(frozen=True)
class Event:
    """One event of the user.

    Attributes:
      item: external id.
      time: Unix seconds, None where the log has none.
      part: ``training``, ``validation`` or ``test``.
      interval: TI-DiffRec's weight of the event in the user's vector as diffusion is trained on it;
        None where there is no diffusion model, or the event is held out.
      score: the preference score of the item.
      hbr: HBR's weight of the event as a target; None where it is none.
    """

    item: str
    time: float | None
    part: str
    interval: float | None = None
    score: float | None = None
    hbr: float | None = None


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One of DPA's coarse candidates.

    Attributes:
      item: external id.
      score: the preference score; None where the model behind it is not at hand.
      picked_by: models that would pick it as it stands, after the training events; none where
        positives are drawn.
      part: ``validation`` or ``test`` where it is a held-out item, else empty.
    """

    item: str
    score: float | None
    picked_by: tuple[str, ...]
    part: str


@dataclasses.dataclass(frozen=True, eq=False)
class Negatives:
    """NNS's sample.

    Attributes:
      items: external ids of the different ones, R' of R, which are fewer where the pool is smaller
        than R; in the order of ``ranks`` where they are known.
      ranks: [R'] int, of the items in the preferences, 1 for the highest; None where the model
        behind them is not at hand.
      pool: first and last rank of the pool, and its size; None likewise.
      ranked: how many items the ranks are among, 0 likewise.
    """

    items: tuple[str, ...]
    ranks: np.ndarray | None
    pool: tuple[int, int, int] | None
    ranked: int


@dataclasses.dataclass(frozen=True)
class Recommended:
    """An item that a model recommends; ``part`` as of a ``Candidate``."""

    item: str
    score: float
    part: str


@dataclasses.dataclass(frozen=True)
class View:
    """What one model makes of the user.

    Attributes:
      name: of the model.
      top: its highest unseen items after the training and validation events, best first.
      validation_rank: of the validation item in the whole catalogue after the training events,
        1 for the highest; a tie counts as the protocol has it.
      test_rank: of the test item, after the training and validation events.
      sampled_rank: of the test item among the sampled candidates, as the run kept it; None where
        the protocol leaves the user out.
      ranked: how many items the test item is ranked among, itself included.
    """

    name: str
    top: tuple[Recommended, ...]
    validation_rank: float
    test_rank: float
    sampled_rank: float | None
    ranked: int


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """All scores of the preferences' ranking, for a plot.

    Attributes:
      values: [n] float32, highest first, of the items that the ranks are among.
      observed: ranks of training items where they take part in the ranking.
      candidates: ranks of DPA's candidates.
      heldout: rank of the validation and of the test item, None where it does not take part.
    """

    values: np.ndarray
    observed: np.ndarray
    candidates: np.ndarray
    heldout: tuple[int | None, int | None]


@dataclasses.dataclass(frozen=True, eq=False)
class Explanation:
    """All that is shown of a user.

    Attributes:
      title: of the run, with the source of its data.
      source: the line that closes every output.
      user: external id.
      events: in order; the last two are held out, or lie before source events of a mixed log.
      diffusion: name of the model behind the preferences, empty where it is not at hand.
      coarse: M.
      fine: N, 0 where positives are drawn.
      drawn: how many candidates are drawn a position, 0 where the encoder picks.
      candidates: DPA's, best first; empty where the user has no preferences.
      negatives: NNS's; None likewise.
      curve: of the preferences; None likewise or where the model behind them is not at hand.
      views: of every trained model.
      notes: what the reader should know, whole sentences.
    """

    title: str
    source: str
    user: str
    events: tuple[Event, ...]
    diffusion: str
    coarse: int
    fine: int
    drawn: int
    candidates: tuple[Candidate, ...]
    negatives: Negatives | None
    curve: Curve | None
    views: tuple[View, ...]
    notes: tuple[str, ...]
