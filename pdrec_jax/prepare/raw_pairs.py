"""The paper's pairs of domains from what the authors began with: reviews and ratings.

Every review counts as positive. Users and items with few records go, in each domain by itself; the
users of both domains stay.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from pdrec_jax.data.columns import Columns
from pdrec_jax.errors import UserError
from pdrec_jax.prepare import filters
from pdrec_jax.prepare.domain_logs import DomainLog
from pdrec_jax.prepare.filters import Records
from pdrec_jax.prepare.raw_log import RawLog, read_raw_log
from pdrec_jax.prepare.streams import split_suffix


@dataclasses.dataclass(frozen=True)
class RawFile:
    """A file of a domain and where its columns are."""

    path: Path
    columns: Columns
    positions: dict[str, int] | None = None

    @classmethod
    def of(cls, path: Path) -> RawFile:
        """Knows the layouts of Amazon's reviews and ratings and of RecBole's logs by the suffix."""
        suffix, _ = split_suffix(path)
        if suffix == ".csv":
            # Ratings: no header, and the item first.
            return cls(path, Columns("user", "item", "time"), {"item": 0, "user": 1, "time": 3})
        if suffix == ".inter":
            return cls(path, Columns("user_id", "item_id", "timestamp"))
        return cls(path, Columns("reviewerID", "asin", "unixReviewTime"))


def read_raw_pair(
    files: tuple[RawFile, RawFile], core: int, longest: int | None
) -> tuple[DomainLog, DomainLog]:
    """Reads both domains.

    Args:
        files: of the first domain and the second.
        core: fewest records of a user and of an item.
        longest: users with more records in a domain go; None for no limit.

    Returns:
        Their logs. Users are numbered from 1 in the order of their ids, alike in both; items too,
        in each domain by itself.

    Raises:
        UserError: a file that cannot be read, or no user of both domains.
    """
    domains = [_domain(file, core, longest) for file in files]
    common = _common_users(domains)
    if not len(common):
        raise UserError(f"{files[0].path}, {files[1].path}: no user with {core} records in both")
    first, second = (_log(domain, common) for domain in domains)
    return first, second


@dataclasses.dataclass(frozen=True, eq=False)
class _Domain:
    raw: RawLog
    records: Records


def _domain(file: RawFile, core: int, longest: int | None) -> _Domain:
    raw = read_raw_log([file.path], file.columns, file.positions)
    assert raw.times is not None
    times = raw.times
    if not raw.dates:
        times = filters.to_seconds(times, filters.guess_unit(times))
    records = Records(raw.users.codes, raw.items.codes, times)
    records = filters.in_order(records.keep(filters.in_range(times)))
    records, _ = filters.core(records, core, core)
    if longest is not None and len(records):
        records = records.keep((np.bincount(records.users) <= longest)[records.users])
    return _Domain(raw, records)


def _common_users(domains: list[_Domain]) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    names = []
    for domain in domains:
        used = np.unique(domain.records.users)
        names.append(domain.raw.users.ids.take(pa.array(used)).cast(pa.string()))
    return names[0].filter(pc.is_in(names[0], value_set=names[1]))


def _log(domain: _Domain, common: Any) -> DomainLog:
    import pyarrow as pa
    import pyarrow.compute as pc

    ids = domain.raw.users.ids.cast(pa.string())
    number = np.asarray(pc.fill_null(pc.index_in(ids, value_set=common), -1))
    records = domain.records
    chosen = number[records.users] >= 0
    records = records.keep(chosen)
    users = number[records.users].astype(np.int64) + 1
    items, _ = filters.compact(records.items)
    assert records.times is not None
    # Ids that are integers in one domain and text in the other are sorted in two ways.
    order = np.argsort(users, kind="stable")
    return DomainLog(users[order], items[order].astype(np.int64) + 1, records.times[order])
