"""The benchmark at tiny sizes: what it times, what it reports, and how it takes mistakes."""

import contextlib
import dataclasses
import io
import json
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdrec_jax import memory
from pdrec_jax.benchmark import diffusion_step, encoder_step, suite, tables
from pdrec_jax.benchmark.__main__ import STAGES, main
from pdrec_jax.benchmark.contest import (
    Comparison,
    Contestant,
    Result,
    Row,
    large_copy,
    largest_difference,
    matrix_product,
    measure,
)
from pdrec_jax.benchmark.encoder_step import padded_rows
from pdrec_jax.benchmark.sizes import Sizes
from pdrec_jax.benchmark.workload import make_workload
from pdrec_jax.data.batches import PackedRows

TINY = Sizes(
    users=60,
    items=700,
    source_items=0,
    hidden=16,
    noise_steps=3,
    reverse_batch=8,
    diffusion_batch=16,
    encoder_batch=8,
    width=8,
    blocks=1,
    max_length=24,
    steps=2,
    encoder="sasrec",
    product=64,
)
FLAGS = [f"--{name}={value}" for name, value in dataclasses.asdict(TINY).items()]
ROUNDS = 2


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run of all stages left behind."""

    printed: str
    report: dict[str, Any]
    directory: Path

    def comparison(self, stage: str) -> dict[str, Any]:
        """The first comparison of a stage."""
        return next(c for c in self.report["comparisons"] if c["stage"] == stage)


@contextlib.contextmanager
def quick_to_compile() -> Iterator[None]:
    """Compiling is nearly all of the time here."""
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory) -> Outcome:
    directory = tmp_path_factory.mktemp("benchmark") / "new" / "folder"
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, quick_to_compile():
        # All plugins go the same way, and take twice as long to compile.
        patch.setattr(encoder_step, "VARIANTS", ("base",))
        with contextlib.redirect_stdout(printed):
            words = ["--data=simulated", f"--repeats={ROUNDS}", f"--out={directory}"]
            assert main([*FLAGS, *words]) == 0
    report = json.loads((directory / "benchmark.json").read_text())
    return Outcome(printed.getvalue(), report, directory)


def test_every_stage_is_reported_in_order(outcome: Outcome) -> None:
    stages = [comparison["stage"] for comparison in outcome.report["comparisons"]]
    assert list(dict.fromkeys(stages)) == list(STAGES) == list(suite.STAGES)
    assert outcome.report["sizes"] == dataclasses.asdict(TINY)
    assert outcome.report["machine"]["versions"]["jax"] == jax.__version__


def test_json_keeps_every_time_and_what_follows_from_it(outcome: Outcome) -> None:
    for comparison in outcome.report["comparisons"]:
        assert comparison["compilations"] == 0
        for row in (*comparison["rows"], comparison["ceiling"], comparison["copy"]):
            seconds = np.array(row["seconds"])
            assert seconds.shape == (ROUNDS,)
            assert (seconds > 0).all()
            assert row["first_seconds"] > 0
            assert row["peak_bytes"] > 2**20
            assert row["per_unit"]["min"] == seconds.min() / row["units"]
            assert row["per_unit"]["median"] == pytest.approx(np.median(seconds) / row["units"])
            assert row["per_unit"]["q1"] <= row["per_unit"]["median"] <= row["per_unit"]["q3"]
            assert row["units_per_second"] == pytest.approx(1 / row["per_unit"]["median"])
            assert (row["ratio"] is None) == (row["twin"] is None)
            assert (row["flops_per_second"] is None) == (row["flops"] is None)
        assert comparison["ceiling"]["share_of_ceiling"] == 1
        assert comparison["ceiling"]["flops"] == 2 * 64**3


def test_ratios_are_taken_round_by_round(outcome: Outcome) -> None:
    dense, fast, _ = outcome.comparison("reverse")["rows"]
    ratios = np.array(dense["seconds"]) / np.array(fast["seconds"])
    assert fast["ratio"]["median"] == pytest.approx(np.median(ratios))
    assert fast["ratio"]["q1"] == pytest.approx(np.quantile(ratios, 0.25))


@pytest.mark.parametrize("stage", ["reverse", "encoder_step"])
def test_fast_paths_agree_with_their_slow_twins(outcome: Outcome, stage: str) -> None:
    slow, *fast = outcome.comparison(stage)["rows"]
    assert slow["twin"] is None
    assert slow["difference"] is None
    assert len(fast) >= 1
    for row in fast:
        assert row["twin"] == slow["name"]
        assert row["difference"] < 2e-6


def test_one_wrong_cell_breaks_the_agreement(monkeypatch) -> None:
    def wrong(offsets: np.ndarray, users: np.ndarray, max_length: int) -> PackedRows:
        rows = padded_rows(offsets, users, max_length)
        event = rows.event[0].copy()
        event[0, -1] -= 1
        return dataclasses.replace(rows, event=(event,))

    monkeypatch.setattr(encoder_step, "VARIANTS", ("base",))
    monkeypatch.setattr(encoder_step, "padded_rows", wrong)
    with quick_to_compile():
        found = next(encoder_step.comparisons(TINY, "simulated")).agree()
    assert list(found) == ["packed rows"]
    assert found["packed rows"] > 1e-4


def test_windowed_noise_does_less_and_differs_by_its_draw(outcome: Outcome) -> None:
    dense, window, windows = outcome.comparison("diffusion_step")["rows"]
    slots, width = 701, 88
    assert dense["name"] == "dense, 701 slots"
    assert dense["flops"] == 2 * 16 * 16 * 5 * slots * TINY.steps
    assert window["flops"] == 2 * 16 * 16 * (2 * width + 3 * slots) * TINY.steps
    assert windows["flops"] == 2 * 16 * 16 * (2 * width + 3 * 2 * width) * TINY.steps
    assert windows["moved"] < dense["moved"] == 8 * 4 * 16 * 2 * slots * TINY.steps
    assert 0 < window["difference"] < 0.5
    assert 0 < windows["difference"] < 1


def test_tables_fit_and_name_the_data(outcome: Outcome) -> None:
    lines = outcome.printed.splitlines()
    assert max(map(len, lines)) <= tables.WIDTH
    comparisons = outcome.report["comparisons"]
    assert sum("SIMULATED log, 60 users, 700 items" in line for line in lines) == 4
    for comparison in comparisons:
        assert f"{comparison['stage']}: {comparison['title']}" in lines
        for row in comparison["rows"]:
            assert sum(line.startswith(row["name"] + " ") for line in lines) >= 2
    for ceiling in ("matrix product 64", "copy 262,144 B"):
        assert sum(line.startswith(ceiling) for line in lines) == len(comparisons)
    assert outcome.printed.strip() == (outcome.directory / "benchmark.txt").read_text().strip()


def test_markdown_has_a_whole_table_for_each_comparison(outcome: Outcome) -> None:
    blocks = (outcome.directory / "benchmark.md").read_text().split("\n\n")
    found = [block.splitlines() for block in blocks if block.startswith("| ms a ")]
    comparisons = outcome.report["comparisons"]
    assert len(found) == len(comparisons)
    for table, comparison in zip(found, comparisons, strict=True):
        assert len({line.count("|") for line in table}) == 1
        names = [line.split(" | ")[0].removeprefix("| ") for line in table[2:]]
        ceilings = comparison["ceiling"], comparison["copy"]
        assert names == [row["name"] for row in (*comparison["rows"], *ceilings)]


def test_the_encoder_is_timed_without_and_with_plugins() -> None:
    base, plugins = encoder_step.comparisons(TINY, "simulated")
    assert base.title.startswith("SASRec training step, 8 users")
    assert plugins.title.startswith("SASRec+HBR+NNS+DPA training step, 8 users")
    # The 8 users of a batch of this log fit 4 rows of 24 cells; two steps. DPA's whole histories
    # take keys and values of each cell, and all else of their one block once a history.
    for rows, one, both in zip((8, 4), base.contestants, plugins.contestants, strict=True):
        assert one.flops == 2 * 3 * rows * 24 * (12 * 8**2 + 4 * 24 * 8)
        assert both.flops == one.flops + 2 * 3 * (rows * 24 * 4 * 8**2 + 8 * 8 * 8**2)


@pytest.mark.parametrize("encoder", ["gru4rec", "cl4srec"])
def test_other_encoders_agree_with_their_padded_twins(encoder: str, monkeypatch) -> None:
    sizes = dataclasses.replace(TINY, encoder=encoder)
    with quick_to_compile():
        base, plugins = encoder_step.comparisons(sizes, "simulated")
        assert plugins.agree()["packed rows"] < 2e-6
    input_pass = 2 * 3 * 8 * 24 * (12 * 8**2 + (4 * 24 * 8 if encoder == "cl4srec" else 0))
    to_ends = 2 * 3 * (8 * 24 * 4 * 8**2 + 8 * 8 * 8**2)
    other_pass = {"gru4rec": input_pass, "cl4srec": to_ends}[encoder]
    views = {"gru4rec": 0, "cl4srec": 2}[encoder]
    assert base.contestants[0].flops == input_pass + views * other_pass
    assert plugins.contestants[0].flops == input_pass + (views + 1) * other_pass
    assert base.title.startswith({"gru4rec": "GRU4Rec", "cl4srec": "CL4SRec"}[encoder])


def test_all_encoders_unless_one_is_chosen() -> None:
    sizes = dataclasses.replace(TINY, encoder="all")
    assert sizes.encoders == ("sasrec", "gru4rec", "cl4srec")
    assert make_workload(sizes, "simulated") is make_workload(TINY, "simulated")


def test_both_catalogues_are_compared_where_there_are_two() -> None:
    sizes = dataclasses.replace(TINY, source_items=300)
    comparison = next(diffusion_step.comparisons(sizes, "simulated"))
    assert [(c.name, c.twin) for c in comparison.contestants] == [
        ("dense, 1,001 slots", None),
        ("dense, 701 slots", "dense, 1,001 slots"),
        ("window, 701 slots", "dense, 1,001 slots"),
        ("windows, 701 slots", "dense, 1,001 slots"),
    ]


def test_a_step_has_the_same_work_at_any_number_of_items() -> None:
    """So what it costs more with more items is the catalogue's."""
    lengths = []
    for items in (2_000, 20_000):
        sizes = dataclasses.replace(TINY, items=items, source_items=0)
        lengths.append(make_workload(sizes, "simulated").split.train.lengths)
    np.testing.assert_array_equal(*lengths)


