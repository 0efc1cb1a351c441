"""Which figures of the paper stand beside a model: those of the same one alone."""

from typing import Any

import pytest

from pdrec_jax.evaluation.paper import published
from pdrec_jax.settings import default_config, put

ALL = "SASRec+HBR+NNS+DPA"


def config(**fields: Any) -> Any:
    made = default_config()
    made.name, made.data.target, made.evaluation.negatives = "toy", "logs/amazon_toy.inter.gz", 99
    for path, value in fields.items():
        put(made, path.replace("__", "."), value)
    return made


def test_the_same_model_on_the_same_log() -> None:
    for name, figure in (("TI-DiffRec", 0.1823), ("SASRec", 0.2020), (ALL, 0.2286)):
        assert published(config(), name) == {"NDCG@10": figure}
    assert published(config(), "GRU4Rec") == {}


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"evaluation__negatives": 100}, ()),
        ({"data__mixed": True}, ()),
        ({"data__path": "data/toy"}, ()),
        ({"data__target": "logs/amazon_game.inter.gz"}, ()),
        ({"name": "game"}, ()),
        # Plugins that heed other preferences; without them it is the same SASRec.
        ({"preferences_by": "sasrec"}, ("SASRec", "TI-DiffRec")),
        ({"diffusion__weighting": "position"}, ("SASRec", "TI-DiffRec")),
        # Another base.
        ({"encoder__history_weight": 0.05}, ("TI-DiffRec",)),
    ],
)
def test_another_one_has_none(fields: dict[str, Any], kept: tuple[str, ...]) -> None:
    made = config(**fields)
    found = {name for name in ("TI-DiffRec", "SASRec", ALL) if published(made, name)}
    assert found == {*kept}
