"""``pdrec_jax.train`` does what the command line does."""

import re
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pdrec_jax
from pdrec_jax import experiment, interrupts
from pdrec_jax.errors import UserError
from pdrec_jax.main import load_config

ROOT = Path(__file__).resolve().parents[2]
BASE = {"stage": "encoder", "encoder.variants": ["base"], "encoder.epochs": 2}
FLAGS = ["--config.stage=encoder", "--config.encoder.variants=base", "--config.encoder.epochs=2"]


@pytest.fixture
def here(
    folder: Path, quickly: Callable[[], AbstractContextManager[None]], monkeypatch: Any
) -> Any:
    """The folder of config.py, and no logs anywhere near."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("PDREC_DATA", raising=False)
    with quickly():
        yield folder


def test_a_file_and_fields_are_what_the_command_runs(here, call, tmp_path) -> None:
    results = pdrec_jax.train("config.py", BASE, tmp_path / "python")
    done = call(tmp_path / "command", *FLAGS)
    mood = ("times", "peak_memory_bytes")
    assert {key: value for key, value in results.items() if key not in mood} == done.lasting
    # Set by hand, and so above the three epochs that a simulated log has here.
    assert results["models"][0]["epochs"] == 2
    again = pdrec_jax.train(here / "config.py", BASE, str(tmp_path / "python"))
    assert again["times"] == results["times"]


def test_a_config_stays_as_it_is(monkeypatch, here) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(experiment, "run", lambda *given: seen.append(given) or {})
    config = load_config("config.py")
    before = config.to_json_best_effort()
    assert pdrec_jax.train(config, {"encoder.learning_rate": 1, "diffusion.hidden": [4, 5]}) == {}
    assert config.to_json_best_effort() == before
    ((found, by_hand, workdir),) = seen
    assert found.encoder.learning_rate == 1.0
    assert found.diffusion.hidden == (4, 5)
    assert by_hand == {"encoder.learning_rate", "diffusion.hidden"}
    assert workdir is None


def test_what_tuners_and_paths_give(monkeypatch, here) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(experiment, "run", lambda *given: seen.append(given) or {})
    fields = {
        "encoder.epochs": np.int64(3),
        "encoder.learning_rate": np.float32(0.5),
        "diffusion.hidden": np.array([4, 5]),
        "data.target": Path("logs") / "mine.csv",
        "diffusion.both": np.bool_(True),
    }
    pdrec_jax.train("config.py", fields)
    ((found, *_),) = seen
    assert (found.encoder.epochs, found.encoder.learning_rate) == (3, 0.5)
    assert (found.diffusion.hidden, found.diffusion.both) == ((4, 5), True)
    assert found.data.target == "logs/mine.csv"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoder.nmae": "sasrec"}, "config.encoder.nmae: unknown field, did you mean"),
        ({"encoder": {}}, "config.encoder: is a section"),
        ({"encoder.epochs": "7"}, "config.encoder.epochs: .* is expected, got '7'"),
        ({"encoder.dropout": 1.5}, "config.encoder.dropout: .* is expected, got 1.5"),
    ],
)
def test_mistakes(here, fields, message, tmp_path) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        pdrec_jax.train("config.py", fields, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_missing_file(here) -> None:
    with pytest.raises(UserError, match=r"^--config: nowhere\.py: no such file$"):
        pdrec_jax.train("nowhere.py")


def test_a_signal_waits_for_the_state_to_be_saved(here, monkeypatch) -> None:
    done = []

    def run(*_: Any) -> dict[str, Any]:
        with interrupts.deferred():
            signal.raise_signal(signal.SIGINT)
            done.append("saved")
        return {}

    monkeypatch.setattr(experiment, "run", run)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=r"^signal 2$"):
        pdrec_jax.train("config.py")
    assert done == ["saved"]
    assert str(interrupts.Interrupted(2, "epoch 3 saved")) == "epoch 3 saved"
    assert signal.getsignal(signal.SIGINT) is before


def test_the_documented_loop(here, monkeypatch, capsys) -> None:
    """As it stands in docs/faq.md, but shorter."""
    text = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(import pdrec_jax\n.*?)^```$", text, re.M | re.S)
    train = pdrec_jax.train

    def shorter(file: str, fields: dict[str, Any], workdir: str) -> dict[str, Any]:
        assert file == "configs/toy.py"
        return train("config.py", {**fields, "encoder.epochs": 1}, workdir)

    monkeypatch.setattr(pdrec_jax, "train", shorter, raising=False)
    exec(compile(code, "faq.md", "exec"), {})
    assert re.search(r"^best: 0\.\d+$", capsys.readouterr().out, re.M)
