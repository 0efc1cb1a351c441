"""The logs of two domains as one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pdrec_jax.data.compressed import offsets_of
from pdrec_jax.data.interactions import Interactions
from pdrec_jax.errors import UserError


def merge_domains(
    target: Interactions, source: Interactions, *, source_first: bool = False
) -> Interactions:
    """Joins the logs of two domains into one mixed log of the target's users.

    Users are matched by external id; source users unknown to the target are dropped. Source items
    follow the target's (`source id + target.num_items`). Within a user, events are sorted by time.
    Who comes first within a tie matters, because times of day resolution tie often and the split
    drops what comes after the last target event. The reference has one mixed log for a pair of
    domains whichever is the target, with Toy before Game.

    Args:
        target: log of the target domain, with times.
        source: log of the source domain, with times.
        source_first: whether the source's events come first within a tie, not the target's.

    Returns:
        The mixed log, `domains` set, over the users of `target`.

    Raises:
        UserError: a log without times or of two domains already, or no user in common.
    """
    for name, log in (("target", target), ("source", source)):
        if log.domains is not None:
            raise UserError(f"{name} log: it holds two domains already")
        if log.times is None:
            raise UserError(f"{name} log: domains are merged by time, it has no times")
    assert target.times is not None
    assert source.times is not None
    target_users, source_users = _one_kind(target.user_ids, source.user_ids)
    common, in_target, in_source = np.intersect1d(target_users, source_users, return_indices=True)
    if not common.size:
        raise UserError("no user of the source log occurs in the target log")
    match = np.full(source.num_users, -1)
    match[in_source] = in_target
    source_owners = match[source.event_users]
    joined = source_owners >= 0
    from_source = np.arange(target.num_events + int(joined.sum())) >= target.num_events
    users = np.concatenate([target.event_users, source_owners[joined]])
    items = np.concatenate([target.items, source.items[joined] + np.int32(target.num_items)])
    times = np.concatenate([target.times, source.times[joined]])
    order = np.lexsort((from_source != source_first, times, users))
    return Interactions(
        offsets=offsets_of(np.bincount(users, minlength=target.num_users)),
        items=items[order],
        times=times[order],
        domains=from_source[order].astype(np.int8),
        user_ids=target.user_ids,
        item_ids=np.concatenate(_one_kind(target.item_ids, source.item_ids[1:])),
        num_target_items=target.num_items,
    )


def _one_kind(left: NDArray, right: NDArray) -> tuple[NDArray, NDArray]:
    """Both columns of ids as integers, or both as text."""
    if left.dtype.kind == right.dtype.kind:
        return left, right
    return left.astype(str), right.astype(str)
