"""Finished runs of made-up ranks, for the commands that read what runs have left."""

from pathlib import Path

import numpy as np
import pytest

from pdrec_jax.evaluation.metrics import user_values
from pdrec_jax.settings import default_config, put
from pdrec_jax.workdir import Workdir, seed_folder


@pytest.fixture
def make(tmp_path: Path):
    """Makes `name`, a finished run of some seeds; returns the ranks of its models, [S, U]."""

    def make(name, keys, seeds=1, *, first=0, users=40, log="a", done=True, text=False, **fields):
        config = default_config()
        for field, value in {"seed": first, "seeds": seeds, **fields}.items():
            put(config, field.replace("__", "."), value)
        data = {"source": "real", "files": [{"name": "log", "sha256": log}]}
        if seeds > 1:
            Workdir(tmp_path / name, config, "real").begin(data)
        ranks = {key: [] for key in keys}
        for seed in range(first, first + seeds):
            own = config.copy_and_resolve_references()
            own.seed, own.seeds = seed, 1
            path = tmp_path / name / seed_folder(seed) if seeds > 1 else tmp_path / name
            place = Workdir(path, own, "real")
            place.begin(data)
            rng = np.random.default_rng([seed, len(name), *name.encode()])
            ids = np.array([f"u{n}" for n in range(users)]) if text else np.arange(users)
            arrays = {"users": ids, "history_length": np.full(users, 7)}
            models = []
            for key in keys:
                drawn = rng.integers(0, 100, users).astype(np.float32)
                drawn[:3] = np.nan
                arrays |= {f"{key}/{block}_rank": drawn for block in ("sampled", "full")}
                ranks[key].append(drawn)
                figures = {"NDCG@10": float(np.nanmean(user_values("NDCG@10", drawn)))}
                models.append(
                    {"key": key, "name": key.upper(), "stage": "encoder", "users": users - 3,
                     "sampled": figures, "best_epoch": 5, "epochs": 9}
                )  # fmt: skip
            place.save_per_user(arrays)
            if done:
                place.finish({"models": models})
        return {key: np.stack(found) for key, found in ranks.items()}

    return make
