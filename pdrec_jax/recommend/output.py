"""Writes recommendations, a row each, block by block: Parquet, CSV or JSON lines.

Letters: B users of a block, k items of each, I items.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from pdrec_jax.errors import UserError

BASES = ("popularity", "history")
_ROW_GROUP = 1 << 17


@dataclasses.dataclass(frozen=True, eq=False)
class Ranked:
    """The recommendations of a block of users.

    Attributes:
        users: `[B]` external ids as text.
        items: `[B, k]` int32, best first, 0 where there are fewer.
        scores: `[B, k]` float32; NaN where the popularity of the items decided.
        known: `[B]` bool, whether a user's history decided.
    """

    users: NDArray
    items: NDArray[np.int32]
    scores: NDArray[np.float32]
    known: NDArray[np.bool_]


class Writer(Protocol):
    """Takes blocks one after the other."""

    def write(self, ranked: Ranked) -> int:
        """Writes a block; returns its number of rows."""


def format_of(path: Path) -> str:
    """The format that a name asks for.

    Raises:
        UserError: it asks for none.
    """
    suffix = path.suffix.lower()
    if suffix not in (".parquet", ".csv", ".jsonl"):
        raise UserError(f"--out: {path}: one of .parquet, .csv, .jsonl is expected")
    return suffix


@contextlib.contextmanager
def open_writer(file: BinaryIO, suffix: str, item_ids: NDArray) -> Iterator[Writer]:
    """Opens a writer; what it holds back is written as the context ends.

    Args:
        file: open for writing.
        suffix: from `format_of`.
        item_ids: `[I+1]` external ids.
    """
    if suffix == ".jsonl":
        yield _JsonLines(file, item_ids)
        return
    with _Tables(file, suffix, item_ids) as tables:
        yield tables


class _Tables:
    """Parquet and CSV by pyarrow."""

    def __init__(self, file: BinaryIO, suffix: str, item_ids: NDArray) -> None:
        import pyarrow as pa

        self._file, self._suffix = file, suffix
        self._items = pa.array(item_ids)
        self._writer: Any = None
        self._held: list[Any] = []
        self._rows = 0

    def __enter__(self) -> _Tables:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._flush()
        if self._writer is not None:
            # After an error the file is thrown away: a second one would only hide the first.
            with contextlib.suppress(Exception) if kind else contextlib.nullcontext():
                self._writer.close()

    def write(self, ranked: Ranked) -> int:
        """Writes a block; returns its number of rows."""
        import pyarrow as pa

        rows, columns = np.nonzero(ranked.items)
        scores = ranked.scores[rows, columns]
        table = pa.table(
            {
                "user": pa.array(ranked.users).take(pa.array(rows)),
                "rank": pa.array((columns + 1).astype(np.int32)),
                "item": self._items.take(pa.array(ranked.items[rows, columns])),
                "score": pa.array(scores, mask=np.isnan(scores)),
                "basis": pa.array(BASES).take(pa.array(ranked.known[rows].astype(np.int8))),
            }
        )
        self._held.append(table)
        self._rows += len(table)
        if self._rows >= _ROW_GROUP:
            self._flush()
        return len(table)

    def _flush(self) -> None:
        import pyarrow as pa
        import pyarrow.csv as pa_csv
        import pyarrow.parquet as pq

        if not self._held:
            return
        table = pa.concat_tables(self._held)
        self._held, self._rows = [], 0
        if self._writer is None:
            if self._suffix == ".parquet":
                self._writer = pq.ParquetWriter(self._file, table.schema, compression="zstd")
            else:
                self._writer = pa_csv.CSVWriter(self._file, table.schema)
        self._writer.write_table(table)


class _JsonLines:
    """A JSON object a line, put together from parts that are quoted once."""

    def __init__(self, file: BinaryIO, item_ids: NDArray) -> None:
        self._file = file
        self._item_ids = item_ids

    @functools.cached_property
    def _items(self) -> NDArray:
        return np.array([json.dumps(item) for item in self._item_ids.tolist()], object)

    def write(self, ranked: Ranked) -> int:
        """Writes a block; returns its number of rows."""
        rows = 0
        for user, items, scores, known in zip(
            ranked.users.tolist(), ranked.items, ranked.scores, ranked.known.tolist(), strict=True
        ):
            some = items[items > 0]
            head, tail = f'{{"user": {json.dumps(user)}, "rank": ', f'"basis": "{BASES[known]}"}}\n'
            quoted = self._items[some].tolist()
            # As text a float32 has the fewest digits that tell it from its neighbours.
            figures = scores[: len(some)].astype(str).tolist() if known else ["null"] * len(some)
            self._file.write(
                "".join(
                    f'{head}{rank}, "item": {item}, "score": {score}, {tail}'
                    for rank, (item, score) in enumerate(zip(quoted, figures, strict=True), 1)
                ).encode()
            )
            rows += len(some)
        return rows
