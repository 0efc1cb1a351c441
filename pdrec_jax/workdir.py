"""The directory of a run: its config, its data, the results; what its phases left is below it."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from pdrec_jax import processes
from pdrec_jax.errors import UserError
from pdrec_jax.files import (
    atomic_savez,
    atomic_write_text,
    read_arrays,
    read_errors,
    read_json,
    write_errors,
)
from pdrec_jax.locks import NAME as LOCK
from pdrec_jax.locks import locked, require_unlocked
from pdrec_jax.phase_records import PhaseRecords
from pdrec_jax.settings import (
    FIELDS,
    default_config,
    differences,
    flatten,
    misfit,
    put,
    require_field,
)

CONFIG, RESULTS, PER_USER = "config.json", "results.json", "per_user.npz"
_DATA, _PHASES = "data.json", "phases"


class Workdir:
    """Files of one run; every write is atomic, and none is made before ``begin``.

    Of several processes the first one alone writes and holds the lock; the others wait for it.

    Args:
      path: may be missing.
      config: resolved; must be that of the run already in the directory, if there is one.
      source: ``real`` or ``simulated``, likewise.
      flag: of the command line, which names the directory.

    Attributes:
      path: of the directory.
      phases: what its phases have left.

    Raises:
      UserError: the directory holds another run, or files that are no run.
    """

    def __init__(
        self, path: str | Path, config: ConfigDict, source: str, *, flag: str = "--workdir"
    ):
        self.path, self._source = Path(path), source
        self._flag, self._another = flag, f"name another {flag} or remove it"
        self._resolved = config
        self._config: dict[str, Any] = json.loads(config.to_json())
        self.phases = PhaseRecords(self.path / _PHASES)
        self._check()

    def _check(self) -> None:
        """Reads whose run the directory holds, and refuses another one's."""
        config, source = self._resolved, self._source
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path}: a directory is expected")
        self._saved_data = read_json(self.path / _DATA)
        if self._saved_data is not None and not _is_data(self._saved_data):
            raise UserError(f"{self.path / _DATA}: not what a run writes; {self._another}")
        if self._saved_data and self._saved_data.get("source") != source:
            raise UserError(
                f"{self.path}: holds a run on {self._saved_data.get('source')} data, and this one "
                f"would be on {source} data; {self._another}"
            )
        saved = read_json(self.path / CONFIG)
        if saved is not None:
            try:
                changed = differences(config, saved, source)
            except (ArithmeticError, TypeError, ValueError) as error:
                raise UserError(
                    f"{self.path / CONFIG}: not what a run writes ({error}); {self._another}"
                ) from error
            if changed:
                raise UserError(
                    f"{self.path}: holds a run with another config, which differs in "
                    f"{', '.join(changed[:5])}{', ..' * (len(changed) > 5)}; {self._another}"
                )
            if self._saved_data is None and any(
                entry.name != CONFIG and not _is_ours(entry) for entry in _entries(self.path)
            ):
                raise UserError(
                    f"{self.path / _DATA}: missing, without which nobody knows what log the run in "
                    f"{self.path} was begun on; put it back, or {self._another}"
                )
            # More may have been begun since, and their results are not there yet.
            done = (read_json(self.path / RESULTS) or {}).get("seeds")
            more = len(done) if isinstance(done, list) else 1
            if more > config.seeds:
                raise UserError(
                    f"{self.path}: has {more} seeds, whose results those of {config.seeds} would "
                    f"replace; ask for as many, or name another {self._flag}"
                )
        elif self.path.is_dir() and not all(map(_is_ours, _entries(self.path))):
            raise UserError(f"{self.path}: not empty and not a run; name another {self._flag}")

    @classmethod
    def open(cls, path: str | Path, *, several: bool = False) -> Workdir:
        """Opens the run that is in a directory, with the config that it was begun with.

        Args:
          path: of the run.
          several: whether it may be one of several seeds, which are a run each.

        Raises:
          UserError: there is no run, or one of several seeds where one is expected.
        """
        path = Path(path)
        config, data = saved_config(path), read_json(path / _DATA)
        if config is None or data is None:
            raise UserError(f"{path}: the workdir of a run is expected, with {CONFIG} and {_DATA}")
        if config.seeds > 1 and not several:
            raise UserError(
                f"{path}: holds several seeds, name the folder of one, such as "
                f"{path / seed_folder(config.seed)}"
            )
        return cls(path, config, data.get("source", ""))

    def seed_run(self, seed: int) -> Workdir:
        """The run of one seed of this run, which has several.

        Args:
          seed: one of them.

        Raises:
          UserError: there is none in its folder, or another one, or one on another log.
        """
        path = self.path / seed_folder(seed)
        if not (path / CONFIG).is_file():
            raise UserError(f"{path}: the run of seed {seed} is expected")
        own = seed_configs(self._resolved)[seed - self._resolved.seed]
        try:
            place = Workdir(path, own, self._source)
            place.require_log(self.data["files"])
        except UserError as error:
            raise UserError(f"{error} ({path} is to hold seed {seed} of {self.path})") from error
        return place

    @property
    def config(self) -> ConfigDict:
        """A copy of the run's config."""
        return _resolved(self._config)

    @property
    def data(self) -> dict[str, Any]:
        """Source of the data, and its files with checksums, of a run that has begun."""
        return dict(self._saved_data or {})

    def files(self) -> list[Path]:
        """All files of the run, which nothing but the run may write."""
        return [path for path in self.path.rglob("*") if path.is_file()]

    def require_unlocked(self) -> None:
        """Checks that no other process is at work in the directory, before it costs any time.

        Raises:
          UserError: one is.
        """
        if processes.is_first():
            require_unlocked(self.path)

    def require_log(self, files: list[dict[str, str]]) -> None:
        """Checks that the run in the directory, if there is one, is on a log.

        Args:
          files: of the log, see ``data.sources.listed``.

        Raises:
          UserError: it is on another one.
        """
        if self._saved_data is not None and _checksums(self._saved_data["files"]) != _checksums(
            files
        ):
            names = ", ".join(file["name"] for file in files)
            raise UserError(
                f"{self.path}: holds a run on another content of {names}, by its checksum; "
                f"{self._another}"
            )

    @contextlib.contextmanager
    def held(self, data: dict[str, Any]) -> Iterator[None]:
        """Begins the run, with all other processes kept out until the end of the block.

        Args:
          data: see ``begin``.

        Raises:
          UserError: another process is at work in it, or whatever ``begin`` raises.
        """
        if not processes.is_first():
            processes.barrier(f"begun {self.path}")
            yield
            return
        with write_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.path):
            # Another run may have begun in it and ended since the first look.
            self._check()
            self.begin(data)
            processes.barrier(f"begun {self.path}")
            yield

    def begin(self, data: dict[str, Any]) -> None:
        """Makes the directory, or takes up the run in it.

        Args:
          data: source of the data, and its files with checksums.

        Raises:
          UserError: the run in it is on other data, or the directory cannot be written.
        """
        data = {"source": data["source"], "files": data["files"]}
        self.require_log(data["files"])
        with write_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        # The config first: a directory without it is taken for somebody else's.
        atomic_write_text(self.path / CONFIG, json.dumps(self._config, indent=2) + "\n")
        atomic_write_text(self.path / _DATA, json.dumps(data, indent=2) + "\n")
        for left in list(_left_below(self.path)):
            # Of a run that was killed while writing.
            with contextlib.suppress(OSError):
                if left.is_dir():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.unlink()

    def results(self) -> dict[str, Any] | None:
        """Returns the results of a finished run, None otherwise."""
        return read_json(self.path / RESULTS)

    def results_of(self, stage: str) -> dict[str, Any] | None:
        """Returns the results of a finished run, None unless they cover a stage, or ``all``."""
        found = self.results()
        return found if found is not None and found.get("stage") in (stage, "all") else None

    @contextlib.contextmanager
    def reading_results(self) -> Iterator[None]:
        """Turns what results of another form raise into one line.

        Raises:
          UserError: they lack something, or have another kind of value there.
        """
        try:
            yield
        except UserError:
            raise
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.path / RESULTS}: not what a run writes ({type(error).__name__}: {error}); "
                "remove it and run the same command again"
            ) from error

    def drop_undone(self) -> None:
        """Removes the records of phases that wait to be finished again, and first the results.

        A damaged model is removed before its training begins anew, and a slot without a save is
        taken for one that was removed to make room. So a run that is killed in that training must
        not look finished, nor the phase done.

        Raises:
          UserError: the directory cannot be written.
        """
        if not self.phases.undone:
            return
        if processes.is_first():
            # In this order: a record without results is found damaged once more.
            self.reopen()
            self.phases.remove_undone()
        processes.barrier(f"reopened {self.path}")

    def ranks_of(self, results: dict[str, Any]) -> dict[str, np.ndarray] | None:
        """Returns the arrays of all phases of a finished run, as ``per_user`` names them.

        None where a phase has no sound record, as in a run that was kept without its models.

        Raises:
          UserError: the results are of another form.
        """
        with self.reading_results():
            keys = [str(model["key"]) for model in results["models"]]
        if not keys or any(self.phases.find(key) is None for key in keys):
            return None
        return {
            f"{key}/{kind}": array
            for key in keys
            for kind, array in self.phases.arrays(key).items()
        }

    def per_user(self) -> dict[str, np.ndarray]:
        """Returns the per-user arrays of a finished run."""
        return read_arrays(self.path / PER_USER)

    def save_per_user(self, arrays: dict[str, np.ndarray]) -> None:
        """Writes the per-user arrays of the whole run."""
        if processes.is_first():
            atomic_savez(self.path / PER_USER, **arrays)

    def finish(self, results: dict[str, Any]) -> None:
        """Writes the results, which mark the run as finished: nothing is written after them."""
        if processes.is_first():
            atomic_write_text(self.path / RESULTS, json.dumps(results, indent=2) + "\n")
        processes.barrier(f"finished {self.path}")

    def reopen(self) -> None:
        """Removes the results, so that what is written next is not taken for finished.

        Raises:
          UserError: the directory cannot be written.
        """
        with write_errors(self.path):
            (self.path / RESULTS).unlink(missing_ok=True)


