"""Directories of runs that are as a job leaves them, but for the training: parameters are drawn."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from pdrec_jax import phases
from pdrec_jax.checkpoints import Store
from pdrec_jax.data.batches import pack
from pdrec_jax.data.catalogue import catalogue_of, save_catalogue
from pdrec_jax.data.interactions import Interactions
from pdrec_jax.diffusion import stage as diffusion_stage
from pdrec_jax.diffusion.inference import score_all_dense
from pdrec_jax.diffusion.vectors import build_vectors, gather_batch
from pdrec_jax.encoders import stage as encoder_stage
from pdrec_jax.encoders.model import Batch, final_states, score_all
from pdrec_jax.experiment import users_of
from pdrec_jax.given import Given, prepare
from pdrec_jax.settings import default_config, put, seeded
from pdrec_jax.workdir import Workdir

FIELDS = {
    "name": "tiny", "data.source": "simulated", "evaluation.negatives": 20,
    "simulation.num_users": 80, "simulation.num_items": 300, "simulation.mean_length": 8.0,
    "diffusion.hidden": (16,), "diffusion.steps": 3, "diffusion.embedding_size": 4,
    "encoder.width": 8, "encoder.blocks": 1, "encoder.max_length": 16, "encoder.temperature": 4.0,
    "dpa.coarse": 10, "dpa.fine": 2, "nns.kept": 16,
}  # fmt: skip


def record(place: Workdir, key: str, name: str, validation: float | None, test: float) -> None:
    model = {"name": name, "key": key, "sampled": {"NDCG@10": test}, "validation": None}
    if validation is not None:
        model["validation"] = {"NDCG@10": validation}
    place.phases.finish(key, {"model": model})


@pytest.fixture(autouse=True)
def hurried() -> Iterator[None]:
    """Compiles with little care: what is computed is tiny, and compiled for one test."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Path]:
    """`make_run(path, files=None, **fields)` makes the directory of a run, of which it returns the
    path: a diffusion model, the base encoder and one with all plugins, which validates best."""

    def make_run(path: Path, files: list[Path] | None = None, **fields: Any) -> Path:
        config = configured(fields)
        given, data = prepare(config, files)
        place = Workdir(path, config, data["source"])
        place.begin(data)
        save_catalogue(path, catalogue_of(given.split, files))
        _, initialise = diffusion_stage.make_model(seeded(config, "diffusion"), given.split)
        Store(path / "diffusion").save("best", 1, drawn(initialise, 0), {})
        record(place, "diffusion", "TI-DiffRec", 0.4, 0.4)
        for number, (variant, figure) in enumerate((("base", 0.1), ("hbr+nns+dpa", 0.2))):
            plugins = encoder_stage.parse_variant(variant)
            _, initialise = encoder_stage.make_model(config, plugins, given.split.train.num_items)
            key = phases.encoder_key(config, variant)
            Store(path / "encoders" / key).save("best", 1, drawn(initialise, number), {})
            title = encoder_stage.title_of(config.encoder, variant)
            record(place, key, title, figure, 0.3 - figure)
        return path

    return make_run


def drawn(initialise: Callable[[], Any], seed: int) -> Any:
    """Parameters of the right shapes; compiling those that a run begins with would take longer."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(leaf.dtype), jax.eval_shape(initialise)
    )


def configured(fields: dict[str, Any]) -> ConfigDict:
    config = default_config()
    for field, value in {**FIELDS, **fields}.items():
        put(config, field, value)
    return config


@pytest.fixture(scope="session")
def scores_of() -> Callable[[Path, str, Interactions], np.ndarray]:
    """`scores_of(run, key, log)`: a model's scores of all items for all users, [U, I + 1]."""

    def scores_of(run: Path, key: str, log: Interactions) -> np.ndarray:
        return diffusion_scores(run, log) if key == "diffusion" else encoder_scores(run, key, log)

    return scores_of


def encoder_scores(run: Path, key: str, log: Interactions) -> np.ndarray:
    """Scores of all items for all users of a log, [U, I + 1], by the encoder's own functions."""
    config = Workdir.open(run).config
    model, initialise = encoder_stage.make_model(config, (), log.num_items)
    store = Store(run / "encoders" / key)
    params, _ = store.restore("best", jax.eval_shape(initialise))
    params = jax.device_put(params)
    users = np.arange(log.num_users)
    cells = pack(log.offsets, users, model.max_length, layout=model.layout)
    batch = Batch(users.astype(np.int32), cells.event, cells.segment, cells.last)
    states = final_states(params, model, log.offsets.astype(np.int32), log.items, batch)
    return np.array(score_all(params, model, states))


def diffusion_scores(run: Path, log: Interactions) -> np.ndarray:
    """The same of the diffusion model, by the dense loop."""
    section = seeded(Workdir.open(run).config, "diffusion")
    model, initialise = diffusion_stage.model_of_slots(section, log.num_items + 1)
    params, _ = Store(run / "diffusion").restore("best", jax.eval_shape(initialise))
    weights = {name: section[name] for name in ("w_min", "w_max", "ties")}
    vectors = build_vectors(log.offsets, log.items, log.times, log.num_items + 1, **weights)
    users = np.arange(log.num_users)
    batch = gather_batch(vectors, users, len(vectors.slots))
    return np.array(score_all_dense(model, params, batch, jax.random.key(0), users))


@pytest.fixture(scope="session")
def finish() -> Callable[..., None]:
    """`finish(path, given, ranks_of)` leaves the results of a run that `make_run` made, and the
    ranks [U'] that `ranks_of(key)` gives, sampled and full."""

    def finish(path: Path, given: Given, ranks_of: Callable[[str], Any]) -> None:
        place, users = Workdir.open(path), given.users.encoder
        arrays, models = users_of(given), []
        for key in ("sasrec", "sasrec+hbr+nns+dpa", "diffusion"):
            for kind, ranks in zip(("sampled", "full"), ranks_of(key), strict=True):
                arrays[f"{key}/{kind}_rank"] = np.full(len(users), np.nan, np.float32)
                arrays[f"{key}/{kind}_rank"][users] = ranks
            stage = "diffusion" if key == "diffusion" else "encoder"
            models.append({"key": key, "name": key, "stage": stage, "best_epoch": 1, "epochs": 2})
            models[-1] |= {"users": int(users.sum()), "sampled": {"NDCG@10": 0.5}}
        place.save_per_user(arrays)
        place.finish({"models": models, "stage": "all"})

    return finish


@pytest.fixture(scope="session")
def run(make_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a simulated log."""
    return make_run(tmp_path_factory.mktemp("recommend") / "run")


@pytest.fixture(scope="session")
def texts(make_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a file log.csv beside it: ids of text, users with their items in order of time.

    User `u7` took `item 7`, `item 8`, .. `item 11`, and everybody `the hit` first.
    """
    folder = tmp_path_factory.mktemp("texts")
    rows = ["user_id,item_id,timestamp"]
    for user in range(40):
        rows.append(f"u{user},the hit,{user}")
        rows += [f"u{user},item {user + n},{100 * n + user}" for n in range(1, 5)]
    (folder / "log.csv").write_text("\n".join(rows) + "\n")
    fields = {"data.source": "real", "data.target": str(folder / "log.csv"), "dpa.coarse": 5}
    return make_run(folder / "run", [folder / "log.csv"], **fields)
