"""The command line: what it reads, and that every mistake is one line, status 2, and no trace."""

import gzip
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import jax
import pytest

from pdrec_jax import experiment
from pdrec_jax.errors import UserError
from pdrec_jax.main import help_text, load_config, main, parse
from pdrec_jax.settings import FIELDS

ROOT = Path(__file__).resolve().parents[1]
TOY = ROOT / "configs" / "toy.py"
HEAVY = {"jax", "jaxlib", "flax", "optax", "orbax", "grain", "pyarrow", "matplotlib", "torch"}
CONFIG = """
from pdrec_jax.settings import default_config

def get_config(target="log.inter"):
    config = default_config()
    config.name = "test"
    config.data.target = target
    config.data.ids = "integer"
    config.evaluation.negatives, config.dpa.coarse, config.dpa.fine = 2, 2, 1
    return config
"""
HEADER = "user_id:token\titem_id:token\ttimestamp:float\n"
# 4 users with 4 events each, of 12 items.
ROWS = [f"{u}\t{1 + (u * 5 + i) % 12}\t{100 * i}\n" for u in (1, 2, 3, 4) for i in range(4)]


def with_row(row: str) -> str:
    return HEADER + "".join([*ROWS[:2], f"{row}\n", *ROWS[2:]])


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with config.py and data/log.inter in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PDREC_DATA", raising=False)
    (tmp_path / "config.py").write_text(CONFIG)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "log.inter").write_text(HEADER + "".join(ROWS))
    return tmp_path


@pytest.fixture
def call(place: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., SimpleNamespace]:
    """`call(*flags)` runs the command line with config.py and these flags."""

    def call(*arguments: str, config: str = "config.py") -> SimpleNamespace:
        status = main(["main", f"--config={config}", *arguments])
        out, err = capsys.readouterr()
        return SimpleNamespace(status=status, out=out, err=err)

    return call


@pytest.fixture
def complaint(call: Callable[..., SimpleNamespace], place: Path) -> Callable[..., str]:
    """`complaint(*flags)`: what the one line says; nothing may be left behind."""

    def complaint(*arguments: str, config: str = "config.py") -> str:
        before = sorted(place.rglob("*"))
        done = call(*arguments, config=config)
        assert done.status == 2
        assert done.err.startswith("error: ")
        assert done.err.count("\n") == 1
        assert done.err.endswith("\n")
        left = {path for path in place.rglob("*") if "__pycache__" not in path.parts}
        assert left == set(before)
        return done.err.removeprefix("error: ").removesuffix("\n")

    return complaint


