"""A run's directory, opened to look at: its data, its preferences, and its models' scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pdrec_jax import compilation, other_runs, phases
from pdrec_jax.checkpoints import Store
from pdrec_jax.data import sources
from pdrec_jax.data.batches import extend_train
from pdrec_jax.data.catalogue import catalogue_of
from pdrec_jax.data.log_of_run import log_files, require_same_log
from pdrec_jax.data.splits import Split
from pdrec_jax.diffusion import stage as diffusion_stage
from pdrec_jax.diffusion.inference import couple, score_all
from pdrec_jax.diffusion.preferences import Preferences
from pdrec_jax.diffusion.vectors import gather_batch, token_budget
from pdrec_jax.errors import UserError
from pdrec_jax.evaluation.protocol import protocol_of, user_sets
from pdrec_jax.given import Given, split_of
from pdrec_jax.overrides import validate
from pdrec_jax.recommend.histories import Histories
from pdrec_jax.recommend.models import Trained, load_encoder, trained_model, trained_models
from pdrec_jax.settings import seeded
from pdrec_jax.workdir import CONFIG, Workdir


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedRun:
    """A run of one seed, of which at least one model is trained.

    Attributes:
      place: its files.
      given: config, protocol, split and users.
      data: what the run says of its data, as in results.json.
      models: trained, in the order of the tables.
      preferences: of all users; None where none were computed.
      origin: the run that made the preferences, this one unless they are borrowed; None where
        that is gone.
    """

    place: Workdir
    given: Given
    data: dict[str, Any]
    models: tuple[Trained, ...]
    preferences: Preferences | None
    origin: Workdir | None


def open_run(path: Path, log: Sequence[Path] = ()) -> TrainedRun:
    """Opens a run to look at; nothing is written.

    Args:
      path: the workdir of a run of one seed, or the folder of one seed of several.
      log: where the run's logs are now, if not where they were.

    Raises:
      UserError: no run, nothing trained in it, its log is missing or has changed, or JAX has 64
        bits.
    """
    compilation.require_32_bits()
    place = Workdir.open(path)
    config = place.config
    try:
        validate(config)
        phases.require_encoders(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    models = _in_order(place)
    given, data = _load(place, log)
    origin: Workdir | None = place
    source = path
    if config.preferences_from:
        source = other_runs.of_seed(config.preferences_from, config.seed)
    if source != path:
        origin = Workdir.open(source) if (source / CONFIG).is_file() else None
    preferences = None
    if place.phases.require_sound("preferences") is not None:
        own = source == path
        preferences = (
            other_runs.read_preferences(given, path)
            if own
            else other_runs.read_borrowed(given, place)
        )
    return TrainedRun(place, given, data, models, preferences, origin)


def _load(place: Workdir, log: Sequence[Path]) -> tuple[Given, dict[str, Any]]:
    """Reads the log and splits it; candidates of the sampled ranking are not drawn again."""
    config = place.config
    events, data = sources.load(config, log_files(place, log))
    require_same_log(place, data)
    protocol = protocol_of(config)
    split = split_of(config, events, protocol)
    none = np.zeros((split.train.num_users, 0), np.int32)
    return Given(config, protocol, split, user_sets(protocol, split), none, none), data


def _in_order(place: Workdir) -> tuple[Trained, ...]:
    """The trained models as tables have them: what fills preferences first, then the variants."""
    config, found = place.config, trained_models(place)
    variants = [phases.encoder_key(config, variant) for variant in config.encoder.variants]
    first = [key for key in found if key not in variants]
    return tuple(found[key] for key in [*first, *variants] if key in found)


def maker_of(run: TrainedRun) -> tuple[Workdir, Trained] | None:
    """Finds the model that filled a run's preferences, and its run; None where it is gone."""
    if run.origin is None:
        return None
    model = trained_model(run.origin, run.origin.config.preferences_by)
    return None if model is None else (run.origin, model)


