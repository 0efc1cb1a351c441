"""Finds out what there is to say of a user: the plugins' share, and what the models would say."""

from __future__ import annotations

import jax
import numpy as np
from ml_collections import ConfigDict

from pdrec_jax.data.batches import extend_train
from pdrec_jax.data.interactions import Interactions
from pdrec_jax.diffusion import stage as diffusion_stage
from pdrec_jax.diffusion.preferences import Preferences, negative_pool
from pdrec_jax.encoders import stage as encoder_stage
from pdrec_jax.given import pool_rules
from pdrec_jax.inspect.explanation import (
    TEST,
    TRAIN,
    VALIDATION,
    Candidate,
    Curve,
    Event,
    Explanation,
    Negatives,
    Recommended,
    View,
)
from pdrec_jax.inspect.trained import OneUser, TrainedRun, find_user, maker_of, scores
from pdrec_jax.report.tables import source_line, title
from pdrec_jax.seeds import run_head


def explain(run: TrainedRun, name: str, top: int = 10) -> Explanation:
    """Collects what there is to say of a user.

    Args:
      run: opened.
      name: the user's external id.
      top: how many recommended items of each model.

    Raises:
      UserError: no such user.
    """
    user, config = find_user(run, name), run.given.config
    notes = []
    known = {model.key: scores(run, run.place, model, user) for model in run.models}
    made = maker_of(run)
    preferred, section = None, None
    if made is not None:
        there, model = made
        section = None if model.is_encoder else there.config.diffusion
        here = there is run.place
        preferred = (known[model.key] if here else scores(run, there, model, user))[0]
    part = _part_of(user)
    preferences = _of_user(run.preferences, run, user)
    if preferences is None:
        notes.append(
            "No preferences: the plugins have nothing of this user, because "
            + (
                "the run has computed none."
                if run.preferences is None
                else f"the {run.given.protocol.name} protocol leaves the user out."
            )
        )
    elif preferred is None:
        notes.append(
            "The model that made the preferences is not in this directory: its scores of single "
            "items and the ranks of NNS's sample are not shown."
        )
    negatives, curve = None, None
    if preferences is not None:
        negatives, curve = _ranking(run, user, preferences, preferred)
    if run.place.results() is None:
        notes.append("The run is not finished: what is trained so far is shown.")
    head = {**run_head(config, None), "data": run.data}
    return Explanation(
        title=title(head),
        source=source_line(head),
        user=name,
        events=_events(run, user, preferences, section),
        diffusion="" if made is None else made[1].name,
        coarse=config.dpa.coarse,
        fine=0 if config.dpa.drawn else config.dpa.fine,
        drawn=config.dpa.drawn,
        candidates=()
        if preferences is None
        else _candidates(run, user, preferences, preferred, known),
        negatives=negatives,
        curve=curve,
        views=tuple(
            _view(run, user, model.key, model.name, known[model.key], top, part)
            for model in run.models
        ),
        notes=tuple(notes),
    )


def _of_user(all_of: Preferences | None, run: TrainedRun, user: OneUser) -> Preferences | None:
    """Cuts one user's part out of the preferences, None where there is none."""
    if all_of is None or not all_of.users[user.index]:
        return None
    at = slice(user.index, user.index + 1)
    begin, end = run.given.split.train.offsets[user.index : user.index + 2]
    return Preferences(
        all_of.users[at],
        all_of.candidates[at],
        all_of.negatives[at],
        all_of.observed[begin:end],
        all_of.padding[at],
        None if all_of.pools is None else all_of.pools[at],
    )


def _names(log: Interactions) -> np.ndarray:
    """External ids by item; those of the source say so, for an item of either may have the same."""
    ids = log.item_ids.astype(str)
    source = np.char.add(ids[log.num_target_items + 1 :], " (source)")
    return np.concatenate([ids[: log.num_target_items + 1], source])


def _part_of(user: OneUser) -> dict[int, str]:
    """Held-out items by id; one that is both counts as the test item."""
    return {int(user.split.valid_items[0]): VALIDATION, int(user.split.test_items[0]): TEST}


def _events(
    run: TrainedRun, user: OneUser, preferences: Preferences | None, diffusion: ConfigDict | None
) -> tuple[Event, ...]:
    """The user's events; ``diffusion`` is the section of the model behind the preferences."""
    config, train = run.given.config, user.split.train
    names = _names(train)
    count = train.num_events
    intervals = None
    if diffusion is not None:
        slots = train.num_items + 1
        vector = diffusion_stage.vectors_of(diffusion, user.split, slots, heldin=False)
        # A repeated item has one slot, with its last weight: only that event shows it.
        last = {int(item): place for place, item in enumerate(train.items)}
        intervals = np.full(count, np.nan)
        for slot, weight in zip(vector.slots, vector.weights, strict=True):
            intervals[last[int(slot)]] = weight
    weights = None
    if preferences is not None:
        most = config.encoder.max_length
        weights = encoder_stage.hbr_weights(
            config.hbr, user.split, preferences, run.given.protocol.hbr_floor, most
        )
    targets = min(count - 1, config.encoder.max_length)
    learnt = user.split.num_learnt_items
    events = [
        Event(
            names[item],
            None if train.times is None else float(train.times[place]),
            TRAIN,
            None if intervals is None or np.isnan(intervals[place]) else float(intervals[place]),
            None if preferences is None else float(preferences.observed[place]),
            float(weights[place])
            if weights is not None and place >= count - targets and item <= learnt
            else None,
        )
        for place, item in enumerate(train.items)
    ]
    split = user.split
    for items, times, part in (
        (split.valid_items, split.valid_times, VALIDATION),
        (split.test_items, split.test_times, TEST),
    ):
        time = None if times is None else float(times[0])
        events.append(Event(names[int(items[0])], time, part))
    return tuple(events)


