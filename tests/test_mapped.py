"""Two processes train on a mapped log as they do on the log in memory, bit for bit.

The file runs itself, once for each process.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pdrec_jax import processes
from pdrec_jax.data.mapped import read_mapped, write_mapped
from pdrec_jax.data.simulator import simulate
from pdrec_jax.data.splits import leave_one_out
from pdrec_jax.diffusion import stage as diffusion_stage
from pdrec_jax.encoders import stage as encoder_stage
from pdrec_jax.evaluation.protocol import STRICT, DrawnCandidates, user_sets
from pdrec_jax.settings import default_config, put, seeded
from pdrec_jax.sharding import make_mesh

ROOT = Path(__file__).resolve().parents[1]


def test_two_processes_on_a_mapped_log(tmp_path: Path) -> None:
    log = simulate(60, 200, seed=2, mean_length=8).log
    write_mapped(tmp_path / "log", log.blocks(), log.user_ids, log.item_ids)
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    environ = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen(
            [sys.executable, __file__, str(port), str(number), str(tmp_path / "log")],
            cwd=ROOT,
            env=environ,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    for process in running:
        _, err = process.communicate(timeout=600)
        assert process.returncode == 0, err[-3000:]


def take_part(port: int, number: int, place: Path) -> None:
    with processes.joined(f"localhost:{port}", 2, number):
        mesh = make_mesh((2, 1))
        logs = simulate(60, 200, seed=2, mean_length=8).log, read_mapped(place)
        expected, found = (trained(log, mesh) for log in logs)
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def trained(log: Any, mesh: Any) -> Any:
    """Parameters, moments and ranks of an encoder and a diffusion model after an epoch."""
    config = default_config()
    fields = {
        "encoder.width": 8,
        "encoder.max_length": 12,
        "encoder.batch_size": 32,
        "encoder.block": 32,
        "diffusion.hidden": (8,),
        "diffusion.batch_size": 32,
        "diffusion.block": 32,
    }
    for field, value in fields.items():
        put(config, field, value)
    split = leave_one_out(log)
    assert split.train.mapped == log.mapped
    users = user_sets(STRICT, split)
    test, validation = (
        DrawnCandidates(STRICT, split, 0, heldout, 20) for heldout in ("test", "valid")
    )
    common = {"protocol": STRICT, "candidates": test, "validation": validation, "mesh": mesh}
    found = []
    for task, scorers in (
        encoder_stage.build(
            config, "base", split, None,
            drawn=users.preferences, ranked=users.encoder, name="sasrec", **common,
        ),
        diffusion_stage.build(seeded(config, "diffusion"), split, users.diffusion, **common),
    ):  # fmt: skip
        state, values = task.run_epoch(task.initial(), 1, lambda _: False)
        scorer: Any = scorers["test"]
        ranks = scorer.sampled(state["params"]).ranks, scorer.full(state["params"]).ranks
        # On this mesh every device has all of a table's rows.
        own = jax.tree.map(lambda leaf: np.asarray(leaf.addressable_shards[0].data), state)
        found.append((own, values, ranks))
    return found


if __name__ == "__main__":
    take_part(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
