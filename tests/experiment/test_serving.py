"""What a real job leaves is enough to recommend from."""

import shutil
from pathlib import Path

import numpy as np

from pdrec_jax.data import sources
from pdrec_jax.data.catalogue import CATALOGUE, load_catalogue
from pdrec_jax.recommend.recommender import Recommender
from pdrec_jax.workdir import Workdir


def test_the_best_variant_recommends(strict) -> None:
    models = {m["key"]: m for m in strict.results["models"] if m["stage"] == "encoder"}
    recommender = Recommender.load(strict.path)
    figures = {key: model["validation"]["NDCG@10"] for key, model in models.items()}
    assert figures[recommender.trained.key] == max(figures.values())
    assert recommender.title.startswith("SIMULATED DATA | tiny | SASRec")
    for one in recommender.recommend_users([1, 2, 3], k=10):
        assert len(set(one.items)) == 10
        assert np.isfinite(one.scores).all()


def test_the_diffusion_model_recommends(strict) -> None:
    (one,) = Recommender.load(strict.path, "diffusion").recommend([[5, 9]], k=10)
    assert len(set(one.items) - {5, 9}) == 10


def test_the_catalogue_is_that_of_the_log(strict) -> None:
    log, _ = sources.load(Workdir.open(strict.path).config, None)
    catalogue = load_catalogue(strict.path)
    assert catalogue.item_ids.tolist() == log.item_ids.tolist()
    kept = log.select(log.lengths >= 3)
    assert catalogue.popularity.tolist() == np.bincount(kept.items, minlength=301).tolist()


def test_a_finished_run_without_a_catalogue_gets_it_when_it_is_called_again(
    strict, call, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(strict.path, tmp_path / "run"))
    whole = (run / CATALOGUE).read_bytes()
    (run / CATALOGUE).unlink()
    done = call(run)
    assert done.status == 0, done.err
    assert (run / CATALOGUE).read_bytes() == whole
    assert done.results == strict.results
