"""Files to read, and what the readers make of them."""

import gzip
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import settings

from pdrec_jax.data.interactions import Interactions
from pdrec_jax.data.readers import read_log
from pdrec_jax.errors import UserError

# The first example of a test may import pyarrow, and a busy machine may stall any of them.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")


@pytest.fixture
def write(tmp_path) -> Callable[[str, str | bytes], Path]:
    """`write(name, content)` makes a file of text or bytes; gzip where the name asks for it."""

    def write(name: str, content: str | bytes) -> Path:
        data = content.encode() if isinstance(content, str) else content
        path = tmp_path / name
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return write


@pytest.fixture
def write_parquet(tmp_path) -> Callable[..., Path]:
    """`write_parquet(name=values, ..)` makes a Parquet file of these columns."""

    def write_parquet(**columns) -> Path:
        path = tmp_path / "log.parquet"
        pq.write_table(pa.table(columns), path)
        return path

    return write_parquet


@pytest.fixture(scope="session")
def events() -> Callable[[Interactions], list]:
    """`events(log)` lists `(user, item, time)` in external ids, in the order of the log."""

    def events(log: Interactions) -> list:
        times = [None] * log.num_events if log.times is None else log.times.tolist()
        users = log.user_ids[log.event_users].tolist()
        return list(zip(users, log.item_ids[log.items].tolist(), times, strict=True))

    return events


@pytest.fixture(scope="session")
def complaint() -> Callable[..., str]:
    """`complaint(path, ..)` is what `read_log` says about a bad file, without the file's name."""

    def complaint(path: Path, **options) -> str:
        with pytest.raises(UserError) as caught:
            read_log(path, **options)
        message = str(caught.value)
        assert message.startswith(f"{path}: ")
        assert "\n" not in message
        assert len(message) < 600
        return message.removeprefix(f"{path}: ")

    return complaint
