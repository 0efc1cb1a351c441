"""The seal of a directory: the size and checksum of each of its files, written last.

Whoever reads the directory can tell by it whether a file is missing, cut short or changed. It does
not protect against somebody who writes a manifest of their own.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from pdrec_jax.files import atomic_write_text

NAME = "manifest.json"
ABSENT = f"no {NAME}"


def seal(directory: Path) -> None:
    """Brings all files of a directory to the disk and writes its manifest.

    Args:
        directory: no file in it changes any more.

    Raises:
        UserError: the disk is full.
        OSError: a file cannot be read.
    """
    files: dict[str, list[Any]] = {}
    for path in sorted(directory.rglob("*")):
        if path.is_dir():
            sync(path)
        elif path.relative_to(directory).as_posix() != NAME:
            with path.open("rb") as file:
                os.fsync(file.fileno())
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                files[path.relative_to(directory).as_posix()] = [file.tell(), digest]
    atomic_write_text(directory / NAME, json.dumps({"sha256": files}, indent=1) + "\n")
    sync(directory)


def sync(directory: Path) -> None:
    """Brings the names in a directory to the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fault(directory: Path, *, contents: bool = True) -> str | None:
    """What is wrong with a directory by its manifest.

    Args:
        directory: that ``seal`` has sealed.
        contents: whether the files are read and held against their checksums, or only their sizes
            are looked at.

    Returns:
        A few words on the first fault, ``ABSENT`` where there is no manifest, None where the
        directory is as it was sealed. Files that were added later do not count.
    """
    try:
        text = (directory / NAME).read_bytes()
    except FileNotFoundError:
        return ABSENT
    except OSError as error:
        return f"{NAME} cannot be read: {error.strerror}"
    try:
        files = json.loads(text)["sha256"]
        expected = {str(name): (int(size), str(digest)) for name, (size, digest) in files.items()}
    except (
        ArithmeticError,  # a size of 1e999, which is read as infinite
        AttributeError,
        KeyError,
        RecursionError,
        TypeError,
        ValueError,
    ):
        return f"{NAME} is damaged"
    for name, (size, digest) in expected.items():
        path = directory / name
        try:
            with path.open("rb") as file:
                found = os.fstat(file.fileno()).st_size
                if found != size:
                    return f"{name} has {found:,} bytes, {size:,} were saved"
                if contents and hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    return f"{name} has other bytes than were saved"
        except FileNotFoundError:
            return f"{name} is missing"
        except (OSError, ValueError) as error:
            return f"{name} cannot be read: {getattr(error, 'strerror', None) or error}"
    return None