def saved_config(path: Path) -> ConfigDict | None:
    """Returns the config that the run in a directory was begun with, None where there is none.

    Raises:
      UserError: it is damaged, or has fields that are not known here.
    """
    saved = read_json(path / CONFIG)
    if saved is None:
        return None
    try:
        return _resolved(saved)
    except (UserError, ArithmeticError, TypeError, ValueError) as error:
        raise UserError(f"{path / CONFIG}: {error}") from error


def seed_configs(config: ConfigDict) -> list[ConfigDict]:
    """Returns the config of each seed's run; all of them are on one log, simulated or not."""
    configs = []
    for seed in range(config.seed, config.seed + config.seeds):
        own = config.copy_and_resolve_references()
        if own.simulation.seed < 0:
            own.simulation.seed = config.seed
        own.seed, own.seeds = seed, 1
        configs.append(own)
    return configs


def seed_folder(seed: int) -> str:
    """Returns the name of a seed's folder in a run of several."""
    return f"seed-{seed}"


def _is_data(found: dict[str, Any]) -> bool:
    files = found.get("files")
    return isinstance(found.get("source"), str) and (
        isinstance(files, list)
        and all(isinstance(file, dict) and isinstance(file.get("sha256"), str) for file in files)
    )


def _checksums(files: list[dict[str, str]]) -> list[str]:
    return [file["sha256"] for file in files]


def _resolved(saved: dict[str, Any]) -> ConfigDict:
    """The config of JSON: what the run is too old to know has its default, a list is a tuple."""
    config = default_config()
    for field, value in flatten(ConfigDict(saved)):
        value = _as_tuples(value)
        require_field(field)
        if not FIELDS[field].fits(value):
            raise misfit(field, value)
        put(config, field, value)
    return config


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list | tuple) else value


def _entries(path: Path) -> list[Path]:
    with read_errors(path):
        return list(path.iterdir())


def _is_ours(path: Path) -> bool:
    """Whether a run can have left it before it left its config."""
    return path.name == LOCK or _is_temporary(path)


def _left_below(path: Path) -> Iterator[Path]:
    """Temporary files and directories of a run; runs of their own below it are left alone."""
    for entry in path.iterdir():
        if _is_temporary(entry):
            yield entry
        elif entry.is_dir() and not entry.is_symlink() and not (entry / CONFIG).exists():
            yield from _left_below(entry)


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(".tmp")
