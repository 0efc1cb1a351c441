"""Memory of a run's first part on a large simulated log: read into memory, or mapped.

python -m pdrec_jax.benchmark.mapped --users=500000 --events=50000000 --dir=DIR

Writes the log in both forms to DIR (kept, and used again by the next call of the same sizes), then
reads it, splits it, draws the candidates and trains one epoch of SASRec, each form in a process of
its own. What counts is the peak of anonymous memory: pages of a mapped file are the system's to
take back.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pdrec_jax.command import Parser, answered, leave, number, some_path
from pdrec_jax.data.compressed import offsets_of
from pdrec_jax.data.interactions import Interactions
from pdrec_jax.data.mapped import write_mapped
from pdrec_jax.data.sources import PREPARED_COLUMNS, PREPARED_LOG
from pdrec_jax.errors import UserError
from pdrec_jax.files import atomic_write, atomic_write_text, read_json, write_errors
from pdrec_jax.memory import anonymous_now
from pdrec_jax.report.tables import markdown_rows

_EVENTS_A_BLOCK = 1 << 21
_LEAST_USERS, _LEAST_ITEMS, _MOST = 20, 200, 10**9  # the least of the other benchmarks
_SIZES = "sizes.json"
_STEPS = ("start", "read, split, candidates", "one epoch")


def simulated(users: int, items: int, events: int, seed: int) -> Iterator[Interactions]:
    """Draws a log in blocks: lengths from 3 on, popularity by rank, times in days.

    Cheap, and of the shape of a log alone: there is nothing in it to be learned.

    Args:
      users: U.
      items: I.
      events: about as many as the log has.
      seed: of the draw.

    Yields:
      blocks of users, ids 1, 2, ..
    """
    mean, first, number = events / users, 1, 0
    ids = np.arange(items + 1)
    while first <= users:
        rng = np.random.default_rng((seed, number))
        size = min(max(int(_EVENTS_A_BLOCK / mean), 1), users + 1 - first)
        lengths = 3 + rng.geometric(1 / max(mean - 2, 1), size) - 1
        offsets = offsets_of(lengths)
        chosen = 1 + (items * rng.random(offsets[-1]) ** 3).astype(np.int32)
        days = np.cumsum(rng.integers(0, 3, offsets[-1]))
        days -= np.repeat(days[offsets[:-1]], lengths)
        yield Interactions(
            offsets=offsets,
            items=np.minimum(chosen, items).astype(np.int32),
            times=86_400.0 * (15_000 + days),
            domains=None,
            user_ids=np.arange(first, first + size),
            item_ids=ids,
            num_target_items=items,
        )
        first, number = first + size, number + 1


def write_both(place: Path, users: int, items: int, events: int) -> None:
    """Writes the simulated log as columns and as a Parquet file, unless they are there.

    Args:
      place: directory, made if missing.
      users: U.
      items: I.
      events: about as many as the log has.

    Raises:
      UserError: the directory holds a log of other sizes, or cannot be written.
    """
    sizes = {"users": users, "items": items, "events": events}
    with write_errors(place):
        place.mkdir(parents=True, exist_ok=True)
        written = [name for name in (PREPARED_COLUMNS, PREPARED_LOG) if (place / name).exists()]
    found = read_json(place / _SIZES)
    if written and found != sizes:
        told = "unknown sizes" if found is None else f"other sizes ({json.dumps(found)})"
        raise UserError(f"--dir: {place}: holds a log of {told}; name another directory")
    atomic_write_text(place / _SIZES, json.dumps(sizes) + "\n")
    blocks = lambda: simulated(users, items, events, 0)  # noqa: E731
    if not (place / PREPARED_COLUMNS).is_dir():
        write_mapped(
            place / PREPARED_COLUMNS, blocks(), np.arange(1, users + 1), np.arange(items + 1)
        )
    if not (place / PREPARED_LOG).is_file():
        atomic_write(place / PREPARED_LOG, lambda file: _write_parquet(file, blocks()))


def _write_parquet(file: BinaryIO, blocks: Iterator[Interactions]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = {"user_id": pa.int64(), "item_id": pa.int64(), "timestamp": pa.float64()}
    with pq.ParquetWriter(file, pa.schema(names), compression="zstd") as writer:
        for block in blocks:
            columns = block.user_ids[block.event_users], block.items, block.times
            arrays = [
                pa.array(column, kind) for column, kind in zip(columns, names.values(), strict=True)
            ]
            writer.write_table(pa.table(arrays, names=list(names)))


class _Peak:
    """Looks at the anonymous memory of the process until it is asked for the peak."""

    def __init__(self) -> None:
        self._most, self._over = 0, threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while not self._over.is_set():
            self._most = max(self._most, anonymous_now() or 0)
            self._over.wait(0.02)

    def end(self) -> int:
        self._over.set()
        return max(self._most, anonymous_now() or 0)


def measure(log: Path) -> dict[str, list[float]]:
    """Reads, splits and trains one epoch in this process.

    Args:
      log: directory or file.

    Returns:
      of each step its seconds and the peak of anonymous memory in bytes.
    """
    import jax

    from pdrec_jax import given as given_module
    from pdrec_jax.encoders import stage
    from pdrec_jax.settings import default_config

    config = default_config()
    config.encoder.width, config.encoder.blocks, config.encoder.max_length = 32, 1, 20
    config.encoder.batch_size, config.encoder.epochs = 512, 1
    found: dict[str, list[float]] = {}
    jax.numpy.zeros(1).block_until_ready()
    found[_STEPS[0]] = [0.0, anonymous_now() or 0]
    peak, begun = _Peak(), time.perf_counter()
    given, data = given_module.prepare(config, [log])
    found[_STEPS[1]] = [time.perf_counter() - begun, peak.end()]
    peak, begun = _Peak(), time.perf_counter()
    task, _ = stage.build(
        config,
        "base",
        given.split,
        None,
        drawn=given.users.preferences,
        ranked=given.users.encoder,
        protocol=given.protocol,
        candidates=given.candidates,
        validation=given.validation,
        name="sasrec",
    )
    state, values = task.run_epoch(task.initial(), 1, lambda _: False)
    jax.block_until_ready(state)
    found[_STEPS[2]] = [time.perf_counter() - begun, peak.end()]
    return {**found, "loss": [values["loss"], data["events"]]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      arguments: without the program's name; None for those of the process.

    Returns:
      the exit status, see ``command.answered``.
    """
    parser = Parser(
        prog="python -m pdrec_jax.benchmark.mapped", allow_abbrev=False, description=__doc__
    )
    parser.add_argument("--users", type=number(int, _LEAST_USERS, _MOST), default=500_000)
    parser.add_argument("--items", type=number(int, _LEAST_ITEMS, _MOST), default=40_000)
    parser.add_argument("--events", type=number(int, 1, 100 * _MOST), default=50_000_000)
    parser.add_argument(
        "--dir", type=some_path, required=True, help="where the log goes, on a disk"
    )
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)

    def work() -> None:
        given = parser.parse_args(arguments)
        if given.measure is not None:
            print(json.dumps(measure(given.measure)))
            return
        write_both(given.dir, given.users, given.items, given.events)
        rows = [
            _row(name, given.dir, given.dir / path)
            for name, path in (("in memory", PREPARED_LOG), ("mapped", PREPARED_COLUMNS))
        ]
        print(markdown_rows(["log", "events", *_STEPS, "loss"], rows))

    return answered(work, "the logs that are whole are used again")


def _row(name: str, place: Path, log: Path) -> list[str]:
    """Measures a log in a process of its own."""
    words = [f"--dir={place}", f"--measure={log}"]
    done = subprocess.run(
        [sys.executable, "-m", "pdrec_jax.benchmark.mapped", *words],
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode != 0:
        raise UserError(f"{log}: the process that measured it ended with {done.returncode}")
    found = json.loads(done.stdout)
    loss, events = found["loss"]
    cells = [
        f"{peak / 2**20:,.0f} MiB, {seconds:,.0f} s"
        for seconds, peak in (found[step] for step in _STEPS)
    ]
    return [name, f"{events:,}", *cells, repr(loss)]


if __name__ == "__main__":
    leave(main())
