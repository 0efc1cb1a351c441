"""A made-up run: every part of the results dict, the metric lines and the per-user ranks."""

from typing import Any

import numpy as np
import pytest

CUTOFFS = (1, 5, 10, 20, 50)
NAMES = {
    "diffusion": "TI-DiffRec",
    "sasrec": "SASRec",
    "sasrec_hbr_nns_dpa": "SASRec+HBR+NNS+DPA",
}


def make_metrics(ranks: np.ndarray, candidates: int) -> dict[str, float]:
    """The metrics that go with ranks [U'], by their definition."""
    ranks = ranks[~np.isnan(ranks)].astype(np.float64)
    gains = 1 / np.log2(ranks + 2)
    metrics = {f"NDCG@{k}": float(np.mean(gains * (ranks < k))) for k in CUTOFFS}
    metrics |= {f"HR@{k}": float(np.mean(ranks < k)) for k in CUTOFFS}
    metrics["AUC"] = float(np.mean(1 - ranks / (candidates - 1)))
    metrics["MRR"] = float(np.mean(1 / (ranks + 1)))
    return metrics


def make_run(
    names: dict[str, str], users: int = 600, source: str = "real"
) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, np.ndarray]]:
    """A results dict, metric lines and per-user ranks for models of these keys and names."""
    random = np.random.default_rng(7)
    items = 37868
    lengths = np.minimum(3 + random.lognormal(1.6, 0.9, users).astype(np.int64), 480)
    per_user = {"users": np.arange(1, users + 1), "history_length": lengths}
    models: list[dict[str, Any]] = []
    lines: list[dict[str, Any]] = []
    for index, (key, name) in enumerate(names.items()):
        skill = 2.0 + 0.25 * min(index, 3) + 0.12 * np.log(lengths)
        share = random.random(users) ** skill
        sampled = np.floor(100 * share).astype(np.float32)
        full = np.floor(items * share).astype(np.float32)
        if key == "diffusion":
            sampled[: users // 30] = full[: users // 30] = np.nan
        per_user |= {f"{key}/sampled_rank": sampled, f"{key}/full_rank": full}
        epochs, best = (60, 51) if key == "diffusion" else (24 + 3 * index, 14 + 3 * index)
        scale, floor = (0.9, 0.04) if key == "diffusion" else (0.65, 0.62)
        for epoch in range(1, epochs + 1):
            noise = random.normal(0, 0.004)
            line = {
                "stage": key, "epoch": epoch, "seconds": 3.2, "learning_rate": 0.001,
                "loss": floor + 0.02 * index + scale * 0.86**epoch + abs(noise),
            }  # fmt: skip
            if key != "diffusion" or epoch % 3 == 0:
                peak = make_metrics(sampled, 100)["NDCG@10"]
                line["ndcg"] = 1.05 * peak * (1 - 0.7 * 0.85**epoch) - 3e-4 * max(0, epoch - best)
                line["ndcg"] += 0.004 if epoch == best else noise / 4
            lines.append(line)
        sampled_metrics, full_metrics = make_metrics(sampled, 100), make_metrics(full, items)
        models.append(
            {
                "name": name, "key": key, "stage": "diffusion" if key == "diffusion" else "encoder",
                "best_epoch": best, "epochs": epochs, "users": int((~np.isnan(sampled)).sum()),
                "sampled": sampled_metrics, "full": full_metrics,
                "validation": {metric: 1.05 * value for metric, value in sampled_metrics.items()},
                "paper": {"NDCG@10": 0.1823 + 0.0197 * index} if index < 3 else {},
            }
        )  # fmt: skip
    weights = np.clip(random.gamma(1.6, 0.6, 5000) - 0.15, 0, 3)
    counts, edges = np.histogram(weights, 30, (0, 3))
    results = {
        "name": "toy",
        "data": {
            "source": source, "users": 7996, "items": 37868, "events": 114487, "dropped_users": 12,
            "files": [{"name": "amazon_toy.inter.gz", "sha256": "1fb495cd346d1043" + 48 * "a"}],
        },
        "protocol": "strict",
        "seed": 0,
        "models": models,
        "plugins": {
            "hbr": {
                "edges": edges.tolist(), "counts": counts.tolist(),
                "low_share": float(np.mean(weights < 0.1)),
                "clipped_share": float(np.mean(weights == 3)),
            },
            "dpa": {
                "hit_rate": 0.0312, "uniform_hit_rate": 0.00262, "popularity_percentile": 0.934,
            },
            "nns": {
                "false_negative_rate": 0.00061, "uniform_false_negative_rate": 0.0026,
                "popularity_percentile": 0.31,
            },
        },
        "times": {"data": 3.4, "diffusion": 612.0, "sasrec": 402.0, "total": 1671.2},
        "peak_memory_bytes": 3_456_789_012,
        "versions": {"python": "3.11.9", "jax": "0.10.2", "flax": "0.12.0"},
        "device": "cpu x1",
    }  # fmt: skip
    if source == "simulated":
        results["data"] |= {"files": [], "note": "no real log was found; " * 6 + "so one was made"}
    return results, lines, per_user


@pytest.fixture
def run() -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, np.ndarray]]:
    """The three models of the main job on a real log."""
    return make_run(NAMES)


@pytest.fixture
def simulated_run() -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, np.ndarray]]:
    """The same on a simulated log."""
    return make_run(NAMES, source="simulated")


@pytest.fixture
def wide_run() -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, np.ndarray]]:
    """Eight models, some with names longer than their column."""
    names = {"diffusion": "TI-DiffRec", "sasrec": "SASRec", "gru4rec": "GRU4Rec"}
    names |= {f"model{index}": f"CL4SRec+HBR+NNS+DPA variant {index} of 5" for index in range(1, 6)}
    return make_run(names)
