"""Lines of metrics: what is written is there, whatever happens; TensorBoard gets the same."""

import errno
import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pdrec_jax.errors import UserError
from pdrec_jax.metric_log import MetricLog


def rows(workdir: Path) -> list[Any]:
    return [json.loads(row) for row in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_line_is_on_disk_when_write_returns(tmp_path: Path) -> None:
    with MetricLog(tmp_path / "new" / "run") as log:
        log.write("diffusion", 1, loss=0.5, seconds=2.25)
        expected = {"stage": "diffusion", "epoch": 1, "loss": 0.5, "seconds": 2.25}
        assert rows(tmp_path / "new" / "run") == [expected]
        assert log.read() == [expected]


def test_values_become_plain_json(tmp_path: Path) -> None:
    with MetricLog(tmp_path) as log:
        log.write(
            "sasrec",
            np.int32(3),
            a=np.float32(0.1),
            b=jnp.float32(0.1),
            c=jnp.array([2], jnp.int32),
            d=float("nan"),
            e=np.float64("inf"),
            f=jnp.float32("-inf"),
            g=None,
            h="text",
            i=np.bool_(True),
            j=jnp.bfloat16(0.5),
            k=np.float64(1e-5),
        )
        lines = log.read()
    expected = {
        "stage": "sasrec", "epoch": 3, "a": 0.1, "b": 0.1, "c": 2, "d": None, "e": None, "f": None,
        "g": None, "h": "text", "i": True, "j": 0.5, "k": 1e-5,
    }  # fmt: skip
    assert lines == rows(tmp_path) == [expected]
    assert type(lines[0]["k"]) is float


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_float32_is_written_exactly(value: float) -> None:
    with MetricLog(None) as log:
        log.write("a", 0, loss=np.float32(value))
        assert np.float32(log.read()[0]["loss"]) == np.float32(value)


def test_an_array_is_no_metric(tmp_path: Path) -> None:
    with MetricLog(tmp_path) as log:
        with pytest.raises(TypeError, match=r"shape \(2,\)"):
            log.write("a", 0, loss=np.zeros(2))
        assert log.read() == rows(tmp_path) == []


def test_read_selects_a_stage_and_hands_out_copies(tmp_path: Path) -> None:
    with MetricLog(tmp_path) as log:
        log.write("diffusion", 1, loss=1.0)
        log.write("sasrec", 1, loss=2.0)
        assert [line["loss"] for line in log.read("sasrec")] == [2.0]
        assert log.read("gru4rec") == []
        log.read()[0]["loss"] = 9.0
        assert log.read()[0]["loss"] == 1.0


def test_a_resumed_run_goes_on_where_the_file_ends(tmp_path: Path) -> None:
    with MetricLog(tmp_path) as log:
        log.write("diffusion", 1, loss=1.0)
    with MetricLog(tmp_path) as log:
        log.write("diffusion", 2, loss=0.5)
        assert [line["epoch"] for line in log.read()] == [1, 2]
    assert [line["epoch"] for line in rows(tmp_path)] == [1, 2]


def test_a_half_line_at_the_end_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"stage": "a", "epoch": 1, "loss": 0.5}\n{"stage": "a", "epoch": 2, "lo')
    with MetricLog(tmp_path) as log:
        assert [line["epoch"] for line in log.read()] == [1]
        log.write("a", 2, loss=0.25)
    assert [line["loss"] for line in rows(tmp_path)] == [0.5, 0.25]


def test_a_whole_line_without_its_newline_is_kept(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"stage": "a", "epoch": 1}')
    with MetricLog(tmp_path) as log:
        log.write("a", 2)
    assert [line["epoch"] for line in rows(tmp_path)] == [1, 2]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(kept=st.integers(0, 200))
def test_a_kill_at_any_byte_loses_one_line_at_most(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = "".join(
        json.dumps({"stage": "a", "epoch": epoch, "loss": 1 / epoch}) + "\n"
        for epoch in range(1, 6)
    ).encode()
    path.write_bytes(whole[:kept])
    with MetricLog(tmp_path) as log:
        complete = whole[:kept].count(b"\n")
        assert len(log.read()) - complete in (0, 1)
        log.write("b", 1)
    assert rows(tmp_path)[-1] == {"stage": "b", "epoch": 1}
    assert [line["epoch"] for line in rows(tmp_path)[:-1]] == list(range(1, len(rows(tmp_path))))


@pytest.mark.parametrize(
    "bad",
    [
        "no json", "[1]", '{"stage": "a"}', "3", '{"stage": 1}', "", "\xff",
        '{"stage": "a", "epoch": 2, "loss": 3e777}', '{"stage": "a", "epoch": 2, "loss": NaN}',
        '{"stage": "a", "epoch": 2, "loss": "0.1"}', '{"stage": "a", "epoch": 2, "seconds": true}',
        '{"stage": "a", "epoch": 2, "more": [1]}',
    ],
)  # fmt: skip
def test_a_file_that_is_not_ours_is_named_and_left_alone(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "metrics.jsonl"
    content = ('{"stage": "a", "epoch": 1}\n' + bad + "\n").encode("latin-1")
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"metrics\.jsonl: row 2: expected a JSON object"):
        MetricLog(tmp_path)
    assert path.read_bytes() == content


def test_rewind_drops_later_epochs_of_one_stage(tmp_path: Path) -> None:
    with MetricLog(tmp_path) as log:
        for epoch in range(1, 5):
            log.write("diffusion", epoch)
            log.write("sasrec", epoch)
        log.rewind("diffusion", 2)
        expected = [("diffusion", 1), ("sasrec", 1), ("diffusion", 2), ("sasrec", 2)]
        expected += [("sasrec", 3), ("sasrec", 4), ("diffusion", 3)]
        log.write("diffusion", 3)
        assert [(line["stage"], line["epoch"]) for line in log.read()] == expected
    assert [(line["stage"], line["epoch"]) for line in rows(tmp_path)] == expected
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_rewind_with_nothing_to_drop_leaves_the_file(tmp_path: Path) -> None:
    with MetricLog(tmp_path) as log:
        log.write("diffusion", 1)
        before = (tmp_path / "metrics.jsonl").stat().st_ino
        log.rewind("diffusion", 1)
        log.rewind("sasrec", -1)
        assert (tmp_path / "metrics.jsonl").stat().st_ino == before
        log.rewind("diffusion", -1)
        assert log.read() == rows(tmp_path) == []


def test_without_a_workdir_lines_stay_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with MetricLog(None, tensorboard=True) as log:
        log.write("a", 1, loss=1.0)
        log.write("a", 2, loss=0.5)
        log.rewind("a", 1)
        assert log.read() == [{"stage": "a", "epoch": 1, "loss": 1.0}]
    assert list(tmp_path.iterdir()) == []


def test_a_closed_log_can_be_read_and_not_written(tmp_path: Path) -> None:
    with MetricLog(tmp_path) as log:
        log.write("a", 1)
    log.close()
    with pytest.raises(ValueError, match="closed"):
        log.write("a", 2)
    assert len(log.read()) == 1


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    with MetricLog(tmp_path) as log:
        log.write("a", 1)
        real = log._file
        assert real is not None

        class Full:
            def write(self, data: memoryview) -> int:
                if len(data) <= 10:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return real.write(data[:10])

            def __getattr__(self, name: str) -> Any:
                return getattr(real, name)

        log._file = Full()  # type: ignore[assignment]
        with pytest.raises(UserError, match=r"metrics\.jsonl: cannot write, disk full"):
            log.write("a", 2)
        log._file = real
        log.write("a", 3)
        assert [line["epoch"] for line in log.read()] == [1, 3]
    assert [line["epoch"] for line in rows(tmp_path)] == [1, 3]


def test_a_workdir_that_is_a_file_is_an_error_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        MetricLog(tmp_path / "file" / "run")


class FakeWriter:
    made: list["FakeWriter"] = []  # noqa: RUF012

    def __init__(self, logdir: str, purge_step: int | None) -> None:
        self.logdir, self.purge_step, self.closed = logdir, purge_step, False
        self.scalars: list[tuple[str, float, int]] = []
        FakeWriter.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def close(self) -> None:
        self.closed = True


def test_tensorboard_gets_a_run_a_stage_and_forgets_on_rewind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("tensorboardX")
    module.SummaryWriter = FakeWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorboardX", module)
    monkeypatch.setattr(FakeWriter, "made", [])
    with MetricLog(tmp_path, tensorboard=True) as log:
        log.write("diffusion", 1, loss=0.5, ndcg=None, note="text")
        log.write("sasrec", 1, loss=np.float32(0.25))
        log.rewind("sasrec", 0)
        log.write("sasrec", 1, loss=0.75)
    runs = [(writer.logdir, writer.purge_step, writer.scalars) for writer in FakeWriter.made]
    folder = tmp_path / "tensorboard"
    assert runs == [
        (str(folder / "diffusion"), None, [("loss", 0.5, 1)]),
        (str(folder / "sasrec"), None, [("loss", 0.25, 1)]),
        (str(folder / "sasrec"), 1, [("loss", 0.75, 1)]),
    ]
    assert all(writer.closed for writer in FakeWriter.made)


def test_tensorboard_missing_is_an_error_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError, match="tensorboardX is missing"):
        MetricLog(tmp_path, tensorboard=True)


def test_the_optional_packages_are_not_imported() -> None:
    command = (
        "import sys, pdrec_jax.metric_log, pdrec_jax.report.report;"
        "print([name for name in ('matplotlib', 'tensorboardX', 'jax') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", command], capture_output=True, check=True)
    assert found.stdout.decode().strip() == "[]"
