"""Which runs a table or a figure needs, and how far each has come."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from pdrec_jax import other_runs, phases
from pdrec_jax.checkpoints import Store
from pdrec_jax.data import sources
from pdrec_jax.encoders import registry
from pdrec_jax.errors import UserError
from pdrec_jax.experiment import resolve
from pdrec_jax.settings import differences, get, put
from pdrec_jax.workdir import RESULTS, Workdir, saved_config

ENCODERS = ("sasrec", "gru4rec", "cl4srec")  # of the paper, in the order in which they run
VARIANTS = ("base", "hbr", "hbr+nns", "hbr+nns+dpa")
# What Figure 5 looks at: the plugins' weights, around the values of the paper and its README.
SWEEPS: dict[str, tuple[Any, ...]] = {
    "hbr.clip": (1.0, 2.0, 3.0, 4.0, 5.0),
    "hbr.scale": (0.5, 1.0, 2.0, 4.0),
    "dpa.weight": (0.05, 0.1, 0.3, 0.5, 1.0),
    "dpa.fine": (1, 3, 5, 10),
}
# Fields that decide on the pools, so that another run's model serves, but not its preferences.
_OF_POOLS = ("dpa.coarse", "dpa.pool", "nns.first_fraction", "nns.kept", "nns.refresh_epochs")
# Those that decide on the model.
_OF_MODEL = ("seed", "data.", "simulation.", "diffusion.", "preferences_by", "protocol")
# Those that decide on nothing that the diffusion stage leaves to others.
_OF_ENCODER = (
    *("encoder.", "hbr.", "nns.drawn", "nns.placement"),
    *("dpa.fine", "dpa.drawn", "dpa.draw_by", "dpa.weight"),
)
_FOLDERS = ("preferences_from", "diffusion_from")


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """One run of the experiment.

    Attributes:
      dataset: name of the config, as in tables and folders.
      path: of the config file, with its argument.
      config: resolved, the job's own fields set.
      by_hand: fields that stay as they are on a simulated log.
      workdir: of the run.
      what: the run in words.
      changed: what the job sets, for people and for the rows of a sweep.
    """

    dataset: str
    path: str
    config: ConfigDict
    by_hand: Collection[str]
    workdir: Path
    what: str
    changed: Mapping[str, Any]

    @functools.cached_property
    def _resolved(self) -> tuple[ConfigDict, list[Path] | None]:
        return resolve(self.config, self.by_hand)

    @property
    def resolved(self) -> tuple[ConfigDict, str]:
        """The config as the run has it, on a simulated log a shortened one, and the data's source.

        Raises:
          UserError: what is wrong with the config, or a log that is missing.
        """
        config, files = self._resolved
        return config, "simulated" if files is None else "real"

    @property
    def place(self) -> Workdir:
        """The directory of the run.

        Raises:
          UserError: it holds a run with another config, on data of another source or on another
            log, whose results are not the job's.
        """
        place = Workdir(self.workdir, *self.resolved, flag="--out")
        place.require_log(sources.listed(self._resolved[1]))
        return place

    @property
    def results(self) -> dict[str, Any] | None:
        """The results, None unless all that the job asks for is there.

        Raises:
          UserError: they are another run's, see ``place``, or damaged.
        """
        place, (config, _) = self.place, self.resolved
        found = place.results()
        if found is None:
            return None
        with place.reading_results():
            numbers = found.get("seeds", [found.get("seed")])
            enough = numbers[-1] == config.seed + config.seeds - 1
        return found if enough and found.get("stage") in (config.stage, "all") else None

    @property
    def state(self) -> str:
        """``finished``, ``begun`` or ``missing``.

        Raises:
          UserError: see ``results``.
        """
        if self.results is not None:
            return "finished"
        return "begun" if self.workdir.exists() else "missing"

    def check(self) -> None:
        """Finds what would stop the job at its turn.

        Raises:
          UserError: see ``results``; or no such encoder is there; or the preferences or models of a
            finished run are gone.
        """
        config = self.resolved[0]
        if config.stage != "diffusion":
            registry.find(config.encoder.name)
        if self.results is not None:
            return
        if config.preferences_from and phases.needs_preferences(config):
            source = other_runs.of_seed(config.preferences_from, config.seed)
            self._require("preferences", source, Store(source).step("preferences"))
        if config.diffusion_from:
            source = other_runs.of_seed(config.diffusion_from, config.seed)
            own = other_runs.of_seed(str(self.workdir), config.seed)
            for key in other_runs.diffusion_models(config):
                if Store(own / key).step("best") is None:
                    self._require("models", source, Store(source / key).step("best"))

    def _require(self, what: str, source: Path, step: int | None) -> None:
        """Refuses a run that is finished, and so would leave no save where there is none."""
        if step is None and (source / RESULTS).is_file():
            raise UserError(
                f"{self.workdir}: not finished, and the {what} that it would read are not in "
                f"{source} (what pdrec_jax.keep has kept has none); name another --out"
            )

    def as_begun(self, unread: tuple[str, ...] = ()) -> Job:
        """The job with its folder's own values where they change nothing for it.

        Other values there would make it another run for no reason: a folder of all runs that was
        moved, or is spelled in another way, or a diffusion run that another table's command began.

        Args:
          unread: fields, or beginnings of their names, which nothing in the run depends on.

        Returns:
          this job, where the folder has no run; with another run in it, one that differs from it
          in nothing but what is in the way.
        """
        saved = saved_config(self.workdir)
        if saved is None:
            return self
        changed = differences(self.resolved[0], saved, self.resolved[1])
        if not changed:
            return self
        config = self.config.copy_and_resolve_references()
        # With all the seeds that are asked for: others are trained yet.
        finished = (self.workdir / RESULTS).is_file() and saved.seeds >= config.seeds
        put_back = set()
        for field in changed:
            # Ours name a folder beside this one, so two parts tell it from all others. What is not
            # finished would go on from the old place.
            moved = (
                finished
                and field in _FOLDERS
                and _ending(get(saved, field)) == _ending(get(config, field))
            )
            if moved or field.startswith(unread):
                put(config, field, get(saved, field))
                put_back.add(field)
        # None but these: an override that was set since must still be seen to differ.
        return dataclasses.replace(self, config=config, by_hand={*self.by_hand, *put_back})


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
    """What the jobs of one dataset have in common.

    Attributes:
      dataset: name of the config, as in tables and folders.
      path: of the config file, with its argument.
      config: resolved, with the fields of the command line.
      by_hand: those fields.
      root: directory of all runs.
      shared: whether all seeds of the encoders read the diffusion models of the first one.
      encoders: that its config file has left registered, see ``registry.put_back``.
    """

    dataset: str
    path: str
    config: ConfigDict
    by_hand: Collection[str]
    root: Path
    shared: bool = False
    encoders: dict[str, Any] = dataclasses.field(default_factory=registry.registered)

    @property
    def of_diffusion(self) -> dict[str, Any]:
        """What the run of the diffusion models sets in place of the setting's own seeds."""
        return {"seeds": 1} if self.shared else {}

    @property
    def models(self) -> Path:
        """The folder of the diffusion models and their preferences."""
        config = self.config.copy_and_resolve_references()
        config.update(self.of_diffusion)
        return self.workdir("diffusion", config)

    def workdir(self, name: str, config: ConfigDict | None = None) -> Path:
        """The folder of that name, of a job with a config of its own or with the setting's."""
        config = config or self.config
        folder = f"{self.dataset}-{config.protocol}-{config.seed}" + "-seeds" * (config.seeds > 1)
        return self.root / folder / name

    def job(
        self, name: str, what: str, fields: Mapping[str, Any], unread: tuple[str, ...] = ()
    ) -> Job:
        """Makes a job that sets some fields.

        Args:
          name: of its folder.
          what: the run in words.
          fields: by dotted path.
          unread: see ``Job.as_begun``.

        Raises:
          UserError: no such field, or the config of the run in the folder is damaged.
        """
        config = self.config.copy_and_resolve_references()
        for path, value in fields.items():
            put(config, path, value)
        where, by_hand = self.workdir(name, config), {*self.by_hand, *fields}
        words = f"{self.dataset}: {what}"
        job = Job(self.dataset, self.path, config, by_hand, where, words, fields)
        return job.as_begun(unread)


