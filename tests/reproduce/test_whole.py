"""Table 1 by one command, in processes that are killed, as the paper's rows are made."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLAGS = (
    "--table=1",
    "--datasets=toy,game",
    "--encoders=sasrec,gru4rec,cl4srec",
    "--seeds=2",
    "--share-diffusion",
    "--protocol=reference,strict",
    "--config.data.source=simulated",
)
KILLS = 12


def start(folder: Path, out: str) -> subprocess.Popen:
    environment = {k: v for k, v in os.environ.items() if k != "PDREC_DATA"}
    return subprocess.Popen(
        [sys.executable, "-m", "pdrec_jax.reproduce", *FLAGS, f"--out={out}"],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def cells(path: Path) -> list[str]:
    return path.read_text().splitlines()


@pytest.mark.slow
def test_table_1_of_both_logs_and_protocols_survives_kills(
    config_text: str, tmp_path: Path
) -> None:
    """SIGKILL 12 times at any moment; the table is that of a command that was not disturbed."""
    (tmp_path / "configs").mkdir()
    for name in ("toy", "game"):
        text = config_text.replace('"name": "toy"', f'"name": "{name}"')
        (tmp_path / "configs" / f"{name}.py").write_text(text)
    unbroken = start(tmp_path, "unbroken")
    _, err = unbroken.communicate()
    assert unbroken.returncode == 0, err
    draw, kills = random.Random(0), 0
    while True:
        process = start(tmp_path, "killed")
        try:
            # From before the first line to well within a run.
            _, err = process.communicate(timeout=draw.uniform(2, 60) if kills < KILLS else None)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            continue
        assert process.returncode == 0, err
        break
    tables = sorted(
        path.relative_to(tmp_path / "unbroken") for path in (tmp_path / "unbroken").glob("*/*.csv")
    )
    assert len(tables) >= 1
    for table in tables:
        rows = cells(tmp_path / "unbroken" / table)
        # 14 rows a log and protocol, T- and TI-DiffRec and three encoders without and with plugins.
        assert len(rows) > 14
        assert cells(tmp_path / "killed" / table) == rows
    print(f"{kills} kills,", *tables)