@pytest.fixture
def no_run(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Calls of `experiment.run`, which is not made."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(experiment, "run", lambda *arguments: calls.append(arguments))
    return calls


class TestFlags:
    def test_a_good_command(self, call, no_run) -> None:
        done = call(
            "--workdir=w",
            "--config.seed=3",
            "--config.encoder.width",
            "16",
            "-config.diffusion.learning_rate=1",
            "--config.diffusion.hidden=(8,4)",
            "--config.encoder.variants=base",
            "--config.encoder.variants=nns+hbr",
            "--noconfig.progress",
            "--config.data.time=",
        )
        assert (done.status, done.out, done.err) == (0, "", "")
        config, by_hand, workdir = no_run[0]
        assert workdir == "w"
        assert by_hand == {
            "seed",
            "encoder.width",
            "diffusion.learning_rate",
            "diffusion.hidden",
            "encoder.variants",
            "progress",
            "data.time",
        }
        assert (config.seed, config.encoder.width, config.data.time) == (3, 16, "")
        assert config.diffusion.hidden == (8, 4)
        assert config.encoder.variants == ("base", "nns+hbr")
        assert config.diffusion.learning_rate == 1.0
        assert not config.progress
        assert config.name == "test"
        with pytest.raises(AttributeError):
            config.new = 1

    def test_the_config_may_stand_anywhere_and_apart(self, place) -> None:
        for argv in (
            ["main", "--config.seed=3", "--config", "config.py:a.csv"],
            ["main", "-config=config.py:a.csv", "--config.seed=3"],
        ):
            command = parse(argv)
            assert (command.config.seed, command.config.data.target) == (3, "a.csv")
            assert command.workdir is None

    def test_unknown_fields(self, complaint) -> None:
        unknown = "config.diffusion.stepz: unknown field, did you mean config.diffusion.steps?"
        assert complaint("--config.diffusion.stepz=3") == unknown
        assert complaint("--config.diffusion.stepz", "3") == unknown
        assert complaint("--config.qqq=1") == "config.qqq: unknown field"
        assert complaint("--config.seed.x=1").startswith("config.seed.x: unknown field")
        assert complaint("--config.=1") == "config.: unknown field"
        assert complaint("--config.mesh[5]=1").startswith("config.mesh")
        assert complaint("--config.a b=1") == "config.a b: unknown field"
        assert complaint("--noconfig.progres").startswith("config.progres: unknown field, did you")
        section = (
            "config.diffusion: is a section; set its fields, such as config.diffusion.schedule"
        )
        assert complaint('--config.diffusion={"steps": 3}') == section

    @pytest.mark.parametrize(
        ("flag", "value"),
        [
            ("seed", "abc"),
            ("seed", "1.0"),
            ("seed", ""),
            ("encoder.dropout", "half"),
            ("progress", "maybe"),
            ("diffusion.hidden", "(8,"),
        ],
    )
    def test_values_of_the_wrong_type(self, complaint, flag, value) -> None:
        expected = f"config.{flag}: {FIELDS[flag].expected} is expected, got {value!r}"
        assert complaint(f"--config.{flag}={value}") == expected
        if flag != "progress":  # stands for True without a value
            assert f"config.{flag}" in complaint(f"--config.{flag}", value)

    @pytest.mark.parametrize(
        ("flag", "value", "shown"),
        [
            ("seed", "-1", "-1"),
            ("protocol", "Strict", "'Strict'"),
            ("encoder.dropout", "1", "1.0"),
            ("diffusion.learning_rate", "nan", "nan"),
            ("diffusion.hidden", "(8,0)", "(8, 0)"),
            ("diffusion.hidden", "wide", "('wide',)"),
            ("simulation.overrides", "seed", "('seed',)"),
        ],
    )
    def test_values_out_of_range(self, complaint, flag, value, shown) -> None:
        expected = f"config.{flag}: {FIELDS[flag].expected} is expected, got {shown}"
        assert complaint(f"--config.{flag}={value}") == expected

    def test_variants_and_encoders_that_are_unknown(self, complaint) -> None:
        assert complaint("--config.encoder.variants=base,hbr") == (
            "config.encoder.variants: expected 'base' or some of hbr+nns+dpa, got 'base,hbr'"
        )
        assert "'hbr+hbr'" in complaint("--config.encoder.variants=hbr+hbr")
        twice = complaint("--config.encoder.variants=('hbr+nns', 'nns+hbr')")
        assert twice.startswith("config.encoder.variants: a tuple of different variants is expect")
        assert complaint("--config.encoder.name=gru").endswith("registers; got 'gru'")

    def test_other_flags(self, complaint) -> None:
        assert complaint("--confg=1").startswith("Unknown command line flag 'confg'")
        assert complaint("--workdir") == "Missing value for flag --workdir"
        assert complaint("--config.seed") == "Missing value for flag --config.seed"
        assert complaint("3").startswith("unexpected argument '3'; a field is set as --config.")
        assert complaint("--flagfile=none").startswith("ERROR:: Unable to open flagfile: ")

    def test_no_config(self, place, capsys) -> None:
        for arguments in ([], ["--workdir=w"], ["--config.seed=1"]):
            assert main(["main", *arguments]) == 2
            said = "error: --config: a file is expected, for instance --config=configs/toy.py\n"
            assert capsys.readouterr().err == said

    def test_help(self, capsys) -> None:
        assert main(["main", "--config=none.py", "--help"]) == 0
        out, err = capsys.readouterr()
        assert (out, err) == (help_text() + "\n", "")
        assert all(f"--config.{path}={field.default!r}" in out for path, field in FIELDS.items())
        assert max(map(len, out.splitlines())) <= 160


class TestConfigFiles:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("def get_config(:", "row 1: SyntaxError: invalid syntax"),
            ("import none_such", "row 1: ModuleNotFoundError: No module named 'none_such'"),
            ("\ndef get_config():\n    return nothing", "row 3: NameError: name 'nothing' is not"),
            ("def get_config():\n    raise OSError('gone')", "row 2: OSError: gone"),
            ("def get_config():\n    return None", "get_config must return a ConfigDict, got None"),
            ("def get_config():\n    return {}", "get_config must return a ConfigDict, got dict"),
            ("seed = 1", "a function get_config is expected"),
            (f"{CONFIG}\nget_config().seed = 'a'", "row 12: TypeError: Could not override field"),
        ],
    )
    def test_that_fail(self, complaint, place, text, message) -> None:
        (place / "bad.py").write_text(text)
        for arguments in ([], ["--config.seed=1"]):
            found = complaint(*arguments, config="bad.py")
            assert found.startswith(f"--config: bad.py: {message}")

    def test_that_say_themselves_what_is_wrong(self, place) -> None:
        text = "from pdrec_jax.errors import UserError\ndef get_config(x):\n    raise UserError(x)"
        (place / "bad.py").write_text(text)
        with pytest.raises(UserError, match=r"^--config: bad\.py: one line$"):
            load_config("bad.py:one line")

    def test_that_are_not_there(self, complaint) -> None:
        assert complaint(config="none.py") == "--config: none.py: no such file"
        assert complaint(config="none.py:x") == "--config: none.py: no such file"
        assert complaint(config="data") == "--config: data: no such file"
        assert complaint(config="") == "--config: no path: no such file"

    def test_arguments_that_are_not_wanted_or_missing(self, complaint, place) -> None:
        (place / "none.py").write_text("def get_config(): ...")
        assert "takes 0 positional arguments but 1 was" in complaint(config="none.py:x")
        (place / "one.py").write_text("def get_config(x): ...")
        assert "missing 1 required positional argument" in complaint(config="one.py")

    def test_fields_that_are_unknown(self, complaint, place) -> None:
        text = CONFIG.replace("config.name", "config.encoder.widht")
        (place / "bad.py").write_text(text)
        assert complaint(config="bad.py").startswith("config.encoder.widht: unknown field, did you")

    @pytest.mark.parametrize("variant", ["", ":paper", ":readme", ":variant=readme", ":tuned"])
    def test_toy(self, variant, no_run) -> None:
        assert main(["main", f"--config={TOY}{variant}"]) == 0
        config = no_run[0][0]
        assert config.name == "toy"
        assert config.dpa.weight == (0.3 if "paper" in variant else 0.05)

    @pytest.mark.parametrize("name", ["toy", "game", "game_toy"])
    def test_an_unknown_variant_names_the_file_that_was_asked_for(self, name, capsys) -> None:
        path = TOY.with_name(f"{name}.py")
        assert main(["main", f"--config={path}:fast"]) == 2
        expected = f"error: --config: {path}: variant 'tuned', 'readme' or 'paper' is expected, "
        expected += "got 'fast'\n"
        assert capsys.readouterr().err == expected


