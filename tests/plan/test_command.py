"""The command line: plans for GPUs and TPUs, where sizes come from, and mistakes."""

from importlib import util
from pathlib import Path

import pytest

from pdrec_jax.plan import __main__ as command
from pdrec_jax.plan import search
from pdrec_jax.plan.report import amount

CONFIG = Path(__file__).resolve().parents[2] / "configs/custom.py"


def run(*arguments: str) -> int:
    return command.main([f"--config={CONFIG}", *arguments])


SIZES = ("--users=1e8", "--items=10_000_000", "--events=50")
PARTS = ("diffusion.batch_size", "diffusion.block", "encoder.batch_size", "encoder.block")
LARGE = (
    *(f"--config.{part}=8192" for part in PARTS),
    "--config.diffusion.hidden=(128,)",
    "--config.encoder.max_length=50",
)


def test_a_plan_for_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--topology=h100:8x8", "--mesh=4,16", *SIZES, *LARGE, "--price=3") == 0
    out = capsys.readouterr().out
    assert out.startswith("custom on h100:8x8, mesh (data 4, model 16), estimated by formulas\n")
    assert "100,000,000 users, 10,000,000 items, 50 events each (given); H 128, D 64" in out
    for name in (
        "diffusion",
        "preferences",
        "SASRec",
        "SASRec+HBR+NNS+DPA",
        "encoders",
        "together",
    ):
        assert f"\n{name} " in out
    # A product a step forward and back, for each device's part of the batch and the catalogue.
    assert f"operations  {amount(5 * 10 * 2048 * 625_001 * 128, 'FLOP')}" in out


WINDOWS = tuple(f"--config.diffusion.{name}_fraction=0.125" for name in ("noise", "error"))


