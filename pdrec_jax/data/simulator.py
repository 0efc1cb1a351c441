"""Simulated logs whose truth is known: what each user likes, and which clicks were accidents.

Letters: U users, I items, E events; K interests a user, C topics.

The model. Items belong to topics, topics to categories. A user holds K interests, each a topic,
with fixed weights. An interest lives for an exponential time and then gives way to another topic,
mostly of the same category. A deliberate choice picks an interest by weight and, in most cases, an
item of its topic, sometimes of its category, seldom of the whole catalogue, in proportion to
popularity; an accidental click picks from the whole catalogue in proportion to popularity. New
interests are picked by popularity too, so accidents cannot be told by how popular the item is.

All draws are made for all events at once: an interval of topics is an interval of places in one
cumulative popularity, so that a choice of any kind is one binary search, and no array is [U, I].
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pdrec_jax.data.compressed import offsets_of
from pdrec_jax.data.interactions import Interactions, frozen
from pdrec_jax.errors import UserError

_INTERESTS = 2
_ITEMS_A_TOPIC = 30
_TOPICS_A_CATEGORY = 8
_STAY_IN_CATEGORY = 0.7
# How a deliberate choice is made: within topic, within category, anywhere. The last keeps every
# true affinity above zero.
_IN_TOPIC, _IN_CATEGORY, _ANYWHERE = 0.9, 0.08, 0.02
_MIN_LENGTH = 3

# Fitted by eye to the Toy log of the paper: lengths (median 8, mean 14.3, longest 480), gaps
# between days with events (median 42 days, 95 % below 620), 48 % of the steps within a day, half
# of the users last seen in the last two years, and the counts of the most popular items.
_LENGTH_SPREAD = 1.25
_GAP_LOG_MEAN, _GAP_USER_SPREAD, _GAP_SPREAD = 4.2, 0.6, 1.4
_GAP_SHRINKS = 0.5  # a history twice as long has gaps shorter by this power of 2
_TYPICAL_LENGTH = 8
_SAME_DAY = (1.0, 1.3)
_LONGEST_SPAN_DAYS = 5000
_END_DAY, _MEAN_ABSENCE_DAYS = 17_806, 750
_POPULARITY_OFFSET = 10

_SECONDS_A_DAY = 86_400.0
_DAYS_A_YEAR = 365.25
# A user takes a thing once: what was drawn again is drawn anew. The few that are left after so many
# rounds stay, as a real log has a few repeats too.
_REDRAWS = 6


@dataclasses.dataclass(frozen=True, eq=False)
class Catalogue:
    """The items of a domain, laid out so that each topic and each category is an interval.

    Attributes:
        item_at: `[I]` int32, the item at each place.
        cumulative: `[I+1]` float64, popularity before each place; popularities sum to 1.
        topic_starts: `[C+1]` int64, first place of each topic and the end.
        category_starts: first place of each category and the end.
    """

    item_at: NDArray[np.int32]
    cumulative: NDArray[np.float64]
    topic_starts: NDArray[np.int64]
    category_starts: NDArray[np.int64]

    @property
    def popularity(self) -> NDArray[np.float64]:
        """`[I+1]` float64, probability of an accidental click on each item; 0 for the padding."""
        popularity = np.zeros(self.item_at.size + 1)
        popularity[self.item_at] = np.diff(self.cumulative)
        return popularity


@dataclasses.dataclass(frozen=True, eq=False)
class Simulation:
    """A simulated log and its truth.

    Attributes:
        log: external ids are 1, 2, .. in each domain.
        accidental: `[E]` bool, aligned with the events of `log`: clicks made at random, in
            proportion to popularity, out of no interest.
        catalogue: the target domain's items.
        final_topics: `[U, K]` int32, the interests at the end of each user's history.
        weights: `[U, K]` float64, how often each of them is followed; rows sum to 1.
    """

    log: Interactions
    accidental: NDArray[np.bool_]
    catalogue: Catalogue
    final_topics: NDArray[np.int32]
    weights: NDArray[np.float64]

    def affinity(self, users: ArrayLike) -> NDArray[np.float32]:
        """True affinity of users for all target items, at the end of their histories.

        The probability that the next deliberate choice of a target item is this one. What the user
        has chosen before counts like the rest, so that observed items can be compared as well; the
        next choice of something new follows the same numbers over what is left.

        Args:
            users: `[n]` indices into the users of `log`.

        Returns:
            `[n, I+1]` float32; column 0 is 0 and every other is above 0, rows sum to 1. An array of
            that size is made: ask for blocks of users.
        """
        users = np.asarray(users, np.int64)
        at = self.catalogue
        follows = np.zeros((users.size, at.topic_starts.size - 1))
        rows = np.arange(users.size)[:, None]
        np.add.at(follows, (rows, self.final_topics[users]), self.weights[users])
        follows_category = np.add.reduceat(
            follows, np.arange(0, follows.shape[1], _TOPICS_A_CATEGORY), axis=1
        )
        by_place = np.full((users.size, at.item_at.size), _ANYWHERE, np.float32)
        for share, follow, starts in (
            (_IN_TOPIC, follows, at.topic_starts),
            (_IN_CATEGORY, follows_category, at.category_starts),
        ):
            mass = np.diff(at.cumulative[starts])
            density = (share * follow / mass).astype(np.float32)
            by_place += np.repeat(density, np.diff(starts), axis=1)
        affinity = np.zeros((users.size, at.item_at.size + 1), np.float32)
        affinity[:, at.item_at] = by_place * np.diff(at.cumulative).astype(np.float32)
        return affinity


def simulate(
    users: int,
    items: int,
    *,
    seed: int,
    mean_length: float = 14.3,
    source_items: int = 0,
    source_mean_length: float = 10.4,
    accidental_rate: float = 0.1,
    drift: float = 0.3,
    popularity_exponent: float = 0.7,
    lengths: NDArray[np.int64] | None = None,
) -> Simulation:
    """Draws a log of the shape of the paper's Toy log, at any size, with its truth.

    Lengths are log-normal from 3 on, times of day resolution come in bursts and long gaps,
    popularity is `p(rank) ~ (rank + 10)^-popularity_exponent`. See the module for the model.

    Args:
        users: number of users.
        items: number of target items.
        seed: the same seed and arguments give the same log.
        mean_length: target events a user; at least 3. Nobody has more than half of the items, so
            that small catalogues make shorter logs.
        source_items: number of items of a second domain that the same interests drive; 0 for none.
        source_mean_length: source events a user; at least 3.
        accidental_rate: share of accidental clicks.
        drift: rate at which an interest gives way to another, a year.
        popularity_exponent: 0 makes all items alike.
        lengths: `[U]` target events a user, of `draw_lengths`, for logs whose histories are to be
            equally long whatever else differs; None draws them here, around `mean_length`.

    Returns:
        The log and its truth.

    Raises:
        UserError: an argument out of range.
    """
    _check("users", users, 1, 2**31 - 1)
    _check("items", items, _MIN_LENGTH, 2**30)
    _check("seed", seed, 0, 2**64)
    _check("mean_length", mean_length, _MIN_LENGTH, 1e4)
    _check("source_items", source_items, 0, 2**30)
    _check("source_mean_length", source_mean_length, _MIN_LENGTH, 1e4)
    _check("accidental_rate", accidental_rate, 0, 1)
    _check("drift", drift, 0, 1e3)
    _check("popularity_exponent", popularity_exponent, 0, 10)
    rng = np.random.default_rng(seed)
    topics = max(items // _ITEMS_A_TOPIC, min(2 * _TOPICS_A_CATEGORY, items // 8), 1)
    domains = [_catalogue(rng, items, topics, popularity_exponent)]
    if lengths is None:
        lengths = draw_lengths(rng, users, items, mean_length)
    source_lengths = np.zeros_like(lengths)
    if source_items:
        domains.append(_catalogue(rng, source_items, topics, popularity_exponent))
        source_lengths = draw_lengths(rng, users, source_items, source_mean_length)

    owners = np.repeat(np.arange(users), lengths + source_lengths)
    offsets = offsets_of(lengths + source_lengths)
    days = _days(rng, owners, offsets)
    from_source = _interleave(rng, owners, days, offsets[:-1] + lengths)
    weights = rng.dirichlet(np.ones(_INTERESTS), users)
    interests = _interests(rng, domains[0], owners, days, drift)
    accidental = rng.random(owners.size) < accidental_rate
    chosen = _choices(rng, domains, owners, from_source, interests, weights, accidental)

    ids = [np.arange(items + 1), np.arange(1, source_items + 1)]
    log = Interactions(
        offsets=offsets,
        items=chosen,
        times=days.astype(np.float64) * _SECONDS_A_DAY,
        domains=from_source.astype(np.int8) if source_items else None,
        user_ids=np.arange(1, users + 1),
        item_ids=np.concatenate(ids),
        num_target_items=items,
    )
    return Simulation(
        log=log,
        accidental=frozen("accidental", accidental),
        catalogue=domains[0],
        final_topics=interests[offsets[1:] - 1],
        weights=weights,
    )


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UserError(f"{name}: a number from {low} to {high} is expected, not {value}")


def _catalogue(rng: np.random.Generator, items: int, topics: int, exponent: float) -> Catalogue:
    """Items and their popularities, spread over the topics at random."""
    popularity = (np.arange(1, items + 1) + _POPULARITY_OFFSET) ** -exponent
    popularity = rng.permutation(popularity / popularity.sum())
    topic_starts = np.arange(topics + 1) * items // topics
    categories = -(-topics // _TOPICS_A_CATEGORY)
    ends = np.minimum(np.arange(categories + 1) * _TOPICS_A_CATEGORY, topics)
    return Catalogue(
        item_at=(rng.permutation(items) + 1).astype(np.int32),
        cumulative=np.concatenate([[0.0], np.cumsum(popularity)]),
        topic_starts=topic_starts,
        category_starts=topic_starts[ends],
    )


def draw_lengths(
    rng: np.random.Generator, users: int, items: int, mean: float
) -> NDArray[np.int64]:
    """Draws `[U]` events a user: 3 and a log-normal number more, at most half of the items.

    Args:
        rng: is moved on.
        users: U.
        items: of the catalogue.
        mean: of the lengths, before the cut; at least 3.
    """
    spread = _LENGTH_SPREAD
    more = (mean - _MIN_LENGTH) * np.exp(spread * rng.standard_normal(users) - spread**2 / 2)
    # Rounding at random keeps the mean where rounding down would not.
    more = np.floor(more + rng.random(users)).astype(np.int64)
    return np.minimum(_MIN_LENGTH + more, max(_MIN_LENGTH, items // 2))


def _days(
    rng: np.random.Generator, owners: NDArray[np.int64], offsets: NDArray[np.int64]
) -> NDArray[np.int64]:
    """`[E]` days since 1970, non-decreasing within a user: bursts on one day, log-normal gaps."""
    users = offsets.size - 1
    same_day = rng.beta(*_SAME_DAY, users)
    typical_gap = rng.normal(_GAP_LOG_MEAN, _GAP_USER_SPREAD, users)
    typical_gap -= _GAP_SHRINKS * np.log(np.diff(offsets) / _TYPICAL_LENGTH)
    gaps = np.exp(typical_gap[owners] + _GAP_SPREAD * rng.standard_normal(owners.size))
    gaps = np.ceil(np.minimum(gaps, _LONGEST_SPAN_DAYS))
    gaps[rng.random(owners.size) < same_day[owners]] = 0
    gaps[offsets[:-1]] = 0
    elapsed = np.cumsum(gaps)
    elapsed -= elapsed[offsets[:-1]][owners]
    span = elapsed[offsets[1:] - 1]
    elapsed *= np.minimum(1, _LONGEST_SPAN_DAYS / np.maximum(span, 1))[owners]
    last = _END_DAY - rng.exponential(_MEAN_ABSENCE_DAYS, users).astype(np.int64)
    first = last - np.minimum(span, _LONGEST_SPAN_DAYS).astype(np.int64)
    return first[owners] + np.floor(elapsed).astype(np.int64)


def _interleave(
    rng: np.random.Generator,
    owners: NDArray[np.int64],
    days: NDArray[np.int64],
    source_starts: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """`[E]` bool, events of the source domain: any of a user's, but last within a day."""
    from_source = np.arange(owners.size) >= source_starts[owners]
    if not from_source.any():
        return from_source
    from_source = from_source[np.lexsort((rng.random(owners.size), owners))]
    return from_source[np.lexsort((from_source, days, owners))]