def diffusion_job(setting: Setting) -> Job:
    """Both diffusion models, and the preferences that every other job reads.

    T-DiffRec alone where the log has no times, or a config weighs by position, as one does whose
    times are stand-ins. Neither where a SASRec fills the preferences.
    """
    weighting = "diffusion.weighting"
    by_sasrec = setting.config.preferences_by == "sasrec"
    both = get(setting.config, weighting) == "time" or weighting in setting.by_hand
    data = setting.config.data
    timeless = not data.time  # by time and by position are then the same
    stand_ins = data.time == sources.STAND_INS and data.source != "simulated"
    both &= not (by_sasrec or timeless or stand_ins)
    fields = {"stage": "diffusion", "diffusion.both": both, **setting.of_diffusion}
    unread: tuple[str, ...] = () if by_sasrec else _OF_ENCODER
    if timeless:
        unread += ("diffusion.both",)  # a run of before has the same model twice
    what = "TI-DiffRec and T-DiffRec" if both else "SASRec" if by_sasrec else "T-DiffRec"
    return setting.job("diffusion", what, fields, unread)


def encoder_job(setting: Setting, encoder: str) -> Job:
    """An encoder without and with plugins, on the models of ``diffusion_job``."""
    fields = {"encoder.name": encoder, "encoder.variants": VARIANTS}
    fields |= _borrowing(setting, fields)
    return setting.job(encoder, f"{encoder}: {', '.join(VARIANTS)}", fields)


