"""What the authors began with: layouts by suffix, cores, and users of both domains."""

from pathlib import Path

from pdrec_jax.prepare.raw_pairs import RawFile, read_raw_pair


def test_layouts() -> None:
    ratings = RawFile.of(Path("Toys.csv.gz"))
    assert ratings.positions == {"item": 0, "user": 1, "time": 3}
    reviews = RawFile.of(Path("Toys.json.gz"))
    assert reviews.columns.names == ("reviewerID", "asin", "unixReviewTime")
    assert RawFile.of(Path("Book.inter")).columns.names == ("user_id", "item_id", "timestamp")


def write(path: Path, rows: list) -> RawFile:
    path.write_text("".join(f"{item},{user},1.0,{time}\n" for user, item, time in rows))
    return RawFile.of(path)


def test_users_of_both_domains_have_one_number(tmp_path) -> None:
    # The ids of one file are all integers, those of the other are not: still the same users.
    first = [(user, item, time) for user in ("10", "9") for time, item in enumerate("ab")]
    second = [(user, item, time) for user in ("9", "10", "x") for time, item in enumerate("ba")]
    logs = read_raw_pair(
        (write(tmp_path / "a.csv", first), write(tmp_path / "b.csv", second)), 2, None
    )
    for log, items in zip(logs, ([1, 2, 1, 2], [2, 1, 2, 1]), strict=True):
        assert log.users.tolist() == [1, 1, 2, 2]
        assert log.items.tolist() == items
        assert log.times.tolist() == [0, 1, 0, 1]


def test_a_user_with_too_many_records_goes(tmp_path) -> None:
    rows = [(user, item, 0) for user in "uv" for item in "abc"]
    more = [("u", "a", time) for time in range(5)]
    files = (write(tmp_path / "a.csv", rows), write(tmp_path / "b.csv", rows + more))
    assert [log.figures[0] for log in read_raw_pair(files, 2, 4)] == [1, 1]
    assert [log.figures[0] for log in read_raw_pair(files, 2, None)] == [2, 2]
