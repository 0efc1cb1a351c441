"""Files of others and of one's own, made in the test."""

import pickle
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from pdrec_jax.data.simulator import simulate

# The first example of a test may import pyarrow, and a busy machine may stall any of them.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")


@pytest.fixture
def pair_pickles(tmp_path: Path) -> Callable[..., list[Path]]:
    """`pair_pickles(first, second, mixed_times=True)` writes what the authors publish of a pair.

    A log is a dictionary from user to list of (item, time). Within a day the first domain goes
    first, as in the authors' own mixed log.
    """

    def pair_pickles(first: dict, second: dict, mixed_times: bool = True) -> list[Path]:
        shift = max(item for rows in first.values() for item, _ in rows)
        mixed = {
            user: sorted(
                first[user] + [(item + shift, time) for item, time in second[user]],
                key=lambda row: row[1],
            )
            for user in first
        }
        paths = []
        for name, log, column in (
            ("items", first, 0),
            ("times", first, 1),
            ("mixed_items", mixed, 0),
            ("mixed_times", mixed, 1),
        ):
            lists = {user: [row[column] for row in rows] for user, rows in log.items()}
            paths.append(tmp_path / f"{name}.pkl")
            paths[-1].write_bytes(pickle.dumps(lists, protocol=4))
        return paths if mixed_times else paths[:3]

    return pair_pickles


@pytest.fixture(scope="session")
def simulated_pair() -> tuple[dict, dict]:
    """Two logs of 40 users as dictionaries, whose items are numbered without gaps."""
    log = simulate(40, 200, seed=3, source_items=100).log
    logs: list[dict[int, list[tuple[int, int]]]] = []
    for domain in (0, 1):
        chosen = log.domains == domain
        items = np.unique(log.items[chosen], return_inverse=True)[1] + 1
        found: dict[int, list[tuple[int, int]]] = {u + 1: [] for u in range(log.num_users)}
        rows = zip(log.event_users[chosen], items, log.times[chosen], strict=True)
        for user, item, time in rows:
            found[int(user) + 1].append((int(item), int(time)))
        logs.append(found)
    return logs[0], logs[1]


class Server:
    """A web server in this process, whose faults a test sets.

    Attributes:
        files: content by path.
        ranges: whether parts can be asked for.
        lengths: whether it says how long a file is of which a part is asked for that is none.
        sizes: whether it says how much it is about to send.
        tags: whether it says which version a file is of.
        most: bytes of the largest part that it sends when it is asked for one.
        length: what it says in place of how much it is about to send.
        cuts: bytes after which the connections of the next requests end.
        statuses: answers of the next requests.
        requests: (path, Range header) of all requests.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.ranges = self.lengths = self.sizes = self.tags = True
        self.most, self.length = 1 << 30, ""
        self.cuts: list[int] = []
        self.statuses: list[int] = []
        self.requests: list[tuple[str, str | None]] = []
        self.url = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        asked = handler.headers.get("Range")
        self.requests.append((handler.path, asked))
        content = self.files.get(handler.path.removeprefix("/"))
        if self.statuses or content is None:
            handler.send_error(self.statuses.pop(0) if self.statuses else 404)
            return
        tag = f'"{hash(content)}"'
        start, stop = 0, len(content)
        if asked and self.ranges and handler.headers.get("If-Range") == tag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                handler.send_response(416)
                if self.lengths:
                    handler.send_header("Content-Range", f"bytes */{len(content)}")
                handler.end_headers()
                return
            handler.send_response(206)
            stop = min(stop, start + self.most)
            handler.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        else:
            handler.send_response(200)
        if self.tags:
            handler.send_header("ETag", tag)
        if self.sizes:
            handler.send_header("Content-Length", self.length or str(stop - start))
        handler.end_headers()
        end = start + self.cuts.pop(0) if self.cuts else stop
        handler.wfile.write(content[start:end])


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.answer(self)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        state.url = f"http://127.0.0.1:{listening.server_address[1]}"
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        listening.shutdown()
        thread.join()
