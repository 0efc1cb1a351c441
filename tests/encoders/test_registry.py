"""An encoder of the user's own: registered by name, trained and ranked like any other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pdrec_jax.encoders import registry, stage
from pdrec_jax.encoders.layers import visible_cells, xavier_normal
from pdrec_jax.errors import UserError
from pdrec_jax.evaluation.protocol import STRICT


class RunningMean(nnx.Module):
    """The mean of the embeddings so far, through one matrix."""

    def __init__(self, config, num_items, *, rngs):
        shape = (num_items + 1, config.width)
        self.item_embedding = nnx.Param(xavier_normal(rngs.params(), shape, shape))
        self.kernel = nnx.Param(jnp.eye(config.width))

    def __call__(self, vectors, rows, key=None):
        sees = visible_cells(rows.segment, rows.items > 0).astype(vectors.dtype)
        count = jnp.maximum(jnp.sum(sees, axis=-1, keepdims=True), 1)
        return jnp.dot(jnp.einsum("rqk,rkd->rqd", sees / count, vectors), self.kernel[...])


def test_sasrec_is_there():
    title, _ = registry.find("sasrec")
    assert title == "SASRec"


def test_an_unknown_name(own_encoders):
    registry.register("mean", "Mean", RunningMean)
    message = r"^encoder\.name: expected one of \['mean', .*'sasrec'\], got 'bert'$"
    with pytest.raises(UserError, match=message):
        registry.find("bert")


@pytest.mark.loose_jax("dtypes")  # optax's Adam
def test_it_trains_with_all_plugins(own_encoders, config, world):
    registry.register("mean", "Mean", RunningMean)
    assert registry.find("mean") == ("Mean", RunningMean)
    settings = config(
        encoder__name="mean",
        encoder__batch_size=16,
        encoder__learning_rate=0.02,
        dpa__coarse=8,
        dpa__fine=3,
    )
    everybody = np.ones(world.split.train.num_users, bool)
    task, scorers = stage.build(
        settings,
        "nns+hbr+dpa",
        world.split,
        world.preferences,
        drawn=world.split.train.lengths >= 2,
        ranked=everybody,
        protocol=STRICT,
        candidates=world.candidates,
        validation=world.validation,
        name="mean",
    )
    assert stage.title_of(settings.encoder, "nns+hbr+dpa") == "Mean+HBR+NNS+DPA"
    state, losses = task.initial(), []
    assert sorted(state["params"]) == ["item_embedding", "kernel"]
    for epoch in range(1, 9):
        state, values = task.run_epoch(state, epoch, lambda steps: None)
        losses.append(values["loss"])
    # Draws differ from epoch to epoch, so the loss wobbles on its way down.
    assert np.mean(losses[-2:]) < 0.9 * losses[0]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    assert np.abs(state["params"]["kernel"] - np.eye(8)).max() > 0.01
    ranks = scorers["test"].sampled(state["params"])
    assert len(ranks.ranks) == everybody.size
    validation = scorers["validation"].sampled(state["params"]).metrics()
    assert task.evaluate(state["params"]) == validation["NDCG@10"] > 0
