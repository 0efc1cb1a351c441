"""A run's directory, opened to look at: its config, its data and its trained models."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from pdrec_jax import phases
from pdrec_jax.checkpoints import Store
from pdrec_jax.data import sources
from pdrec_jax.data.batches import enough_rows, extend_train, pack
from pdrec_jax.data.splits import Split
from pdrec_jax.diffusion import stage as diffusion_stage
from pdrec_jax.diffusion.inference import couple, score_all
from pdrec_jax.diffusion.preferences import Preferences
from pdrec_jax.diffusion.vectors import gather_batch, token_budget
from pdrec_jax.encoders import stage as encoder_stage
from pdrec_jax.encoders.model import Batch, EncoderModel, Params, final_states
from pdrec_jax.encoders.model import score_all as score_all_items
from pdrec_jax.errors import UserError
from pdrec_jax.phases import Given
from pdrec_jax.settings import FIELDS, default_config, put, seeded, validate
from pdrec_jax.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """One of the models that a run has trained.

    Attributes:
      key: of its phase, ``diffusion`` or ``sasrec+hbr+nns+dpa``.
      name: as tables show it.
      diffusion: whether it is a diffusion model.
    """

    key: str
    name: str
    diffusion: bool


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedRun:
    """A run of one seed, of which at least one model is trained.

    Attributes:
      path: its directory.
      given: config, protocol, split and users.
      data: what the run says of its data, as in results.json.
      place: its files.
      models: trained, in the order of the tables.
      preferences: of all users; None where none were computed.
      origin: the directory of the run that made the preferences, this one unless they are borrowed.
    """

    path: Path
    given: Given
    data: dict[str, Any]
    place: Workdir
    models: tuple[TrainedModel, ...]
    preferences: Preferences | None
    origin: Path


def maker_of(run: TrainedRun) -> tuple[TrainedRun, TrainedModel] | None:
    """Finds the model that filled a run's preferences.

    Returns:
      the model, and the run that it is scored in; None where there is none (any more).
    """
    if run.origin != run.path:
        if not (run.origin / "config.json").is_file():
            return None
        config = _saved_config(run.origin)
        place = Workdir(run.origin, config, str(_read(run.origin, "data.json").get("source")))
        given = dataclasses.replace(run.given, config=config)
        models = _trained(config, place)
        run = dataclasses.replace(run, path=run.origin, given=given, place=place, models=models)
    key = {"diffusion": "diffusion", "sasrec": "sasrec"}[run.given.config.preferences_by]
    found = next((model for model in run.models if model.key == key), None)
    return None if found is None else (run, found)


def open_run(path: Path) -> TrainedRun:
    """Opens a run to look at; nothing is written.

    Args:
      path: the workdir of a run of one seed, or the folder of one seed of several.

    Raises:
      UserError: no run, nothing trained in it, or its log is missing or has changed.
    """
    config, saved = _saved_config(path), _read(path, "data.json")
    source = saved.get("source")
    if source not in ("real", "simulated"):
        raise UserError(f"{path / 'data.json'}: the source of the data is expected")
    if config.seeds > 1:
        raise UserError(
            f"{path}: holds several seeds; name the folder of one, such as "
            f"{path / f'seed-{config.seed}'}"
        )
    phases.require_encoders(config)
    place = Workdir(path, config, source)
    models = _trained(config, place)
    if not models:
        raise UserError(f"{path}: no model is trained yet; run the same pdrec_jax.main to its end")
    files = None
    if source == "real":
        found = config.copy_and_resolve_references()
        found.data.source = "real"
        files = sources.find_files(found)
    given, data = phases.prepare(config, files)
    if _checksums(saved) != _checksums(data):
        names = ", ".join(str(file) for file in files or ())
        raise UserError(f"{names}: not the log that {path} was trained on, by its checksum")
    origin = Path(config.preferences_from) if config.preferences_from else path
    own_folder = origin / path.name
    if config.preferences_from and own_folder.is_dir():
        origin = own_folder
    preferences = None
    if place.phase("preferences") is not None:
        preferences = phases.read_preferences(given, origin)
    return TrainedRun(path, given, data, place, models, preferences, origin)


def _saved_config(path: Path) -> ConfigDict:
    """Reads the resolved config of a run; a field that it lacks has its default."""
    saved = _read(path, "config.json")
    config = default_config()

    def fill(values: dict[str, Any], prefix: str) -> None:
        for name, value in values.items():
            field = f"{prefix}{name}"
            if isinstance(value, dict):
                fill(value, f"{field}.")
            else:
                kind = type(FIELDS[field].default) if field in FIELDS else None
                put(config, field, tuple(value) if kind is tuple else value)

    try:
        fill(saved, "")
        validate(config)
    except (UserError, TypeError) as error:
        raise UserError(f"{path / 'config.json'}: {error}") from error
    return config


def _checksums(data: dict[str, Any]) -> list[Any]:
    return [file.get("sha256") for file in data.get("files", [])]


def _read(path: Path, name: str) -> dict[str, Any]:
    file = path / name
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"--workdir: {path}: the directory of a run is expected, {name} cannot be read "
            f"({error.strerror})"
        ) from error
    except ValueError as error:
        raise UserError(f"{file}: JSON is expected ({error})") from error
    if not isinstance(found, dict):
        raise UserError(f"{file}: a JSON object is expected")
    return found


def _trained(config: ConfigDict, place: Workdir) -> tuple[TrainedModel, ...]:
    makers = ["sasrec"] if config.preferences_by == "sasrec" else ["diffusion"]
    if config.preferences_by == "diffusion" and config.diffusion.both:
        makers.append(f"diffusion-{phases.other_weighting(config)}")
    variants = [phases.encoder_key(config, variant) for variant in config.encoder.variants]
    found = []
    for key in dict.fromkeys([*makers, *variants]):
        record = place.phase(key)
        if record is not None:
            found.append(TrainedModel(key, record["model"]["name"], key.startswith("diffusion")))
    return tuple(found)


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
    """Finds a user by the external id.

    Raises:
      UserError: no such user in the run.
    """
    train = run.given.split.train
    ids = train.user_ids.astype(str) if train.user_ids.dtype.kind != "U" else train.user_ids
    found = np.flatnonzero(ids == name)
    if not len(found):
        dropped = run.given.split.dropped_users
        raise UserError(
            f"--user: {run.path} has no user {name!r}; its {train.num_users:,} users are named "
            f"like {str(train.user_ids[0])!r}"
            + f", and {dropped:,} with fewer than 3 events were dropped"
            * (dropped > 0)
        )
    index = int(found[0])
    return OneUser(index, _split_of(run.given.split, index))


def _split_of(split: Split, index: int) -> Split:
    row, at = [index], slice(index, index + 1)

    def one(times: np.ndarray | None) -> np.ndarray | None:
        return None if times is None else times[at]

    return Split(
        train=split.train.select(row),
        mixed=None if split.mixed is None else split.mixed.select(row),
        valid_items=split.valid_items[at],
        valid_times=one(split.valid_times),
        test_items=split.test_items[at],
        test_times=one(split.test_times),
        dropped_users=0,
        history=None if split.history is None else split.history.select(row),
    )


def scores(run: TrainedRun, model: TrainedModel, user: OneUser) -> tuple[np.ndarray, np.ndarray]:
    """Scores all items for one user with a model's best parameters.

    Args:
      run: opened.
      model: one of its models.
      user: from ``find_user``.

    Returns:
      two arrays [>= I + 1] float32, column i for item i: after the training events, as validation
      and preferences have it; and with the validation event too, as the test has it.
    """
    if model.diffusion:
        return _diffusion_scores(run, model, user)
    return _encoder_scores(run, model, user)


_diffusion_score = jax.jit(score_all, static_argnums=0)


def _diffusion_scores(
    run: TrainedRun, which: TrainedModel, user: OneUser
) -> tuple[np.ndarray, np.ndarray]:
    section = seeded(run.given.config, "diffusion")
    if which.key != "diffusion":
        section.weighting = phases.other_weighting(run.given.config)
    model, initialise = diffusion_stage.make_model(section, run.given.split)
    params, _ = Store(run.path / which.key).restore("best", jax.eval_shape(initialise))
    coupled, key = couple(model, params), jax.random.key(section.seed)
    number = np.array([user.index], np.int32)  # a draw depends on the user

    def after(heldin: bool) -> np.ndarray:
        vectors = diffusion_stage.vectors_of(section, user.split, model.num_slots, heldin=heldin)
        row = np.zeros(1, np.int32)
        batch = gather_batch(vectors, row, token_budget(vectors, row[None, :]))
        return np.asarray(_diffusion_score(model, params, coupled, batch, key, number))[0]

    return after(False), after(True)


@functools.partial(jax.jit, static_argnums=4)
def _encoder_score(
    params: Params, offsets: Array, items: Array, batch: Batch, model: EncoderModel
) -> Array:
    return score_all_items(params, model, final_states(params, model, offsets, items, batch))


def _encoder_scores(
    run: TrainedRun, which: TrainedModel, user: OneUser
) -> tuple[np.ndarray, np.ndarray]:
    config = run.given.config.copy_and_resolve_references()
    if config.preferences_by == "sasrec" and which.key == "sasrec":
        config.encoder.name = "sasrec"
    # Plugins end with training: a variant scores as the bare encoder does.
    model, initialise = encoder_stage.make_model(config, (), run.given.split.train.num_items)
    store = Store(run.path / "encoders" / which.key)
    params, _ = store.restore("best", jax.eval_shape(initialise))

    def after(items: np.ndarray) -> np.ndarray:
        # One shape for all histories; earlier events are beyond the encoder's reach.
        recent, row = items[-model.max_length :], np.zeros(1, np.int32)
        offsets = np.array([0, len(recent)])
        padded = np.zeros(model.max_length, np.int32)
        padded[: len(recent)] = recent
        rows = enough_rows(offsets, [row], model.max_length, model.layout)
        cells = pack(offsets, row, model.max_length, rows, model.layout)
        batch = Batch(row, cells.event, cells.segment, cells.last)
        given = offsets.astype(np.int32), padded
        return np.asarray(_encoder_score(params, *given, batch, model))[0]

    return after(user.split.train.items), after(extend_train(user.split)[1])