def test_a_real_log_takes_the_place_of_the_simulated_one(real_data, monkeypatch) -> None:
    monkeypatch.setenv("PDREC_DATA", str(real_data))
    make_workload.cache_clear()
    workload = make_workload(Sizes(), "real")
    assert workload.label.startswith("real log (amazon_toy.inter.gz, amazon_game.inter.gz), 7,996")
    assert workload.candidates.shape == (7_996, 100)


@pytest.mark.parametrize("max_length", [4, 9])
def test_padded_rows_end_with_the_last_event(max_length: int) -> None:
    offsets = np.array([0, 3, 10, 11])
    users = np.array([1, 0, 2, 1])
    rows = padded_rows(offsets, users, max_length)
    (event,), (segment,) = rows.event, rows.segment
    assert event.shape == segment.shape == (4, max_length)
    for number, user in enumerate(users):
        own = np.arange(offsets[user], offsets[user + 1])[-max_length:]
        empty = max_length - len(own)
        assert event[number].tolist() == [0] * empty + own.tolist()
        assert segment[number].tolist() == [4] * empty + [number] * len(own)
        assert event.reshape(-1)[rows.last[number]] == own[-1]


def comparison_of(*contestants: Contestant, **fields: Any) -> Comparison:
    return Comparison("reverse", "title", "data", "user", contestants, repeats=3, **fields)


