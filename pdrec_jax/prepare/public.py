"""The paper's logs from the files that others publish, downloaded or at hand."""

from __future__ import annotations

import contextlib
import dataclasses
import lzma
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from pdrec_jax import interrupts
from pdrec_jax.data.columns import one_line
from pdrec_jax.errors import UserError
from pdrec_jax.files import beside, write_errors
from pdrec_jax.prepare.domain_logs import HEAD, DomainLog, figures_text, require_figures
from pdrec_jax.prepare.download import Patience, checksum_note, fetch, require_checksum
from pdrec_jax.prepare.origins import DOUBAN_ZIP, PAIRS, Domain, Pair, Remote
from pdrec_jax.prepare.raw_pairs import RawFile, read_raw_pair
from pdrec_jax.prepare.reference import read_pair

_MEMBER_BYTES = 256 << 20  # of a file in a zip archive
# What `zipfile` raises where an archive is damaged: a place before its beginning is an OSError, a
# name that is no text a ValueError.
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,
    OSError,
    RuntimeError,
    ValueError,
)


def prepare_pair(
    name: str,
    out: Path,
    *,
    downloads: Path,
    raw: bool = False,
    verify: bool = True,
    overwrite: bool = False,
    patience: Patience | None = None,
    pairs: dict[str, Pair] = PAIRS,
) -> str:
    """Makes the two logs of a pair of domains.

    Args:
        name: key of `pairs`.
        out: directory of the `.inter.gz` files; made if missing.
        downloads: where the published files are, or go.
        raw: from what the authors began with, not from their own files. Their filters are only
            partly known, so that what comes of it is compared with Table 2, not held to it.
        verify: whether files and results must have the recorded checksums.
        overwrite: whether logs that are there may be replaced.
        patience: how long a download is tried.
        pairs: what is known.

    Returns:
        What was made, one line a log, with notes.

    Raises:
        UserError: a file that cannot be had or is not what it should be, other figures than those
            of Table 2, or a log that is in the way; nothing is written then.
    """
    pair = pairs[name]
    domains = (pair.first, pair.second)
    paths = [out / f"{domain.name}.inter.gz" for domain in domains]
    there = [] if overwrite else [path for path in paths if path.exists()]
    # One alone may be left of a command that was killed; it may stay if it would be the same.
    if len(there) == len(paths):
        raise _in_the_way(paths[0])
    if raw:
        logs, notes = _from_raw(pair, downloads, patience, verify)
    else:
        logs, notes = _from_pickles(pair, downloads, patience, verify)
    lines = []
    for log, domain in zip(logs, domains, strict=True):
        if verify and not raw:
            require_figures(log, domain)
        if not log.figures[2]:
            raise UserError(f"{domain.name}: no records are left of its log")
        notes += _differences(log, domain)
    with write_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    contents = {}
    for log, path in zip(logs, paths, strict=True):
        contents[path], checksum = log.packed()
        # Of an earlier version it has another head, and is replaced.
        if path in there and not (
            path.is_file() and path.read_bytes()[HEAD:] == contents[path][HEAD:]
        ):
            raise _in_the_way(path)
        lines.append(f"{path}: {figures_text(*log.figures)}, content SHA-256 {checksum}")
    _write_together(contents)
    notes += [
        f"{domain.name}: its column 'order' holds the order of the records among those of the "
        "other domain"
        + ("; its times are not at hand, so weigh by position" if log.times is None else "")
        for log, domain in zip(logs, domains, strict=True)
        if log.order is not None
    ]
    return "\n".join([*lines, *(f"note: {note}" for note in notes)]) + "\n"


def _in_the_way(path: Path) -> UserError:
    return UserError(f"{path}: is there; name another --out, or add --overwrite")


def _write_together(contents: dict[Path, bytes]) -> None:
    """Writes files, all of them or none; a kill between two renames alone leaves the first."""
    temporary = {path: beside(path) for path in contents}
    try:
        for path, content in contents.items():
            with write_errors(path), temporary[path].open("xb") as file:
                file.write(content)
                file.flush()
                # Without it the rename can reach the disk before the bytes do.
                os.fsync(file.fileno())
        with interrupts.deferred():
            for path in contents:
                with write_errors(path):
                    os.replace(temporary[path], path)
    finally:
        for rest in temporary.values():
            with contextlib.suppress(OSError):
                rest.unlink()


def _from_pickles(
    pair: Pair, downloads: Path, patience: Patience | None, verify: bool
) -> tuple[tuple[DomainLog, DomainLog], list[str]]:
    files = pair.pickles
    notes: list[str] = []

    def fetched(remote: Remote, patience: Patience | None = patience) -> Path:
        path = fetch(remote, downloads, patience, verify=verify)
        notes.extend(filter(None, [checksum_note(path, remote, verify)]))
        return path

    items, times, mixed = map(fetched, (files.items, files.times, files.mixed_items))
    if files.times_needed:
        return read_pair(items, times, mixed, fetched(files.mixed_times)), notes
    try:
        # Without a network nobody shall wait for what is not needed.
        clock = fetched(files.mixed_times, dataclasses.replace(patience or Patience(), attempts=2))
        return read_pair(items, times, mixed, clock, with_order=True), notes
    except UserError as error:
        # Nobody here has seen that file, and the pair is worth having without it.
        logs = read_pair(items, times, mixed, None)
        return logs, [*notes, f"without {files.mixed_times.name}: {error}"]


def _from_raw(
    pair: Pair, downloads: Path, patience: Patience | None, verify: bool
) -> tuple[tuple[DomainLog, DomainLog], list[str]]:
    found: list[RawFile] = []
    notes: list[str] = []
    for choices in pair.raw:
        remote = next((r for r in choices if (downloads / r.name).is_file()), choices[0])
        if remote.urls or (downloads / remote.name).is_file():
            path = fetch(remote, downloads, patience, verify=verify)
        else:
            path = _unzipped(remote, downloads, patience, verify)
        notes += filter(None, [checksum_note(path, remote, verify)])
        found.append(RawFile.of(path))
    return read_raw_pair((found[0], found[1]), pair.core, pair.longest), notes


def _unzipped(remote: Remote, downloads: Path, patience: Patience | None, verify: bool) -> Path:
    """A file of RecBole-CDR's bundle."""
    bundle = fetch(DOUBAN_ZIP, downloads, patience, verify=verify)
    path = downloads / remote.name
    temporary = beside(path)
    try:
        with write_errors(path), temporary.open("xb") as file:
            for piece in _member(bundle, Path(remote.name).name):
                file.write(piece)
        require_checksum(temporary, remote, verify)
        with write_errors(path):
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _member(bundle: Path, name: str) -> Iterator[bytes]:
    """A file of a zip archive, in pieces."""
    try:
        with zipfile.ZipFile(bundle) as archive:
            inside = [
                entry
                for entry in archive.infolist()
                if Path(entry.filename).name == name and entry.file_size <= _MEMBER_BYTES
            ]
            if len(inside) != 1:
                raise UserError(f"{bundle}: one file {name} is expected in it")
            with archive.open(inside[0]) as member:
                while piece := member.read(1 << 20):
                    yield piece
    except UserError:
        raise
    except _BROKEN as error:
        raise UserError(f"{bundle}: broken zip file ({one_line(error)})") from error


def _differences(log: DomainLog, domain: Domain) -> list[str]:
    wanted = (domain.users, domain.items, domain.records)
    if log.figures == wanted:
        return []
    return [f"{domain.name}: Table 2 has {figures_text(*wanted)}"]
