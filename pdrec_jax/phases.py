"""The phases of a run, each on its own: train and rank a model, or compute preferences."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from pdrec_jax import processes
from pdrec_jax.checkpoints import NoCheckpoint, Store
from pdrec_jax.diffusion import stage as diffusion_stage
from pdrec_jax.diffusion.preferences import Preferences, identity, save_preferences
from pdrec_jax.diffusion.task import DiffusionTask
from pdrec_jax.encoders import stage as encoder_stage
from pdrec_jax.encoders.inference import infer_preferences
from pdrec_jax.encoders.task import EncoderTask
from pdrec_jax.errors import UserError, warn
from pdrec_jax.evaluation.paper import published
from pdrec_jax.evaluation.ranking import Scorer
from pdrec_jax.given import Given, pool_rules
from pdrec_jax.metric_log import MetricLog
from pdrec_jax.other_runs import (
    IDENTITY,
    diffusion_models,
    origin,
    other_weighting,
    read_preferences,
    source_of_model,
)
from pdrec_jax.settings import seeded
from pdrec_jax.sharding import abstract
from pdrec_jax.training import Course, Fitted, LoopSettings, fit
from pdrec_jax.workdir import Workdir

_FEW_ITEMS = 8  # enough to see whether an encoder is one


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a phase leaves: a JSON record, and arrays [U] by name."""

    record: dict[str, Any]
    arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


def diffusion_phase(given: Given, workdir: Path, log: MetricLog) -> Outcome:
    """Trains and evaluates the diffusion model."""
    return _diffusion(given, "diffusion", given.config.diffusion.weighting, workdir, log)


def other_diffusion_phase(given: Given, workdir: Path, log: MetricLog) -> Outcome:
    """Trains and evaluates the other of T- and TI-DiffRec, which no encoder then hears of."""
    weighting = other_weighting(given.config)
    return _diffusion(given, f"diffusion-{weighting}", weighting, workdir, log)


def _diffusion(given: Given, key: str, weighting: str, workdir: Path, log: MetricLog) -> Outcome:
    section = seeded(given.config, "diffusion")
    section.weighting = weighting
    task, scorers = diffusion_stage.build(
        section,
        given.split,
        given.users.diffusion,
        protocol=given.protocol,
        candidates=given.candidates,
        validation=given.validation,
        mesh=given.mesh,
    )
    task = dataclasses.replace(task, name=key)
    settings = diffusion_stage.loop_settings(
        section, given.config.save_seconds, save_behind=given.save_behind
    )
    store = Store(workdir / key)
    if given.config.diffusion_from and _lacks_model(store):
        _take_model(given, key, task, store)
    fitted = fit(task, settings, store, log)
    by_time = weighting == "time" and given.split.train.times is not None
    name = "TI-DiffRec" if by_time else "T-DiffRec"
    return _evaluated(given, key, name, fitted, scorers, given.users.diffusion, log)


def _lacks_model(store: Store) -> bool:
    """Whether a model is still to be taken: there is none, or what was taken is damaged."""
    if store.step("best") is None:
        return True
    broken = processes.is_first() and store.fault("best") is not None
    (broken_for_all,) = processes.of_first(int(broken))
    return bool(broken_for_all)


def require_model(given: Given, workdir: Path) -> None:
    """Checks that the diffusion model can be made, and that of another run taken where it is to be.

    Raises:
      UserError: its noise or windows do not fit; or there is none in the other run, or it was
        trained on other data, under another protocol or with other settings.
    """
    config = given.config
    if config.stage != "encoder" and config.preferences_by == "diffusion":
        section = config.diffusion
        diffusion_stage.schedule_of(section, diffusion_stage.num_slots(section, given.split))
    keys = diffusion_models(config)
    if config.diffusion_from and any(_lacks_model(Store(workdir / key)) for key in keys):
        source_of_model(given, seeded(given.config, "diffusion"))


