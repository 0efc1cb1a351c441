"""The directory of a run: its config, its data, the phases that are done, the results."""

from __future__ import annotations

import contextlib
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from pdrec_jax.errors import UserError
from pdrec_jax.files import atomic_savez, atomic_write_text, write_errors
from pdrec_jax.settings import default_config, differences, flatten, put

_CONFIG, _DATA, _RESULTS, _PER_USER = "config.json", "data.json", "results.json", "per_user.npz"
_ANOTHER = "name another --workdir or remove it"


class Workdir:
    """Files of one run; every write is atomic, and none is made before ``begin``.

    Args:
      path: may be missing.
      config: resolved; must be that of the run already in the directory, if there is one.
      source: ``real`` or ``simulated``, likewise.

    Raises:
      UserError: the directory holds another run, or files that are no run.
    """

    def __init__(self, path: str | Path, config: ConfigDict, source: str):
        self.path = Path(path)
        self._config: dict[str, Any] = json.loads(config.to_json())
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path}: a directory is expected")
        self._saved_data = _read_json(self.path / _DATA)
        if self._saved_data and self._saved_data.get("source") != source:
            raise UserError(
                f"{self.path}: holds a run on {self._saved_data.get('source')} data, and this one "
                f"would be on {source} data; {_ANOTHER}"
            )
        saved = _read_json(self.path / _CONFIG)
        if saved is not None:
            changed = differences(config, saved)
            if changed:
                raise UserError(
                    f"{self.path}: holds a run with another config, which differs in "
                    f"{', '.join(changed[:5])}{', ..' * (len(changed) > 5)}; {_ANOTHER}"
                )
        elif self.path.is_dir() and any(not _is_temporary(p) for p in self.path.iterdir()):
            raise UserError(f"{self.path}: not empty and not a run; name another --workdir")

    @classmethod
    def open(cls, path: str | Path) -> Workdir:
        """Opens the run that is in a directory, with the config that it was begun with.

        Raises:
          UserError: there is no run, or one of several seeds, which are a run each.
        """
        path = Path(path)
        saved, data = _read_json(path / _CONFIG), _read_json(path / _DATA)
        if saved is None or data is None:
            raise UserError(f"{path}: the workdir of a run is expected, with {_CONFIG} and {_DATA}")
        try:
            config = _resolved(saved)
        except (UserError, TypeError) as error:
            raise UserError(f"{path / _CONFIG}: {error}") from error
        if config.seeds > 1:
            raise UserError(
                f"{path}: holds several seeds, name the folder of one, such as "
                f"{path / f'seed-{config.seed}'}"
            )
        return cls(path, config, data.get("source", ""))

    @property
    def config(self) -> ConfigDict:
        """A copy of the run's config."""
        return _resolved(self._config)

    @property
    def data(self) -> dict[str, Any]:
        """Source of the data, and its files with checksums, of a run that has begun."""
        return dict(self._saved_data or {})

    def begin(self, data: dict[str, Any]) -> None:
        """Makes the directory, or takes up the run in it.

        Args:
          data: source of the data, and its files with checksums.

        Raises:
          UserError: the run in it is on other data, or the directory cannot be written.
        """
        data = {"source": data["source"], "files": data["files"]}
        if self._saved_data is not None and _checksums(self._saved_data) != _checksums(data):
            names = ", ".join(file["name"] for file in data["files"])
            raise UserError(
                f"{self.path}: holds a run on another content of {names}, by its checksum; "
                f"{_ANOTHER}"
            )
        with write_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        # The config first: a directory without it is taken for somebody else's.
        atomic_write_text(self.path / _CONFIG, json.dumps(self._config, indent=2) + "\n")
        atomic_write_text(self.path / _DATA, json.dumps(data, indent=2) + "\n")
        with write_errors(self.path):
            (self.path / "phases").mkdir(exist_ok=True)
        for left in filter(_is_temporary, self.path.rglob(".*")):
            # Of a run that was killed while writing.
            with contextlib.suppress(OSError):
                left.unlink()

    def results(self) -> dict[str, Any] | None:
        """Returns the results of a finished run, None otherwise."""
        return _read_json(self.path / _RESULTS)

    def phase(self, name: str) -> dict[str, Any] | None:
        """Returns what a phase that is done has left, None otherwise."""
        return _read_json(self.path / "phases" / f"{name}.json")

    def phases(self) -> dict[str, dict[str, Any]]:
        """Returns what every phase that is done has left."""
        found = {path.stem: _read_json(path) for path in self.path.glob("phases/*.json")}
        return {name: record for name, record in found.items() if record is not None}

    def finish_phase(
        self, name: str, record: dict[str, Any], arrays: dict[str, np.ndarray] | None = None
    ) -> None:
        """Marks a phase as done, with a JSON record and per-user arrays."""
        if arrays:
            atomic_savez(self.path / "phases" / f"{name}.npz", **arrays)
        atomic_write_text(self.path / "phases" / f"{name}.json", json.dumps(record, indent=2))

    def phase_arrays(self, name: str) -> dict[str, np.ndarray]:
        """Returns the per-user arrays of a phase, empty where it has none."""
        return _read_arrays(self.path / "phases" / f"{name}.npz")

    def per_user(self) -> dict[str, np.ndarray]:
        """Returns the per-user arrays of a finished run."""
        return _read_arrays(self.path / _PER_USER)

    def save_per_user(self, arrays: dict[str, np.ndarray]) -> None:
        """Writes the per-user arrays of the whole run."""
        atomic_savez(self.path / _PER_USER, **arrays)

    def finish(self, results: dict[str, Any]) -> None:
        """Writes the results, which mark the run as finished: nothing is written after them."""
        atomic_write_text(self.path / _RESULTS, json.dumps(results, indent=2) + "\n")


def _checksums(data: dict[str, Any]) -> list[str]:
    return [file["sha256"] for file in data["files"]]


def _resolved(saved: dict[str, Any]) -> ConfigDict:
    """The config of JSON: what the run is too old to know has its default, a list is a tuple."""
    config = default_config()
    for field, value in flatten(ConfigDict(saved)):
        put(config, field, _as_tuples(value))
    return config


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list | tuple) else value


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(".tmp")


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: JSON is expected ({error})") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: a JSON object is expected")
    return found


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        return {}
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: arrays in .npz form are expected ({error})") from error