def _interests(
    rng: np.random.Generator,
    catalogue: Catalogue,
    owners: NDArray[np.int64],
    days: NDArray[np.int64],
    drift: float,
) -> NDArray[np.int32]:
    """`[E, K]` topics that the owner of each event is interested in at that time.

    Interests that stay are runs of events. The k-th run of every user depends on the run before it,
    so runs are drawn in rounds: all the first ones, all the second ones, and so on.
    """
    first = np.concatenate([[True], owners[1:] != owners[:-1]])
    gaps = np.concatenate([[0], np.diff(days)])
    changes = -np.expm1(-drift / _DAYS_A_YEAR * np.where(first, 0, gaps))
    topics = np.empty((owners.size, _INTERESTS), np.int32)
    for slot in range(_INTERESTS):
        starts = first | (rng.random(owners.size) < changes)
        run = np.cumsum(starts) - 1
        opens = np.flatnonzero(first[starts])
        number = np.arange(run[-1] + 1)
        number -= np.repeat(opens, np.diff(np.append(opens, number.size)))
        topics[:, slot] = _topics_of_runs(rng, catalogue, number)[run]
    return topics


def _topics_of_runs(
    rng: np.random.Generator, catalogue: Catalogue, number: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The topic of each run, whose number within its user is given; topics by popularity."""
    topics = catalogue.topic_starts.size - 1
    cumulative = catalogue.cumulative[catalogue.topic_starts]
    topic = np.zeros(number.size, np.int64)
    by_number = np.argsort(number, kind="stable")
    for runs in np.split(by_number, np.cumsum(np.bincount(number))[:-1]):
        low = np.zeros(runs.size, np.int64)
        high = np.full(runs.size, topics)
        stays = (number[runs] > 0) & (rng.random(runs.size) < _STAY_IN_CATEGORY)
        before = topic[runs[stays] - 1]
        low[stays] = before - before % _TOPICS_A_CATEGORY
        high[stays] = np.minimum(low[stays] + _TOPICS_A_CATEGORY, topics)
        topic[runs] = _draw(rng, cumulative, low, high)
    return topic


def _choices(
    rng: np.random.Generator,
    domains: list[Catalogue],
    owners: NDArray[np.int64],
    from_source: NDArray[np.bool_],
    interests: NDArray[np.int32],
    weights: NDArray[np.float64],
    accidental: NDArray[np.bool_],
) -> NDArray[np.int32]:
    """`[E]` items, hardly ever one twice by the same user."""
    thresholds = np.cumsum(weights, axis=1)[:, :-1]
    num_items = sum(catalogue.item_at.size for catalogue in domains)
    chosen = np.zeros(owners.size, np.int32)
    again = np.arange(owners.size)
    suspects = again
    for _ in range(1 + _REDRAWS):
        slot = (rng.random((again.size, 1)) > thresholds[owners[again]]).sum(axis=1)
        topic = interests[again, slot]
        for domain, catalogue in enumerate(domains):
            mine = from_source[again] == bool(domain)
            events = again[mine]
            shift = domain * domains[0].item_at.size
            chosen[events] = shift + _items(rng, catalogue, topic[mine], accidental[events])
        keys = owners[suspects] * (num_items + 1) + chosen[suspects]
        order = np.argsort(keys, kind="stable")
        repeated = keys[order[1:]] == keys[order[:-1]]
        again = suspects[order[1:][repeated]]
        if not again.size:
            break
        concerned = np.zeros(weights.shape[0], bool)
        concerned[owners[again]] = True
        suspects = suspects[concerned[owners[suspects]]]
    return chosen


def _items(
    rng: np.random.Generator,
    catalogue: Catalogue,
    topic: NDArray[np.int32],
    accidental: NDArray[np.bool_],
) -> NDArray[np.int32]:
    """One item an event: of its topic, of its category, or any, by popularity."""
    kind = rng.random(topic.size)
    category = topic // _TOPICS_A_CATEGORY
    low, high = catalogue.topic_starts[topic], catalogue.topic_starts[topic + 1]
    # A source domain with fewer items than topics leaves some of them empty.
    wider = (kind >= _IN_TOPIC) | (low == high)
    low = np.where(wider, catalogue.category_starts[category], low)
    high = np.where(wider, catalogue.category_starts[category + 1], high)
    anywhere = accidental | (kind >= _IN_TOPIC + _IN_CATEGORY) | (low == high)
    low = np.where(anywhere, 0, low)
    high = np.where(anywhere, catalogue.item_at.size, high)
    return catalogue.item_at[_draw(rng, catalogue.cumulative, low, high)]


def _draw(
    rng: np.random.Generator,
    cumulative: NDArray[np.float64],
    low: NDArray[np.int64],
    high: NDArray[np.int64],
) -> NDArray[np.int64]:
    """A place in each `[low, high)`, in proportion to the steps of `cumulative`."""
    floor, ceiling = cumulative[low], cumulative[high]
    height = floor + (ceiling - floor) * rng.random(low.size)
    place = np.searchsorted(cumulative, height, side="right") - 1
    # Rounding can lift a height onto the ceiling.
    return np.clip(place, low, high - 1)