def _take_model(given: Given, key: str, task: DiffusionTask, store: Store) -> None:
    """Copies a diffusion model of another run, as if it had been trained here."""
    source = source_of_model(given, seeded(given.config, "diffusion"))
    params, meta = Store(source / key).restore("best", task.abstract()["params"])
    course = dataclasses.replace(Course.read(meta), origin=meta.get("origin") or str(source))
    store.delete("best")  # what is damaged may be of a later epoch, and would be read first
    store.save("best", course.best_epoch, params, dataclasses.asdict(course))


def preferences_phase(given: Given, workdir: Path, log: MetricLog) -> Outcome:
    """Computes and saves the preferences of all users with the model that is to fill them."""
    infer, train = {
        "diffusion": (_by_diffusion, diffusion_phase),
        "sasrec": (_by_sasrec, sasrec_phase),
    }[given.config.preferences_by]
    try:
        preferences = infer(given, workdir, log)
    except NoCheckpoint as error:
        # Its phase is done, and its model was damaged since.
        anew = "taken again" if given.config.diffusion_from else "trained anew"
        warn(f"{error}; the model is {anew} for the preferences")
        train(given, workdir, log)
        preferences = infer(given, workdir, log)
    save_preferences(Store(workdir), preferences, origin(given))
    return _effects(given, preferences, log)


def _by_diffusion(given: Given, workdir: Path, log: MetricLog) -> Preferences:
    return diffusion_stage.infer_preferences(
        seeded(given.config, "diffusion"),
        given.split,
        given.users.preferences,
        pool_rules(given.config, given.protocol),
        Store(workdir / "diffusion"),
        log,
        exclude_heldout=given.protocol.nns_excludes_heldout,
        mesh=given.mesh,
    )


def sasrec_phase(given: Given, workdir: Path, log: MetricLog) -> Outcome:
    """Trains and evaluates the SASRec that stands in for the diffusion model."""
    return encoder_phase(_with_sasrec(given), "base", None, workdir, log)


def _with_sasrec(given: Given) -> Given:
    config = given.config.copy_and_resolve_references()
    config.encoder.name = "sasrec"
    return dataclasses.replace(given, config=config)


def _by_sasrec(given: Given, workdir: Path, log: MetricLog) -> Preferences:
    config, users = given.config, given.users.preferences
    made = encoder_training(_with_sasrec(given), "base", None, workdir)
    params, _ = made.store.restore("best", abstract(made.task.initialise, given.mesh))
    with log.progress("preferences", int(users.sum()), "user") as bar:
        return infer_preferences(
            made.task.model,
            params,
            given.split,
            users,
            pool_rules(config, given.protocol),
            exclude_heldout=given.protocol.nns_excludes_heldout,
            seed=config.seed,
            block=config.encoder.block,
            advance=bar.update,
        )


def borrowed_phase(
    given: Given, preferences: Preferences, workdir: Path, log: MetricLog
) -> Outcome:
    """Stands in for the preferences phase where they are another run's, and notes which."""
    del workdir
    outcome = _effects(given, preferences, log)
    outcome.record[IDENTITY] = identity(preferences)
    return outcome


def _effects(given: Given, preferences: Preferences, log: MetricLog) -> Outcome:
    log.phase(f"preferences: {int(preferences.users.sum()):,} users")
    floor = given.protocol.hbr_floor
    return Outcome(
        {"effects": encoder_stage.effects(given.config, given.split, preferences, floor)}
    )


def can_compute_preferences(config: ConfigDict, place: Workdir) -> bool:
    """Whether a run can compute its preferences: in the encoder's stage, if their maker is done."""
    return config.stage != "encoder" or place.phases.find(config.preferences_by) is not None


def own_preferences(given: Given, workdir: Path, log: MetricLog) -> Preferences:
    """Reads the preferences of this run, computed anew where they are damaged or gone."""
    try:
        return read_preferences(given, workdir)
    except NoCheckpoint as error:
        warn(f"{error}; the preferences are computed anew")
        preferences_phase(given, workdir, log)
        return read_preferences(given, workdir)


def encoder_key(config: ConfigDict, variant: str) -> str:
    """Names an encoder's phase, log lines and arrays: ``sasrec+hbr+nns+dpa``."""
    return "+".join([config.encoder.name, *encoder_stage.parse_variant(variant)])