def _borrowing(setting: Setting, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What a job takes of ``diffusion_job``: its preferences, or the model where its pools differ.

    They do where it sweeps a field of theirs, or a config has other values for its encoder. A
    SASRec that fills the preferences is no diffusion model: each such run trains it.
    """
    config = setting.config.copy_and_resolve_references()
    for path, value in fields.items():
        put(config, path, value)
    own, theirs = (
        resolve(given, {*setting.by_hand, *by_hand})[0]
        for given, by_hand in ((config, fields), (setting.config, ()))
    )
    source = str(setting.models)
    if not any(field in fields or get(own, field) != get(theirs, field) for field in _OF_POOLS):
        return {"stage": "encoder", "preferences_from": source}
    return {"diffusion_from": source} if own.preferences_by == "diffusion" else {}


def ablation_job(setting: Setting) -> Job:
    """All plugins on the preferences of a SASRec, "w/o TI-DiffRec" of Sec. 5.3."""
    fields = {"preferences_by": "sasrec", "diffusion.both": False, "encoder.name": "sasrec"}
    return setting.job(
        "without-ti-diffrec",
        "sasrec without TI-DiffRec",
        {**fields, "encoder.variants": ("base", "hbr+nns+dpa")},
    )


def sweep_jobs(
    setting: Setting, field: str, values: Sequence[Any], encoder: str | None = None
) -> list[Job]:
    """A job for each value of a field, with all plugins unless other variants are set by hand.

    The diffusion model is shared where the field allows.

    Args:
      setting: of the dataset.
      field: that is swept; a job's first one.
      values: of the field.
      encoder: the config's where not given.

    Raises:
      UserError: the field decides on the diffusion model, which the setting shares, or on a log
        that is not simulated; or there is no model to share.
    """
    if field.startswith("simulation.") and setting.config.data.source == "real":
        raise UserError(f"--sweep: nothing reads {field} of a real log")
    jobs = []
    of_encoder: dict[str, Any] = {} if encoder is None else {"encoder.name": encoder}
    if "encoder.variants" not in setting.by_hand:
        of_encoder |= {"encoder.variants": VARIANTS[-1:]}
    encoder = encoder or setting.config.encoder.name
    borrowed = not field.startswith(_OF_MODEL)
    if setting.shared and not borrowed:
        raise UserError(
            f"--share-diffusion: {field} decides on the diffusion model itself; leave it out"
        )
    # A SASRec that fills the preferences is no diffusion model, and is trained by each run.
    alone = field in _OF_POOLS and setting.config.preferences_by == "sasrec"
    if setting.shared and alone:
        raise UserError(
            f"--share-diffusion: with preferences_by='sasrec' and a sweep of {field} there is no "
            "model to share; leave it out"
        )
    for value in values:
        fields: dict[str, Any] = {field: value} | of_encoder | {field: value}
        if field == "dpa.fine":
            fields["dpa.drawn"] = 0  # which a config may set for strict; N is then unread
        fields |= _borrowing(setting, fields) if borrowed else {}
        name = f"sweep-{encoder}-{field}={slug(value)}"
        jobs.append(setting.job(name, f"{encoder}, {field} = {value!r}", fields))
    return ([diffusion_job(setting)] if borrowed and not alone else []) + jobs


def known_encoders(asked: Sequence[str] | None) -> tuple[str, ...]:
    """The encoders of the paper that are there, or those that are asked for.

    Raises:
      UserError: one that is asked for is not there.
    """
    if asked is not None:
        for name in asked:
            registry.find(name)
        return tuple(asked)
    found = []
    for name in ENCODERS:
        try:
            registry.find(name)
        except UserError:
            continue
        found.append(name)
    return tuple(found)


def _ending(path: str) -> tuple[str, ...]:
    return Path(path).parts[-2:]


def slug(value: Any) -> str:
    """A value as part of a file's name."""
    return cut("".join(c if c.isalnum() or c in ".-" else "_" for c in str(value)), 150)


def cut(name: str, most: int) -> str:
    """Part of a file's name; of one above `most` letters the beginning, and a hash of all."""
    if len(name) <= most:
        return name
    return f"{name[:most]}..{hashlib.sha256(name.encode()).hexdigest()[:6]}"
