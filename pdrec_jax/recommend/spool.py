"""Histories from files of events, grouped by user in constant memory.

The events of a user may stand anywhere in the files. Up to a million rows are grouped in memory;
beyond that, rows go to one of 256 files on the disk by a hash of the user's id, and each of those
is then grouped by itself.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdrec_jax.data.catalogue import Catalogue
from pdrec_jax.data.columns import Columns
from pdrec_jax.files import write_errors
from pdrec_jax.prepare.raw_log import nothing_usable, usable_batches
from pdrec_jax.recommend.histories import Faults, Histories, group

_IN_MEMORY = 1 << 20
_BUCKETS = 256


def from_files(
    paths: Sequence[Path],
    wanted: Columns,
    catalogue: Catalogue,
    faults: Faults,
    *,
    block: int,
    beside: Path,
    in_memory: int = _IN_MEMORY,
) -> Iterator[Histories]:
    """Reads histories from files, in any of the formats that `pdrec_jax.prepare` reads.

    Args:
        paths: the files, read one after the other.
        wanted: their columns.
        catalogue: of the run.
        faults: counts what is no use.
        block: users at a time.
        beside: a temporary folder for rows that do not fit the memory is made in this one.
        in_memory: rows that are grouped without it.

    Yields:
        Blocks of users. They come in the order in which they first occur, as long as all rows fit
        the memory. Users of whom no item is known have no events.

    Raises:
        UserError: a file that cannot be read, or not one record that can be used.
    """
    kept: list[Any] = []
    rows = 0
    with contextlib.ExitStack() as stack:
        spool: _Spool | None = None
        for ids, times, _ in usable_batches(paths, wanted, faults.rows):
            table = _coded(ids[wanted.user], ids[wanted.item], times, catalogue, faults)
            rows += len(table)
            if spool is None and rows > in_memory:
                spool = stack.enter_context(_Spool(beside))
                for earlier in kept:
                    spool.add(earlier)
                kept = []
            if spool is None:
                kept.append(table)
            else:
                spool.add(table)
        if not rows:
            raise nothing_usable(paths, faults.rows)
        if spool is None:
            yield from _blocks(kept, block)
        else:
            for bucket in spool.buckets():
                yield from _blocks([bucket], block)


def _coded(
    users: Any, items: Any, times: NDArray[np.float64] | None, catalogue: Catalogue, faults: Faults
) -> Any:
    """The rows of a batch as an arrow table: users as text, items of the catalogue, times."""
    import pyarrow as pa

    text = items.dictionary.to_numpy(zero_copy_only=False).astype(str)
    codes = catalogue.find(text)[np.asarray(items.indices)]
    strange = np.flatnonzero(codes == 0)
    faults.items.add(strange.size, items[int(strange[0])].as_py() if strange.size else "")
    columns = {"user": users, "item": pa.array(codes)}
    if times is not None:
        columns["time"] = pa.array(times)
    return pa.table(columns)


def _blocks(tables: list[Any], block: int) -> Iterator[Histories]:
    import pyarrow as pa
    import pyarrow.compute as pc

    table = pa.concat_tables(tables)
    # An id that stood there with blanks too is in a dictionary twice: coded anew, in order of
    # appearance.
    encoded = pc.dictionary_encode(table["user"].cast(pa.string())).combine_chunks()
    users = encoded.dictionary.to_numpy(zero_copy_only=False)
    times = table["time"].to_numpy() if "time" in table.column_names else None
    items = table["item"].to_numpy()
    whole = group(users, np.asarray(encoded.indices).astype(np.int64), items, times)
    for begin in range(0, len(users), block):
        some = whole.select(np.arange(begin, min(begin + block, len(users))))
        yield Histories(some.users.astype(str), some.offsets, some.items, some.times)


class _Spool:
    """Rows on the disk, those of a user in one bucket."""

    def __init__(self, beside: Path) -> None:
        self._beside = beside
        self._writers: dict[int, Any] = {}

    def __enter__(self) -> _Spool:
        with write_errors(self._beside):
            self._folder = Path(tempfile.mkdtemp(".tmp", ".recommend.", self._beside))
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _close(self) -> None:
        while self._writers:
            with contextlib.suppress(OSError):  # a full disk has been told of already
                self._writers.popitem()[1].close()

    def _path(self, bucket: int) -> Path:
        return self._folder / f"{bucket}.arrow"

    def add(self, table: Any) -> None:
        """Deals the rows of a table out to the buckets."""
        import pyarrow as pa
        import pyarrow.compute as pc

        users = pc.dictionary_encode(table["user"].cast(pa.string())).combine_chunks()
        buckets = np.array(
            [zlib.crc32(user.encode()) % _BUCKETS for user in users.dictionary.to_pylist()]
        )[np.asarray(users.indices)]
        order = np.argsort(buckets, kind="stable")
        ends = np.searchsorted(buckets[order], np.arange(_BUCKETS + 1))
        table = table.set_column(0, "user", users.cast(pa.string())).take(pa.array(order))
        for bucket in np.flatnonzero(np.diff(ends)).tolist():
            with write_errors(self._path(bucket)):
                if bucket not in self._writers:
                    self._writers[bucket] = pa.ipc.new_stream(self._path(bucket), table.schema)
                part = table.slice(ends[bucket], ends[bucket + 1] - ends[bucket])
                self._writers[bucket].write_table(part)

    def buckets(self) -> Iterator[Any]:
        """Yields the rows of one bucket after the other."""
        import pyarrow as pa

        found = sorted(self._writers)
        for bucket in found:
            with write_errors(self._path(bucket)):
                self._writers.pop(bucket).close()
            with pa.ipc.open_stream(self._path(bucket)) as reader:
                table = reader.read_all()
            self._path(bucket).unlink()
            yield table