def _candidates(
    run: TrainedRun,
    user: OneUser,
    preferences: Preferences,
    preferred: np.ndarray | None,
    known: dict[str, tuple[np.ndarray, np.ndarray]],
) -> tuple[Candidate, ...]:
    items = preferences.candidates[0]
    names, part = _names(user.split.train)[items], _part_of(user)
    picked: dict[int, list[str]] = {int(item): [] for item in items}
    for model in run.models:
        if run.given.config.dpa.drawn or "dpa" not in model.key.split("+")[1:]:
            continue
        # The state after the training events is what DPA lets the encoder pick by.
        order = np.argsort(-known[model.key][0][items], kind="stable")
        for place in order[: run.given.config.dpa.fine]:
            picked[int(items[place])].append(model.name)
    return tuple(
        Candidate(
            name,
            None if preferred is None else float(preferred[item]),
            tuple(picked[int(item)]),
            part.get(int(item), ""),
        )
        for name, item in zip(names, items, strict=True)
    )


_negative_pool = jax.jit(negative_pool, static_argnums=2)


def _ranking(
    run: TrainedRun, user: OneUser, preferences: Preferences, preferred: np.ndarray | None
) -> tuple[Negatives, Curve | None]:
    """The sample's ranks among all items of the preferences' ranking, ties by id."""
    given, split = run.given, user.split
    train, sample = split.train, np.unique(preferences.negatives[0])
    names = _names(train)
    if preferred is None:
        return Negatives(tuple(names[sample]), None, None, 0), None
    rules = pool_rules(given.config, given.protocol)
    num_items = split.num_learnt_items
    catalogue = np.asarray(preferred[1 : num_items + 1], np.float32)
    seen = np.unique(train.items)
    seen = seen[seen <= num_items]
    held = np.concatenate([split.valid_items, split.test_items])
    excluded = np.union1d(seen, held) if given.protocol.nns_excludes_heldout else seen
    padded = np.pad(excluded, (0, -len(excluded) % 64)).astype(np.int32)
    mask, size = _negative_pool(catalogue, padded, rules)
    takes_part = np.ones(num_items, bool)
    if not rules.ranks_among_all:
        takes_part[seen - 1] = False
    order = np.argsort(-catalogue, kind="stable")
    order = order[takes_part[order]]
    rank = np.zeros(num_items + 1, np.int64)  # 0 for an item that has none
    rank[order + 1] = np.arange(1, len(order) + 1)
    in_pool = rank[1:][np.asarray(mask)]
    by_rank = np.argsort(rank[sample], kind="stable")
    negatives = Negatives(
        tuple(names[sample[by_rank]]),
        rank[sample[by_rank]],
        (int(in_pool.min()), int(in_pool.max()), int(size)),
        len(order),
    )
    observed = rank[seen]
    candidates = rank[preferences.candidates[0]]
    ranks = [int(rank[int(item)]) or None for item in (split.valid_items[0], split.test_items[0])]
    curve = Curve(
        catalogue[order], observed[observed > 0], candidates[candidates > 0], (ranks[0], ranks[1])
    )
    return negatives, curve


def _view(
    run: TrainedRun,
    user: OneUser,
    key: str,
    name: str,
    found: tuple[np.ndarray, np.ndarray],
    top: int,
    part: dict[int, str],
) -> View:
    split, half = user.split, run.given.protocol.half_ties
    train, (after_train, after_both) = split.train, found
    test = int(split.test_items[0])
    seen = np.unique(extend_train(split)[1])
    open_items = _open(seen, test, train.num_target_items)
    fresh = open_items[~np.isin(open_items, seen)]  # a test item may have been seen before
    best = fresh[np.argsort(-after_both[fresh], kind="stable")[:top]]
    ranks = run.place.phases.arrays(key).get("sampled_rank")
    sampled = None if ranks is None else float(ranks[user.index])
    return View(
        name=name,
        top=tuple(
            Recommended(str(train.item_ids[i]), float(after_both[i]), part.get(int(i), ""))
            for i in best
        ),
        validation_rank=_rank(
            after_train, np.unique(train.items), int(split.valid_items[0]), train, half
        ),
        test_rank=_rank(after_both, seen, test, train, half),
        sampled_rank=None if sampled is None or np.isnan(sampled) else sampled + 1,
        ranked=len(open_items),
    )


def _open(seen: np.ndarray, relevant: int, last_item: int) -> np.ndarray:
    """The items that a full ranking of the relevant one is among, itself included."""
    takes_part = np.ones(last_item + 1, bool)
    takes_part[0] = False
    takes_part[seen[seen <= last_item]] = False
    takes_part[relevant] = True
    return np.flatnonzero(takes_part)


def _rank(
    found: np.ndarray, seen: np.ndarray, relevant: int, train: Interactions, half_ties: bool
) -> float:
    """Rank of an item among those that a full ranking has, 1 for the highest."""
    others = found[_open(seen, relevant, train.num_target_items)]
    above = int(np.sum(others > found[relevant]))
    ties = int(np.sum(others == found[relevant])) - 1
    return 1 + above + (ties / 2 if half_ties else 0)
