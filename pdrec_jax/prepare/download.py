"""Downloads that survive a cut connection: continued where they stopped, checked, then named."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from pdrec_jax import __version__
from pdrec_jax.data.columns import unreadable
from pdrec_jax.data.readers import sha256
from pdrec_jax.errors import UserError, warn
from pdrec_jax.files import atomic_write_text, write_errors
from pdrec_jax.locks import locked
from pdrec_jax.metric_log import MetricLog
from pdrec_jax.prepare.origins import Remote

_CHUNK = 1 << 18
_LATER = {408, 425, 429, 500, 502, 503, 504}  # statuses that can pass by themselves


@dataclasses.dataclass(frozen=True)
class Patience:
    """How long a download is tried.

    Attributes:
        attempts: without more bytes than ever before; whoever gets on is not counted.
        timeout: seconds until a silent server is given up.
        wait: seconds before the second attempt, doubled each time up to a minute.
        sleep: waits.
    """

    attempts: int = 6
    timeout: float = 30.0
    wait: float = 1.0
    sleep: Callable[[float], None] = time.sleep


def fetch(
    remote: Remote, folder: Path, patience: Patience | None = None, *, verify: bool = True
) -> Path:
    """Returns a published file, from the folder if it is there, else from its addresses.

    What has come of a broken download stays beside it as `.NAME.part` and is continued. While
    another command downloads into the folder, this one waits.

    Args:
        remote: the file.
        folder: where it is or shall be; made if missing.
        patience: how long it is tried.
        verify: whether its checksum must be the recorded one.

    Returns:
        Its path.

    Raises:
        UserError: a wrong checksum, no address that works, or a folder that cannot be written.
    """
    path, patience = folder / remote.name, patience or Patience()
    if not path.is_file():
        if not remote.urls:
            raise UserError(f"{path}: no such file, and no address to download it from")
        with write_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path.parent, patience):
            # Who was waited for may have brought it.
            if not path.is_file():
                _from_addresses(path, remote, patience, verify)
                return path
    require_checksum(path, remote, verify)
    return path


@contextlib.contextmanager
def _alone(folder: Path, patience: Patience) -> Iterator[None]:
    """Waits for other commands that download into a folder, and lets others wait.

    Two that wrote one `.part` would ruin it for each other.
    """
    told = False
    while True:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(folder))
            except UserError as error:
                if not isinstance(error.__cause__, BlockingIOError):
                    raise
            else:
                yield
                return
        if not told:
            warn(f"{folder}: another command downloads into it, which is waited for")
        told = True
        patience.sleep(patience.wait)


def _from_addresses(path: Path, remote: Remote, patience: Patience, verify: bool) -> None:
    problems = []
    for url in remote.urls:
        try:
            _download(url, path, remote, patience, verify)
            return
        except _Unreachable as error:
            problems.append(f"{url}: {error}")
            if isinstance(error, _Wrong) and len(remote.urls) == 1:
                raise UserError(problems[0]) from error
    raise UserError(
        f"{remote.name}: cannot be downloaded ({'; '.join(problems)}); "
        f"put the file at {path} by hand"
    )


def require_checksum(path: Path, remote: Remote, verify: bool = True) -> None:
    """Checks a file against its recorded checksum, where there is one.

    Args:
        path: the file.
        remote: what it should be.
        verify: False accepts any content.

    Raises:
        UserError: another content.
    """
    if verify and (wrong := _misfit(path, remote)) is not None:
        raise UserError(
            f"{path}: wrong checksum: {wrong}; remove the file to download it anew, or accept it "
            "with --unverified"
        )


def _misfit(path: Path, remote: Remote) -> str | None:
    """Which checksum is expected of a file and which was found; None where they are one."""
    if remote.sha256 is not None:
        kind, wanted, found = "SHA-256", remote.sha256, sha256(path)
    elif remote.git_blob is not None:
        kind, wanted, found = "Git object", remote.git_blob, _git_blob(path)
    else:
        return None
    return None if found == wanted else f"{kind} {wanted} is expected, found {found}"


def _git_blob(path: Path) -> str:
    """The name that Git has for a file of these bytes."""
    # SHA-1 fails where somebody makes two files alike, not where one is known already.
    try:
        digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise unreadable(path, error) from error
    return digest.hexdigest()


class _Unreachable(Exception):
    """An address that does not give the file."""


class _Wrong(_Unreachable):
    """An address that gives another file, such as a page that says why it does not give this."""


class _Cut(Exception):
    """A transfer that ended too early, and may go on."""


def _download(url: str, path: Path, remote: Remote, patience: Patience, verify: bool) -> None:
    part = path.with_name(f".{path.name}.part")
    stamp = path.with_name(f".{path.name}.part.version")
    failures, most = 0, _kept(part, stamp)[0]
    while True:
        wrong, whole = None, False
        try:
            whole = _transfer(url, part, stamp, patience.timeout)
        except (_Cut, OSError, http.client.HTTPException) as error:
            reason = _reason(error)
        else:
            wrong = _misfit(part, remote) if verify else None
            if wrong is None:
                break
            reason = f"wrong checksum: {wrong}"
        # More than the last time is not enough: a server without parts that is cut here and there
        # begins anew each time, and would for ever.
        size = part.stat().st_size if part.exists() else 0
        failures = 0 if size > most else failures + 1
        most = max(most, size)
        # An answer that named no length may have been cut short unseen.
        if wrong is not None and (whole or failures >= patience.attempts):
            _remove(part, stamp)
            raise _Wrong(f"{reason}; nothing was kept")
        if failures >= patience.attempts:
            raise _Unreachable(f"{reason}, {failures} times")
        patience.sleep(min(60.0, patience.wait * 2 ** max(failures - 1, 0)))
    with write_errors(path):
        os.replace(part, path)
    _remove(stamp)


def _transfer(url: str, part: Path, stamp: Path, timeout: float) -> bool:
    """Gets what is missing of a file.

    Returns:
        Whether the file is known to be whole; not where the answer named no length.

    Raises:
        _Unreachable: an answer that will not change.
        _Cut: the connection ended before the file did.
        OSError: a network that does not work, at the moment.
    """
    have, version = _kept(part, stamp)
    request = urllib.request.Request(url, headers={"User-Agent": f"pdrec-jax/{__version__}"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        # A server whose file has changed then sends all of it.
        request.add_header("If-Range", version)
    try:
        answer = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have and error.headers.get("Content-Range") == f"bytes */{have}":
            return True  # all of it is there, which a kill before its checksum leaves
        if error.code == 416:
            _remove(part, stamp)
            raise _Cut("the server knows no such part") from error
        if error.code in _LATER:
            raise _Cut(f"status {error.code}") from error
        raise _Unreachable(f"status {error.code} {error.reason}".strip()) from error
    except ValueError as error:
        raise _Unreachable(str(error)) from error
    with answer:
        if answer.status != 206:
            have = 0
        elif not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            _remove(part, stamp)
            raise _Cut("the server sent another part than was asked for")
        length = _number(answer.headers.get("Content-Length", ""))
        total = None if length is None else have + length
        if answer.status == 206:
            # It may be a part of what was asked for, and the rest is asked for again.
            whole = _number(answer.headers["Content-Range"].rpartition("/")[2])
            total = total if whole is None else whole
        if have == 0:
            _remove(part)
            new = answer.headers.get("ETag", "") or answer.headers.get("Last-Modified", "")
            # A weak tag is no promise of equal bytes.
            atomic_write_text(stamp, "" if new.startswith("W/") else new)
        _append(answer, part, have, total)
    return total is not None


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None


def _append(answer: http.client.HTTPResponse, part: Path, have: int, total: int | None) -> None:
    name = part.name.removeprefix(".").removesuffix(".part")
    log = MetricLog(None)
    with (
        log.progress(f"download {name}", (total or 0) >> 10, "KiB", have >> 10) as progress,
        contextlib.ExitStack() as stack,
    ):
        with write_errors(part):
            file = stack.enter_context(part.open("ab", buffering=0))
        shown = have
        while chunk := answer.read(_CHUNK):
            with write_errors(part):
                rest = memoryview(chunk)
                while rest:
                    rest = rest[file.write(rest) :]
            have += len(chunk)
            progress.update((have >> 10) - (shown >> 10))
            shown = have
        with write_errors(part):
            os.fsync(file.fileno())
    if total is not None and have != total:
        raise _Cut(f"the connection ended after {have:,} of {total:,} bytes")


def _kept(part: Path, stamp: Path) -> tuple[int, str]:
    """How much of a file is there, and of which version; 0 where nobody knows the version."""
    try:
        version = stamp.read_text(encoding="utf-8")
        size = part.stat().st_size
    except (OSError, ValueError):
        return 0, ""
    return (size, version) if version else (0, "")


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.URLError):
        error = error.reason if isinstance(error.reason, Exception) else error
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return " ".join(str(error).split()) or type(error).__name__


def _remove(*paths: Path) -> None:
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def checksum_note(path: Path, remote: Remote, verify: bool) -> str | None:
    """What is to be said of a file whose content nobody has vouched for.

    Args:
        path: the file.
        remote: what it should be.
        verify: whether its checksum was compared.

    Returns:
        One line with its SHA-256, or None where it is the recorded one.
    """
    if remote.sha256 is None and remote.git_blob is None:
        return f"{path.name}: no checksum is on record, found SHA-256 {sha256(path)}"
    if not verify and _misfit(path, remote) is not None:
        return f"{path.name}: accepted unverified, SHA-256 {sha256(path)}"
    return None