@dataclasses.dataclass(frozen=True, eq=False)
class OneUser:
    """The data of one user, in a split of its own.

    Attributes:
      index: of the user in the run.
      split: of this user alone, over the whole catalogue.
    """

    index: int
    split: Split


def find_user(run: TrainedRun, name: str) -> OneUser:
    """Finds a user by the external id; blanks around it are ignored.

    Raises:
      UserError: no such user in the run.
    """
    name = name.strip()
    train = run.given.split.train
    found = np.flatnonzero(train.user_ids.astype(str) == name)
    if not len(found):
        dropped = run.given.split.dropped_users
        raise UserError(
            f"--user: {run.place.path} has no user {name!r}; its {train.num_users:,} users are "
            f"named like {str(train.user_ids[0])!r}"
            + f", and {dropped:,} with fewer than 3 events were dropped"
            * (dropped > 0)
        )
    index = int(found[0])
    return OneUser(index, _split_of(run.given.split, index))


def _split_of(split: Split, index: int) -> Split:
    row, at = [index], slice(index, index + 1)
    valid_times, test_times = (
        None if times is None else times[at] for times in (split.valid_times, split.test_times)
    )
    return Split(
        train=split.train.select(row),
        mixed=None if split.mixed is None else split.mixed.select(row),
        valid_items=split.valid_items[at],
        valid_times=valid_times,
        test_items=split.test_items[at],
        test_times=test_times,
        dropped_users=0,
        dropped_popularity=split.dropped_popularity,
        history=None if split.history is None else split.history.select(row),
        learns_source=split.learns_source,
    )


def scores(
    run: TrainedRun, place: Workdir, model: Trained, user: OneUser
) -> tuple[np.ndarray, np.ndarray]:
    """Scores all items for one user with a model's best parameters.

    Args:
      run: whose data it is.
      place: of the run that trained the model, mostly the same.
      model: of that run.
      user: from ``find_user``.

    Returns:
      two arrays [>= I + 1] float32, column i for item i: after the training events, as validation
      and preferences have it; and with the validation event too, as the test has it.
    """
    if model.is_encoder:
        return _encoder_scores(run, place, model, user)
    return _diffusion_scores(run, place, model, user)


_diffusion_score = jax.jit(score_all, static_argnums=0)


def _diffusion_scores(
    run: TrainedRun, place: Workdir, which: Trained, user: OneUser
) -> tuple[np.ndarray, np.ndarray]:
    # Not by vectors of items as ``recommend`` does it: that needs a model whose scores factor.
    section = seeded(place.config, "diffusion")
    if which.key != "diffusion":
        section.weighting = which.key.removeprefix("diffusion-")
    model, initialise = diffusion_stage.make_model(section, run.given.split)
    params, _ = Store(place.path / which.key).restore("best", jax.eval_shape(initialise))
    coupled, key = couple(model, params), jax.random.key(section.seed)
    number = np.array([user.index], np.int32)  # a draw depends on the user

    def after(heldin: bool) -> np.ndarray:
        vectors = diffusion_stage.vectors_of(section, user.split, model.num_slots, heldin=heldin)
        row = np.zeros(1, np.int32)
        batch = gather_batch(vectors, row, token_budget(vectors, row[None, :]))
        return np.asarray(_diffusion_score(model, params, coupled, batch, key, number))[0]

    return after(False), after(True)


def _encoder_scores(
    run: TrainedRun, place: Workdir, which: Trained, user: OneUser
) -> tuple[np.ndarray, np.ndarray]:
    # Plugins end with training: a variant scores as the bare encoder does.
    model = load_encoder(place, which, catalogue_of(run.given.split, None), 1)
    items = np.asarray(model.item_vectors())

    def after(offsets: np.ndarray, history: np.ndarray) -> np.ndarray:
        one = Histories(user.split.train.user_ids, offsets, history, None)
        return items @ model.user_vectors(one)[0]

    train = user.split.train
    return after(train.offsets, train.items), after(*extend_train(user.split)[:2])