class TestData:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "empty file, a header and rows are expected"),
            (HEADER, "a header and no rows"),
            ("user\titem\ttime\n", "row 1 (header): 'user' is not name:type"),
            (HEADER.replace("item_id", "item"), "row 1 (header): no column 'item_id', found "),
            (with_row("1\t2"), "row 4: 2 fields, 3 are expected"),
            (with_row("one\t2\t3"), "row 4, field 'user_id': 'one' is not an integer"),
            (with_row("1\ttwo\t3"), "row 4, field 'item_id': 'two' is not an integer"),
            (with_row("1\t2\tnoon"), "row 4, field 'timestamp': 'noon' is not a finite number"),
            (with_row("1\t2\tnan"), "row 4, field 'timestamp': 'nan' is not a finite number"),
            (with_row("1\t2\tinf"), "row 4, field 'timestamp': 'inf' is not a finite number"),
            (with_row("1\t2\t1e999"), "row 4, field 'timestamp': '1e999' is not a finite number"),
            (with_row("-1\t2\t3"), "row 4, field 'user_id': '-1' is not an integer from 1"),
            (with_row("1\t0\t3"), "row 4, field 'item_id': '0' is not an integer from 1"),
            (with_row("\t2\t3"), "row 4, field 'user_id': "),
            (HEADER + "".join(ROWS[:4]), "1 of 1 users have 3 or more target events, at least 2"),
            (HEADER + "".join(ROWS[:6]), "1 of 2 users have 3 or more target events, at least 2"),
        ],
    )
    def test_bad_files(self, complaint, place, text, message) -> None:
        (place / "data" / "log.inter").write_text(text)
        assert complaint().startswith(f"data/log.inter: {message}")

    def test_a_bad_packed_file(self, complaint, place) -> None:
        (place / "data" / "log.inter").unlink()
        packed = gzip.compress((HEADER + "".join(ROWS)).encode())
        (place / "data" / "log.inter.gz").write_bytes(packed[:-9])
        assert complaint().startswith("data/log.inter.gz: broken gzip file")

    def test_missing_files(self, complaint, place) -> None:
        (place / "data" / "log.inter").unlink()
        missing = complaint("--config.data.source=real")
        assert missing.startswith("log.inter: not found in data; put the logs (.inter, .csv, ")
        assert "--config.data.dir=DIR" in missing
        path = "--config.data.target=data/log.inter"
        assert complaint(path) == "config.data.target: data/log.inter: no such file"
        assert complaint("--config.data.dir=dta") == "config.data.dir: dta is no directory"

    def test_toy_says_where_its_logs_are_published(self, place, capsys) -> None:
        argv = ["main", f"--config={TOY}", "--config.data.source=real"]
        assert main(argv) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: amazon_toy.inter and amazon_game.inter: not found in data;")
        assert "hulkima/PDRec" in error
        assert error.count("\n") == 1

    def test_data_that_is_too_little_for_the_config(self, complaint) -> None:
        assert complaint("--config.dpa.coarse=10") == (
            "config.dpa.coarse: 10 candidates are wanted, but user 1 has seen 2 of 11 items"
        )
        found = complaint("--config.evaluation.negatives=20")
        assert found.startswith("evaluation: user 1 leaves 7 items to draw 20 negatives from")
        # Before there is a table, for which no machine had room.
        found = complaint(f"--config.evaluation.negatives={10**12}")
        assert found.startswith(f"evaluation: user 1 leaves 7 items to draw {10**12} negatives")

    def test_no_user_left_for_a_stage(self, complaint, place) -> None:
        rows = [row for row in ROWS if not row.endswith("\t300\n")]
        (place / "data" / "log.inter").write_text(HEADER + "".join(rows))
        found = complaint()
        assert found.startswith("data: no user passes the strict protocol's filter of the diffusi")

    def test_the_encoder_stage_without_preferences(self, complaint, place) -> None:
        stage = "--config.stage=encoder"
        assert complaint(stage).startswith("config.stage: the encoder stage alone needs preferenc")
        other = "--config.preferences_from=runs"
        assert complaint(stage, other) == f"{place / 'runs/preferences'}: no checkpoint here"
        assert complaint(other).startswith("config.preferences_from: only the encoder stage reads")


