"""The paper's published figures, as far as they were verified; what was not is absent.

PDRec (Ma et al., AAAI 2024), test metrics on 1 + 99 candidates.
"""

TOLERANCE = 0.004  # the paper's own: a difference beyond it is flagged

# (dataset, name of the model) -> metric -> value, of Table 1. By name, for what a run keeps as
# `diffusion` is TI-DiffRec or T-DiffRec.
_TABLE_1: dict[tuple[str, str], dict[str, float]] = {
    ("toy", "TI-DiffRec"): {"NDCG@10": 0.1823},
    ("toy", "SASRec"): {"NDCG@10": 0.2020},
    ("toy", "SASRec+HBR+NNS+DPA"): {"NDCG@10": 0.2286},
}


def published(dataset: str, name: str) -> dict[str, float]:
    """Returns the paper's figures of a model, empty where none was verified.

    Args:
      dataset: name of the config.
      name: of the model as tables show it, ``SASRec+HBR+NNS+DPA``.
    """
    return dict(_TABLE_1.get((dataset, name), {}))
