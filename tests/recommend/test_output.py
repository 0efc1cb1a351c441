"""The three formats hold the same rows, whatever the ids are."""

import csv
import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from pdrec_jax.errors import UserError
from pdrec_jax.recommend import output
from pdrec_jax.recommend.output import Ranked, format_of, open_writer

TEXT = np.array(["", 'a "quoted", one', "ä\u2028b", "3"])
NUMBERS = np.array([0, -5, 7, 2**60])


def block(users: list[str], known: list[bool]) -> Ranked:
    items = np.array([[3, 1, 2], [2, 0, 0]], np.int32)[: len(users)]
    scores = np.array([[1e-9, -0.1, -2.5], [0.3, -np.inf, -np.inf]], np.float32)[: len(users)]
    scores[~np.array(known)] = np.nan
    return Ranked(np.array(users), items, scores, np.array(known))


BLOCKS = [block(["x, y", "1"], [True, True]), block(["nobody"], [False])]


def written(suffix: str, ids: np.ndarray) -> bytes:
    file = io.BytesIO()
    with open_writer(file, suffix, ids) as writer:
        assert [writer.write(some) for some in BLOCKS] == [4, 3]
    return file.getvalue()


def expected(ids: np.ndarray) -> list[dict]:
    best = [ids[[3, 1, 2]].tolist(), ids[[2]].tolist(), ids[[3, 1, 2]].tolist()]
    scores = [[1e-9, -0.1, -2.5], [0.3], [None] * 3]
    rows = []
    for user, items, some in zip(["x, y", "1", "nobody"], best, scores, strict=True):
        basis = "popularity" if user == "nobody" else "history"
        for rank, (item, score) in enumerate(zip(items, some, strict=True), 1):
            values = (user, rank, item, score, basis)
            rows.append(dict(zip(("user", "rank", "item", "score", "basis"), values, strict=True)))
    return rows


def rounded(rows: list[dict]) -> list[dict]:
    """Scores as the float32 that they were."""
    return [
        {**row, "score": None if row["score"] is None else float(np.float32(row["score"]))}
        for row in rows
    ]


@pytest.mark.parametrize("ids", [TEXT, NUMBERS], ids=["text", "numbers"])
class TestFormats:
    def test_json_lines(self, ids) -> None:
        lines = written(".jsonl", ids).decode().split("\n")
        assert lines.pop() == ""
        assert rounded([json.loads(line) for line in lines]) == rounded(expected(ids))

    def test_parquet(self, ids) -> None:
        table = pq.read_table(io.BytesIO(written(".parquet", ids)))
        assert table.to_pylist() == rounded(expected(ids))
        assert [str(kind) for kind in table.schema.types[:2]] == ["string", "int32"]

    def test_csv(self, ids) -> None:
        text = written(".csv", ids).decode()
        kind = type(ids[0].item())
        rows = [
            {
                **row,
                "rank": int(row["rank"]),
                "item": kind(row["item"]),
                "score": float(row["score"]) if row["score"] else None,
            }
            for row in csv.DictReader(io.StringIO(text, newline=""))
        ]
        assert rounded(rows) == rounded(expected(ids))

    @pytest.mark.parametrize("suffix", [".parquet", ".csv"])
    def test_rows_are_written_as_they_add_up(self, ids, suffix, monkeypatch) -> None:
        whole = written(suffix, ids)
        monkeypatch.setattr(output, "_ROW_GROUP", 1)
        parts = written(suffix, ids)
        if suffix == ".csv":
            assert parts == whole
        else:
            assert pq.read_table(io.BytesIO(parts)) == pq.read_table(io.BytesIO(whole))
            assert pq.ParquetFile(io.BytesIO(parts)).num_row_groups == 2


@pytest.mark.parametrize("name", ["recs", "recs.txt", "recs.csv.gz", "parquet"])
def test_a_name_without_a_format(tmp_path, name) -> None:
    with pytest.raises(UserError, match=r"one of \.parquet, \.csv, \.jsonl is expected"):
        format_of(tmp_path / name)