def test_contestants_take_turns() -> None:
    calls: list[str] = []
    contestants = [
        Contestant(name, lambda name=name: calls.append(name), 1, 1.0) for name in ("a", "b")
    ]
    ceiling = Contestant("ceiling", lambda: calls.append("-"), 1, 1.0)
    copy = Contestant("copy", lambda: calls.append("="), 1, moved=1.0)
    result = measure(comparison_of(*contestants), None, ceiling, copy)

    assert "".join(calls) == "---===" + "bbbaaa" + "-=ab" + "=ab-" + "ab-="
    assert [row.name for row in result.rows] == ["a", "b"]
    assert (result.ceiling.name, result.copy.name) == ("ceiling", "copy")
    assert {len(row.seconds) for row in result.rows} == {3}
    calls.clear()
    measure(comparison_of(*contestants), 1, ceiling, copy)
    assert "".join(calls) == "---===" + "bbbaaa" + "-=ab"


def test_the_floor_is_what_binds_more() -> None:
    def row(seconds: float, flops: float | None, moved: float | None) -> Row:
        return Row("", 1, flops, None, (seconds,), 5.0, 1, None, None, None, moved=moved)

    ceiling, copy = row(2.0, 20.0, None), row(0.5, None, 4.0)  # 10 operations, 8 bytes a second
    result = Result("reverse", "", "", "user", "", (), (), ceiling, copy, 0)
    assert result.floor(row(9.0, 30.0, 8.0)) == 3.0
    assert result.floor(row(9.0, 30.0, 80.0)) == 10.0
    assert result.floor(row(9.0, None, 80.0)) == 10.0
    assert result.floor(row(9.0, None, None)) is None
    assert result.floor(ceiling) == 2.0


