"""The paper's published figures, as far as they were verified; what was not is absent.

PDRec (Ma et al., AAAI 2024), test metrics on 1 + 99 candidates.
"""

from pathlib import Path

from ml_collections import ConfigDict

_NEGATIVES = 99
_LOGS = {"toy": "amazon_toy"}  # by the name of the config
_DIFFUSION = ("T-DiffRec", "TI-DiffRec")
TOLERANCE = 0.004  # the paper's own: a difference beyond it is flagged

# (dataset, name of the model) -> metric -> value, of Table 1. By name, for what a run keeps as
# `diffusion` is TI-DiffRec or T-DiffRec.
_TABLE_1: dict[tuple[str, str], dict[str, float]] = {
    ("toy", "TI-DiffRec"): {"NDCG@10": 0.1823},
    ("toy", "SASRec"): {"NDCG@10": 0.2020},
    ("toy", "SASRec+HBR+NNS+DPA"): {"NDCG@10": 0.2286},
}


def published(config: ConfigDict, name: str) -> dict[str, float]:
    """Returns the paper's figures of a model, empty where none was verified or can be compared.

    Args:
      config: of the run, whose log, task, candidates and models must be the paper's.
      name: of the model as tables show it, ``SASRec+HBR+NNS+DPA``.
    """
    log = Path(config.data.target).name.partition(".")[0]
    alike = config.evaluation.negatives == _NEGATIVES and not config.data.mixed
    alike = alike and not config.data.path  # a log of one's own, whatever its name
    if "+" in name:  # the plugins heed TI-DiffRec in the paper
        by_time = config.preferences_by == "diffusion" and config.diffusion.weighting == "time"
        alike = alike and by_time
    alike = alike and (config.encoder.history_weight == 0 or name in _DIFFUSION)
    if not alike or log != _LOGS.get(config.name):
        return {}
    return dict(_TABLE_1.get((config.name, name), {}))