class TestWorkdirs:
    def test_that_hold_something_else(self, complaint, place) -> None:
        (place / "w").mkdir()
        (place / "w" / "thesis.tex").touch()
        assert complaint("--workdir=w") == "w: not empty and not a run; name another --workdir"
        (place / "w" / "config.json").write_text("{}")
        assert complaint("--workdir=w").startswith("w: holds a run with another config, which diff")
        (place / "w" / "config.json").write_text("{")
        assert complaint("--workdir=w").startswith("w/config.json: JSON is expected")
        assert complaint("--workdir=config.py") == "config.py: a directory is expected"


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted; the same command resumes the run"),
        (OSError(28, "No space"), 2, "error: disk full ([Errno 28] No space)"),
        (UserError("two\nlines"), 2, "error: two lines"),
        (
            jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: Out of memory, 9 GiB\nBufferAssignment"
            ),
            2,
            "error: out of memory on the device (Out of memory, 9 GiB); a smaller "
            "encoder.batch_size or diffusion.batch_size needs less in training, a smaller "
            "encoder.block or diffusion.block in ranking",
        ),
    ],
)
def test_what_ends_a_run(call, monkeypatch, error, status, message) -> None:
    monkeypatch.setattr(experiment, "run", Mock(side_effect=error))
    done = call()
    assert (done.status, done.out, done.err) == (status, "", f"{message}\n")


@pytest.mark.parametrize(
    "error",
    [ValueError("a bug"), OSError(5, "broken disk"), jax.errors.JaxRuntimeError("INTERNAL: a bug")],
)
def test_what_is_nobodys_mistake_keeps_its_traceback(call, monkeypatch, error) -> None:
    monkeypatch.setattr(experiment, "run", Mock(side_effect=error))
    with pytest.raises(type(error)) as caught:
        call()
    assert caught.value is error


class TestStart:
    def test_a_reader_that_has_seen_enough(self) -> None:
        code = "print('x' * 100_000, flush=True); print('y' * 100_000)"
        work = "from pdrec_jax.command import answered, leave\n"
        work += f"leave(answered(lambda: exec({code!r}), ''))"
        with subprocess.Popen(
            [sys.executable, "-c", work], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout
            assert process.stderr
            process.stdout.read(9)
            process.stdout.close()
            assert process.stderr.read() == b""
        assert process.returncode == 128 + signal.SIGPIPE

    @pytest.mark.parametrize(
        ("flag", "message"),
        [
            ("--config.sed=1", "config.sed: unknown field, did you mean config.seed?"),
            ("--config.seed=-1", "config.seed: an integer of at least 0 and at most 2147483647"),
            ("--config.data.path=none", "config.data.path: none/prepared.json: cannot be read"),
        ],
    )
    def test_a_mistyped_flag_is_answered_before_the_heavy_imports(self, flag, message) -> None:
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "pdrec_jax.main", f"--config={TOY}", flag],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        said = [row for row in done.stderr.splitlines() if not row.startswith("import time:")]
        loaded = {
            row.rpartition("|")[2].strip().partition(".")[0]
            for row in done.stderr.splitlines()
            if row.startswith("import time:")
        }
        assert done.returncode == 2
        assert done.stdout == ""
        assert len(said) == 1
        assert said[0].startswith(f"error: {message}")
        assert "pdrec_jax" in loaded
        assert not loaded & HEAVY