def test_a_ratio_is_of_one_unit() -> None:
    def row(name: str, units: int, seconds: tuple[float, ...], twin: str | None) -> Row:
        return Row(name, units, None, twin, seconds, 5.0, 1, None, None, None)

    slow, fast = row("slow", 2, (4.0, 6.0, 2.0), None), row("fast", 4, (1.0, 4.0, 2.0), "slow")
    result = Result("reverse", "", "", "user", "", (), (slow, fast), slow, slow, 0)
    ratios = result.ratios(fast)
    assert ratios is not None
    assert ratios.tolist() == [8.0, 3.0, 2.0]
    assert result.ratios(slow) is None
    assert fast.compile_seconds == 3.0
    assert row("quick first", 1, (9.0,), None).compile_seconds == 0.0


def test_a_compilation_under_the_clock_is_reported() -> None:
    sizes = iter(range(1, 100))
    double = jax.jit(lambda x: x * 2)
    changing = Contestant("changing", lambda: double(np.zeros(next(sizes), np.float32)), 1)
    result = measure(comparison_of(changing), None, matrix_product(8), large_copy(8))
    assert result.compilations == 3
    text = tables.text_table(result, suite.describe_machine())
    assert "WARNING: compiled 3 times while the clock ran" in text


def test_added_memory_is_that_of_the_call() -> None:
    if not memory.forget_peak():
        pytest.skip("this system cannot reset the peak of a process")
    size = 64 * 2**20
    eating = Contestant("eating", lambda: np.ones(size, np.uint8).sum(), 1)
    modest = Contestant("modest", lambda: None, 1)
    result = measure(comparison_of(eating, modest), 1, matrix_product(8), large_copy(8))
    eaten, spared = (row.added_bytes for row in result.rows)
    assert abs(eaten - size) < size // 8  # the kernel counts pages in batches
    assert spared < size // 8


def test_peak_memory_is_known_where_it_cannot_be_reset(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "none")
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "no" / "folder")
    assert memory.forget_peak() is False
    assert memory.now() is None
    assert memory.peak() > 2**20


def test_memory_of_an_accelerator_is_shown(monkeypatch) -> None:
    device = types.SimpleNamespace(memory_stats=lambda: {"peak_bytes_in_use": 7 * 2**20})
    monkeypatch.setattr(memory.jax, "devices", lambda: [device])
    assert memory.device_peak() == 7 * 2**20


def test_difference_is_relative_to_the_largest_value() -> None:
    assert largest_difference(jnp.array([1.0, 2.5]), [1.0, -2.0]) == 4.5 / 2
    assert largest_difference(jnp.float32(3.0), jnp.float32(2.0)) == 0.5


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "-"), (float("nan"), "-"), (1234.5, "1,234"), (12.345, "12.35"), (1e-9, "0.000000")],
)
def test_figures_are_short(value: float, text: str) -> None:
    assert tables._figure(value) == text


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--stage=nothing"], "--stage"),
        (["--encoder=bert"], "--encoder"),
        (["--repeats=0"], "--repeats: a whole number of at least 1 is expected, got '0'"),
        (["--repeats=many"], "--repeats: a whole number of at least 1 is expected, got 'many'"),
        (["--items=5"], "--items: a whole number of at least 200 is expected, got '5'"),
        (["--hidden=1.5"], "--hidden"),
        (["--noise_fraction=2"], "--noise_fraction: a number from 0.001 to 1 is expected"),
        (["--noise_fraction=nan"], "--noise_fraction"),
        (["--rep=3"], "--rep=3"),
        (["reverse"], "reverse"),
        (["--data=real", "--items=300"], "--data=real: the log decides"),
        (["--data=real", "--stage=evaluation"], "amazon_toy.inter and amazon_game.inter"),
    ],
)
def test_a_mistake_costs_one_line(
    flags: list[str], expected: str, capsys, monkeypatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PDREC_DATA", raising=False)
    assert main(flags) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert expected in said.err


def test_the_place_is_looked_at_first(capsys, tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_text("")
    for out in (place, place / "below"):
        assert main([*FLAGS, f"--out={out}"]) == 2
        assert capsys.readouterr().err.startswith(f"error: {'--out=' * (out == place)}{out}: ")


def test_flags_are_read_before_jax_is_loaded() -> None:
    script = "import sys, pdrec_jax.benchmark.__main__; print('jax' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
