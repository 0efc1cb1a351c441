"""The README's first command on the simulated log, as a user has it: its stages learn."""

import json
from pathlib import Path

import pytest

from pdrec_jax.main import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.loose_jax
def test_every_model_learns(tmp_path, monkeypatch) -> None:
    """A minute. TI-DiffRec stood at half of this while it trained on windows in so few steps."""
    monkeypatch.delenv("PDREC_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run"
    assert main(["main", f"--config={ROOT / 'configs/toy.py'}", f"--workdir={path}"]) == 0
    results = json.loads((path / "results.json").read_text())
    ndcg = {model["key"]: model["sampled"]["NDCG@10"] for model in results["models"]}
    # Drawn at random the relevant item would reach .045.
    assert ndcg["diffusion"] > 0.4
    assert ndcg["sasrec"] > 0.3
    assert ndcg["sasrec+hbr+nns+dpa"] > ndcg["sasrec"]
