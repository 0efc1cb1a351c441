"""The `.inter.gz` files of the paper's domains."""

import dataclasses
import gzip
import hashlib

import numpy as np
import pytest

from pdrec_jax.data.readers import read_log
from pdrec_jax.errors import UserError
from pdrec_jax.prepare.domain_logs import DomainLog, figures_text, require_figures
from pdrec_jax.prepare.origins import Domain

LOG = DomainLog(
    np.array([1, 1, 2]), np.array([7, 3, 7]), np.array([1_403_913_600.0, 1_422_057_600.0, 5.125])
)
TEXT = (
    b"user_id:token\titem_id:token\ttimestamp:float\n"
    b"1\t7\t1403913600\n1\t3\t1422057600\n2\t7\t5.125\n"
)
SHA256 = hashlib.sha256(TEXT).hexdigest()


def test_text() -> None:
    assert LOG.text() == TEXT
    assert (LOG.figures, LOG.density) == ((2, 2, 3), 0.75)


def test_text_with_an_order() -> None:
    order = np.array([1.0, 1.001, 2.0])
    head, *rows = dataclasses.replace(LOG, order=order).text().decode().splitlines()
    assert head == "user_id:token\titem_id:token\ttimestamp:float\torder:float"
    assert rows == ["1\t7\t1403913600\t1", "1\t3\t1422057600\t1.001", "2\t7\t5.125\t2"]
    head, *rows = dataclasses.replace(LOG, times=None, order=order).text().decode().splitlines()
    assert head == "user_id:token\titem_id:token\torder:float"
    assert rows == ["1\t7\t1", "1\t3\t1.001", "2\t7\t2"]


def test_the_checksum_of_a_log_with_an_order_is_of_it_without_times() -> None:
    without = dataclasses.replace(LOG, times=None, order=np.arange(3.0))
    known = Domain("x", 2, 2, 3, hashlib.sha256(without.text()).hexdigest())
    require_figures(without, known)
    require_figures(dataclasses.replace(without, times=LOG.times), known)
    with pytest.raises(UserError, match="content of SHA-256"):
        require_figures(dataclasses.replace(without, order=np.arange(3.0) + 1), known)


def test_a_written_file_is_read_again(tmp_path) -> None:
    path = tmp_path / "log.inter.gz"
    content, checksum = LOG.packed()
    assert (gzip.decompress(content), checksum) == (TEXT, SHA256)
    path.write_bytes(content)
    log = read_log(path, ids="integer")
    assert log.times is not None
    assert log.times.tolist() == LOG.times.tolist()
    assert log.item_ids[log.items].tolist() == [7, 3, 7]


def test_neither_time_nor_system_of_packing_is_in_the_file() -> None:
    assert LOG.packed()[0][:10] == b"\x1f\x8b\x08" + bytes(5) + b"\x02\xff"


def test_figures_and_content_are_held_to_what_is_known() -> None:
    require_figures(LOG, Domain("two", 2, 2, 3, SHA256))
    with pytest.raises(UserError) as caught:
        require_figures(LOG, Domain("two", 2, 3, 3, SHA256))
    assert str(caught.value) == (
        "two: 2 users, 3 items, 3 records, density 50.0000 % are expected (Table 2), "
        "found 2 users, 2 items, 3 records, density 75.0000 %"
    )
    with pytest.raises(UserError, match=f"two: content of SHA-256 x is expected, found {SHA256}"):
        require_figures(LOG, Domain("two", 2, 2, 3, "x"))


def test_nothing_at_all() -> None:
    assert figures_text(0, 0, 0) == "0 users, 0 items, 0 records, density 0.0000 %"
