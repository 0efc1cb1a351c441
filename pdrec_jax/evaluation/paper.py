"""The paper's published figures, as far as they were verified; what was not is absent.

PDRec (Ma et al., AAAI 2024), test metrics on 1 + 99 candidates.
"""

TOLERANCE = 0.004  # the paper's own: a difference beyond it is flagged

# (dataset, key of the model) -> metric -> value, of Table 1.
_TABLE_1: dict[tuple[str, str], dict[str, float]] = {
    ("toy", "diffusion"): {"NDCG@10": 0.1823},
    ("toy", "sasrec"): {"NDCG@10": 0.2020},
    ("toy", "sasrec+hbr+nns+dpa"): {"NDCG@10": 0.2286},
}


def published(dataset: str, key: str) -> dict[str, float]:
    """Returns the paper's figures of a model, empty where none was verified."""
    return dict(_TABLE_1.get((dataset, key), {}))