def test_windows_and_the_dense_loop_are_planned_for_gpus(
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ("--topology=h100:8x8", "--mesh=64,1", *SIZES, "--items=1e6", *LARGE)
    noisy = ("--config.diffusion.sampling_noise", "--config.stage=diffusion")
    assert run(*given, *noisy, *WINDOWS) == 0
    out = capsys.readouterr().out
    # Two products of the noise's window and that of the head, three of the error's window and head.
    window, head = 125_001, 15_626
    rows, every = 2 * (window + head) + 3 * 2 * window, -(-100_000_000 // 8192)
    steps = -(-every // -(-every // 512))  # of the pieces of an epoch, 24 as equal as may be
    assert f"operations  {amount(2 * steps * 128 * rows * 128, 'FLOP')}" in out
    assert f"each {steps} steps of 8192 users" in out
    # Ten steps of two products with the whole catalogue.
    assert f"operations  {amount(2 * 10 * 128 * 1_000_001 * 256, 'FLOP')}" in out


def test_a_plan_for_gpus_that_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    fewer = [f"--config.{part}=1024" for part in PARTS]
    assert run("--topology=h100:8x1", "--mesh=8,1", *SIZES, "--items=3e7", *LARGE, *fewer) == 3
    assert "it would fit on --mesh=" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: --topology"),
        (["--topology=v9"], "--topology: one of"),
        (["--topology=h100:8x2", "--mesh=3,3"], "--mesh: sizes whose product is 16 are expected"),
        (["--topology=h100:8x2", "--users=many"], "argument --users: a number such as 1e6"),
        (
            ["--topology=h100:8x2", "--users=1", *SIZES[1:]],
            "--users: at least 2 is expected, got 1",
        ),
        (["--topology=h100:8x2", "--price=-1"], "--price: at least 0 is expected, got -1"),
        (["--topology=h100:8x2", "--price=nan"], "--price: at least 0 is expected, got nan"),
        (["--topology=h100:8x2", "--users=1e999"], "argument --users: at most 1e+15 is expected"),
        (["--topology=h100:8x2", "--users=1" + 30 * "0_0"], "argument --users: at most 1e+15"),
        (["--topology=h100:8x2", *SIZES, "--config.seeds=5"], "config.seeds: 1 is planned alone"),
        (
            ["--topology=h100:8x2", *SIZES, "--config.diffusion.both"],
            "config.diffusion.both: False is planned alone, got True",
        ),
        (
            ["--topology=h100:8x2", *SIZES, "--config.diffusion.source_slots"],
            "config.diffusion.source_slots: False is planned alone, got True",
        ),
        (
            ["--topology=h100:8x2", *SIZES, "--config.diffusion_from=runs/a"],
            "config.diffusion_from: '' is planned alone, got 'runs/a'",
        ),
        (
            ["--topology=h100:8x2", *SIZES, "--config.encoder.variants=('base','foo')"],
            "expected 'base' or some of hbr+nns+dpa, got 'foo'",
        ),
        (["--topology=h100:8x2", "--config.nam=x"], "config.nam: unknown field"),
        (["--topology=h100:8x2", "--workdir=runs/a"], "--workdir: says nothing to a plan"),
        (["--topology=h100:8x2", "--coordinator=a:1"], "--coordinator: says nothing to a plan"),
        (["--topology=h100:8x2", "--num_processes=2"], "--num_processes: says nothing to a plan"),
        (["--topology=h100:8x2", "--process_id=0"], "--process_id: says nothing to a plan"),
        (["--topology=h100:8x2", "--other"], "Unknown command line flag 'other'"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert message.lower() in printed.err.lower()
    assert printed.err.count("\n") == 1


def test_without_the_extra_one_line_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name: None if name == "libtpu" else real(name))
    assert run("--topology=v5e:4x4", "--mesh=4,4", *SIZES) == 2
    assert "pip install '.[tpu]'" in capsys.readouterr().err


def test_without_a_log_the_shortened_run_is_planned(monkeypatch, tmp_path, capsys) -> None:
    planned = []
    monkeypatch.setattr(search, "run", lambda config, *_: planned.append(config) or 0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PDREC_DATA", raising=False)
    toy = CONFIG.with_name("toy.py")
    flags = ["--topology=h100:2x1", "--config.simulation.num_users=300"]
    assert command.main([f"--config={toy}", *flags]) == 0
    assert (planned[0].diffusion.epochs, planned[0].encoder.epochs) == (20, 30)
    # Sizes that are given are of a real job.
    assert command.main([f"--config={toy}", *flags, "--users=1e8", "--items=1e6"]) == 2
    said = "error: --users, --items, --events: the log that the others would be taken from is not"
    assert capsys.readouterr().err.startswith(said)
    sizes = ("--users=1e8", "--items=1e6", "--events=14")
    assert command.main([f"--config={toy}", *flags, *sizes]) == 0
    assert (planned[1].diffusion.epochs, planned[1].encoder.epochs) == (1000, 200)
    given = ("--users=1e8", "--config.data.source=simulated")
    assert command.main([f"--config={toy}", *flags, *given]) == 0
    assert (planned[2].diffusion.epochs, planned[2].encoder.epochs) == (1000, 200)


def test_sizes_come_from_the_log_where_none_are_given(capsys: pytest.CaptureFixture[str]) -> None:
    simulated = (
        "--config.data.source=simulated", "--config.simulation.num_users=300",
        "--config.simulation.num_items=400", "--config.data.target=",
    )  # fmt: skip
    assert run("--topology=h100:2x1", "--mesh=1,2", "--items=5e4", *simulated) == 0
    out = capsys.readouterr().out
    assert " users, 50,000 items, " in out
    assert "(simulated log, the rest given)" in out
    assert "SIMULATED" not in out
    assert run("--topology=h100:2x1", "--mesh=1,2", *simulated) == 0
    assert capsys.readouterr().out.startswith("SIMULATED DATA: a run on a real log has other sizes")


@pytest.mark.tpu
@pytest.mark.loose_jax("dtypes")
@pytest.mark.skipif(util.find_spec("libtpu") is None, reason="needs the extra tpu")
@pytest.mark.parametrize(
    ("topology", "options"),
    [
        ("v5e:4x4", ()),
        # An eighth of an eighth would be as many rows as there are groups of 64 items.
        ("v6e:4x4", (*WINDOWS, "--config.diffusion.noise_fraction=0.25")),
        ("v4:2x2x4", ()),
    ],
)
def test_a_plan_for_tpus(
    topology: str, options: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    small = (
        "--users=1e5", "--items=1e5", "--events=20", "--config.diffusion.hidden=(64,)",
        "--config.encoder.variants=('hbr+nns+dpa',)", "--config.encoder.max_length=32",
    )  # fmt: skip
    assert run(f"--topology={topology}", "--mesh=4,4", *small, *options) == 0
    out = capsys.readouterr().out
    assert "NOT SPLIT" not in out
    assert out.count("  at best  ") == 8
    assert run("--topology=v5e:3x5", "--mesh=3,5", *small) == 2
    assert "there is no v5e:3x5" in capsys.readouterr().err


def test_settings_for_strict_are_planned_with(monkeypatch) -> None:
    planned = []
    monkeypatch.setattr(search, "run", lambda config, *_: planned.append(config) or 0)
    for protocol in ("strict", "reference"):
        flags = ["--topology=h100:8x1", "--users=100", "--items=300", "--events=2000"]
        chosen = "--config.strict_overrides=(('encoder.negatives', 4),)"
        assert run(*flags, chosen, f"--config.protocol={protocol}") == 0
    assert [config.encoder.negatives for config in planned] == [4, 1]