def needs_preferences(config: ConfigDict) -> bool:
    """Whether a variant has a plugin."""
    return any(encoder_stage.parse_variant(variant) for variant in config.encoder.variants)


def require_encoders(config: ConfigDict) -> None:
    """Checks the encoder, its name and its variants.

    Raises:
      UserError: an unknown one, one that is no encoder, or two variants that are the same.
    """
    titles = [
        encoder_stage.title_of(config.encoder, variant) for variant in config.encoder.variants
    ]
    if len(set(titles)) < len(titles):
        raise UserError(
            "config.encoder.variants: a tuple of different variants is expected, "
            f"got {', '.join(titles)}"
        )
    encoder_stage.make_model(config, (), _FEW_ITEMS)


@dataclasses.dataclass(frozen=True, eq=False)
class EncoderTraining:
    """What trains and ranks one variant of the encoder.

    Attributes:
      key: see ``encoder_key``.
      task: for ``training.fit``.
      scorers: ``test`` and ``validation``, see ``encoders.stage.build``.
      settings: when to stop.
      store: its checkpoints.
    """

    key: str
    task: EncoderTask
    scorers: Mapping[str, Scorer | None]
    settings: LoopSettings
    store: Store


def encoder_training(
    given: Given, variant: str, preferences: Preferences | None, workdir: Path
) -> EncoderTraining:
    """Builds what trains and ranks one variant of the encoder."""
    config, key = given.config, encoder_key(given.config, variant)
    task, scorers = encoder_stage.build(
        config,
        variant,
        given.split,
        preferences,
        drawn=given.users.preferences,
        ranked=given.users.encoder,
        protocol=given.protocol,
        candidates=given.candidates,
        validation=given.validation,
        name=key,
        mesh=given.mesh,
    )
    settings = encoder_stage.loop_settings(
        config.encoder, config.save_seconds, save_behind=given.save_behind
    )
    return EncoderTraining(key, task, scorers, settings, Store(workdir / "encoders" / key))


def encoder_phase(
    given: Given, variant: str, preferences: Preferences | None, workdir: Path, log: MetricLog
) -> Outcome:
    """Trains and evaluates one variant of the encoder."""
    made = encoder_training(given, variant, preferences, workdir)
    fitted = fit(made.task, made.settings, made.store, log)
    name = encoder_stage.title_of(given.config.encoder, variant)
    return _evaluated(given, made.key, name, fitted, made.scorers, given.users.encoder, log)


def _evaluated(
    given: Given,
    key: str,
    name: str,
    fitted: Fitted,
    scorers: Mapping[str, Scorer | None],
    users: np.ndarray,
    log: MetricLog,
) -> Outcome:
    """Ranks with the best parameters, and describes the model for the results."""
    test, validation = scorers["test"], scorers["validation"]
    assert test is not None
    sampled, full = test.sampled(fitted.params), test.full(fitted.params)
    if not (sampled.finite and full.finite):
        raise UserError(f"{name}: a score is not finite, its parameters are not sound")
    figures = {"sampled": sampled.metrics(), "full": full.metrics()}
    course = fitted.course
    model = {
        "name": name,
        "key": key,
        "stage": "diffusion" if key.startswith("diffusion") else "encoder",
        "best_epoch": course.best_epoch,
        "epochs": course.epoch,
        "users": int(users.sum()),
        **figures,
        "validation": validation.sampled(fitted.params).metrics() if validation else None,
        "paper": published(given.config, name),
    }
    if course.origin:
        model["origin"] = course.origin
    arrays = {}
    for kind, ranks in (("sampled_rank", sampled), ("full_rank", full)):
        arrays[kind] = np.full(len(users), np.nan, np.float32)
        arrays[kind][users] = ranks.ranks
    told = f"from {course.origin[:60]}" if course.origin else f"best epoch {course.best_epoch}"
    told += f" of {course.epoch}" * (not course.origin)
    log.phase(
        f"{name}: {told}, NDCG@10 "
        f"{figures['sampled']['NDCG@10']:.4f} sampled, {figures['full']['NDCG@10']:.4f} full"
    )
    return Outcome({"model": model}, arrays)
