"""Plain pickles are read as Python reads them; one that wants more is refused at that byte."""

import contextlib
import os
import pickle
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdrec_jax.errors import UserError
from pdrec_jax.prepare import plain_pickles
from pdrec_jax.prepare.plain_pickles import MAX_BYTES, parse_plain_pickle, read_plain_pickle

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
INTEGERS = st.integers(-(2**63), 2**63 - 1)
KEYS = INTEGERS | st.text()
PLAIN = st.recursive(
    INTEGERS | st.text(),
    lambda of: st.lists(of) | st.dictionaries(KEYS, of) | st.lists(of, max_size=5).map(tuple),
    max_leaves=30,
)


def complaint(data: bytes) -> str:
    with pytest.raises(UserError) as caught:
        parse_plain_pickle(data, "log.pkl")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("log.pkl: byte ")
    return message.removeprefix("log.pkl: byte ")


@given(PLAIN, st.sampled_from(PROTOCOLS))
def test_reads_what_was_pickled(value, protocol) -> None:
    assert parse_plain_pickle(pickle.dumps(value, protocol), "x") == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_long_lists_and_many_users(protocol) -> None:
    value = {user: list(range(user, user + 2500)) for user in range(1, 12)}
    value |= {user: [user] for user in range(100, 3000)}
    assert parse_plain_pickle(pickle.dumps(value, protocol), "x") == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_shared_values(protocol) -> None:
    shared = [1, 2]
    found = parse_plain_pickle(pickle.dumps({1: shared, 2: shared}, protocol), "x")
    assert found == {1: [1, 2], 2: [1, 2]}
    assert found[1] is found[2]


class Calls:
    def __reduce__(self):
        return os.system, ("exit 1",)


class Plain:
    pass


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "value",
    [
        Calls(),
        {1: [Calls()]},
        {1: Plain()},
        [Plain],
        print,
        {1: [1.5]},
        None,
        [True],
        b"bytes",
        {1, 2},
        bytearray(b"x"),
        2**80,
        {(1, 2): 3},
    ],
)
def test_whatever_is_not_plain_is_refused(value, protocol) -> None:
    # Protocols 0 and 1 spell some of these as plain data or as calls; none is run or read.
    assert complaint(pickle.dumps(value, protocol))


def test_names_the_instruction_and_its_byte() -> None:
    what = " is refused: only dictionaries, lists, tuples, integers and text are read"
    data = pickle.dumps({1: [Calls()]}, 4)
    assert complaint(data) == f"{data.index(bytes([0x93]))}: STACK_GLOBAL{what}"
    assert complaint(pickle.dumps(Calls(), 2)) == f"2: GLOBAL{what}"
    assert complaint(b"cos\nsystem\n(S'exit 1'\ntR.") == f"0: GLOBAL{what}"
    assert complaint(b"(S'exit 1'\nios\nsystem\n.") == f"1: STRING{what}"
    assert complaint(b"(ios\nsystem\n.") == f"1: INST{what}"
    assert complaint(b"\x80\x02]q\x00}b.") == f"6: BUILD{what}"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0: broken or cut short"),
        (b"\x80", "0: broken or cut short"),
        (b"\x80\x06.", "0: protocol 6, at most 5 is expected"),
        (b"#", "0: no pickle, or broken (b'#' is no instruction)"),
        (b"K\x01K\x02.", "4: one finished value is expected at the end"),
        (b".", "0: one finished value is expected at the end"),
        (b"(.", "1: one finished value is expected at the end"),
        (b"]K\x01", "3: broken or cut short"),
        (b"]K\x01K\x02s.", "5: a dict to fill is expected"),
        (b"}K\x01a.", "3: a list to fill is expected"),
        (b"}(K\x01u.", "4: a key without a value"),
        (b"}]]s.", "3: a key that is a list; integers or text expected"),
        (b"e.", "0: a group ends that did not begin"),
        (b"](a.", "2: a value is missing"),
        (b"h\x03.", "0: value 3 is asked for before it is there"),
        (b"q\x00.", "0: a value is missing"),
        (b"I1.5\n.", "0: an integer is expected, not b'1.5'"),
        (b"I01\n.", "0: a truth value, an integer is expected"),
        (b"I" + b"9" * 30 + b"\n.", f"0: an integer is expected, not b'{'9' * 20}'"),
        (b"\x8a\x09" + b"\x01" * 9, "0: an integer of more than 8 bytes"),
        (b"\x8b\xff\xff\xff\xff.", "0: an integer of more than 8 bytes"),
        (b"\x8c\x01\xff.", "0: broken or cut short"),
        (b"\x8d" + b"\xff" * 8, "0: broken or cut short"),
        (b"(" * 1001, "1000: more than 1000 values within each other"),
    ],
)
def test_broken_ones(data, message) -> None:
    assert complaint(data) == message


@given(st.binary(max_size=60))
def test_any_bytes_are_a_clear_error_or_plain_data(data) -> None:
    with contextlib.suppress(UserError):
        parse_plain_pickle(data, "x")


@given(st.data())
def test_changed_bytes_are_a_clear_error_or_plain_data(data) -> None:
    content = bytearray(pickle.dumps({1: [5, 6, 700], 2: [80_000]}, 4))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(UserError):
        parse_plain_pickle(bytes(content), "x")


def test_deep_values_end_cleanly() -> None:
    depth = 1000
    found = parse_plain_pickle(b"]" * depth + b"a" * (depth - 1) + b".", "x")
    for _ in range(depth - 1):
        (found,) = found
    assert found == []
    assert complaint(b"]" * 50_000) == "1000: more than 1000 values that are not put together"


@pytest.mark.parametrize(
    ("head", "again", "message"),
    [
        (b"(", b"}", "51: more than 50 lists, tuples and dictionaries"),
        (b"(", b")", "51: more than 50 lists, tuples and dictionaries"),
        (b"](", b"]", "51: more than 50 lists, tuples and dictionaries"),
        (b"(", b"(t", "102: more than 50 lists, tuples and dictionaries"),
        (b"(", b"(l", "102: more than 50 lists, tuples and dictionaries"),
        (b"(", b"(d", "102: more than 50 lists, tuples and dictionaries"),
        (b"K\x01", b"\x85", "52: more than 50 lists, tuples and dictionaries"),
        (b"K\x01", b"\x94", "52: more than 50 values to remember"),
    ],
)
def test_what_is_large_for_its_bytes_is_counted(head, again, message, monkeypatch) -> None:
    monkeypatch.setattr(plain_pickles, "_MAX_CONTAINERS", 50)
    assert complaint(head + 60 * again) == message


@pytest.mark.parametrize("head", [b"", b"("])
def test_a_small_file_takes_little_memory(head) -> None:
    data = head + b"}" * (4 << 20)
    tracemalloc.start()
    try:
        complaint(data)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


class TestFiles:
    def test_reads(self, tmp_path) -> None:
        (tmp_path / "a.pkl").write_bytes(pickle.dumps({1: [2]}))
        assert read_plain_pickle(tmp_path / "a.pkl") == {1: [2]}

    def test_too_large(self, tmp_path) -> None:
        with (tmp_path / "a.pkl").open("wb") as file:
            file.truncate(MAX_BYTES + 1)
        with pytest.raises(UserError, match=r"a\.pkl: more than 64 MiB, too large for a pickled"):
            read_plain_pickle(tmp_path / "a.pkl")

    def test_missing(self, tmp_path) -> None:
        with pytest.raises(UserError, match=r"none\.pkl: no such file$"):
            read_plain_pickle(Path(tmp_path / "none.pkl"))
