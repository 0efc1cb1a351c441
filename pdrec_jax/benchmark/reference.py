"""The PyTorch reference beside this package: a clone of github hulkima/PDRec that the user names.

Its two scripts run unchanged in processes of their own (``torch_child``) on the same log, and take
turns with this package's contestants. Nothing of the reference is part of this package.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pdrec_jax.benchmark.contest import Contestant, Elapsed
from pdrec_jax.benchmark.sizes import Sizes
from pdrec_jax.data.compressed import offsets_of
from pdrec_jax.data.interactions import SOURCE, Interactions
from pdrec_jax.data.splits import Split
from pdrec_jax.errors import UserError

DIFFUSION, ENCODER = "TI_DiffRec.py", "PDRec.py"
BASE_MODELS = {"sasrec": "SASRec", "gru4rec": "GRU4Rec"}  # its names of our encoders
_NEEDED = (DIFFUSION, ENCODER, "models/DNN.py", "models/gaussian_diffusion.py", "utils/utils.py")
_USERS = 600  # enough for its batches of 400; its matrices [users, items] grow with them
_TOY = "amazon_toy"  # the name by which its scripts take the branch for two domains
_LAST_LINES = 400  # characters of its error that are shown


def check_clone(directory: Path) -> None:
    """Checks that a directory holds the reference and that what runs it is installed.

    Raises:
      UserError: a file or a library is missing.
    """
    for name in _NEEDED:
        if not (directory / name).is_file():
            raise UserError(
                f"--reference={directory}: no {name}; a clone of github hulkima/PDRec is expected"
            )
    for library in ("torch", "sklearn"):
        if importlib.util.find_spec(library) is None:
            raise UserError(
                f"--reference: {library} is missing; pip install '.[bench]' in the folder of the "
                "source code"
            )


def write_feed(path: Path, split: Split) -> None:
    """Writes the part of a split that the reference's scripts are fed with.

    Args:
      path: of the ``.npz``.
      split: of a log with two domains.

    Raises:
      UserError: one domain only, or too few users for a batch of the reference.
    """
    mixed = split.mixed
    if mixed is None or mixed.domains is None or mixed.times is None or split.train.times is None:
        raise UserError("--reference: its scripts need a log of two domains with times")
    assert split.valid_times is not None
    assert split.test_times is not None
    fit = (split.source_lengths > 1) & (split.train.lengths > 1)
    users = np.flatnonzero(fit)[:_USERS]
    if len(users) < _USERS:
        raise UserError(f"--reference: {_USERS} users with two events in each domain are needed")
    source = mixed.domains == SOURCE
    arrays: dict[str, Any] = {
        "num_items": mixed.num_items,
        "num_target_items": split.train.num_items,
        "valid": split.valid_items[users],
        "test": split.test_items[users],
        "valid_times": split.valid_times[users],
        "test_times": split.test_times[users],
    }
    for name, log, keep in (
        ("mixed", mixed, np.ones_like(source)),
        ("source", mixed, source),
        ("target", split.train, np.ones(split.train.num_events, bool)),
    ):
        arrays |= {f"{name}_{part}": value for part, value in _rows(log, users, keep).items()}
    np.savez(path, **arrays)


def _rows(log: Interactions, users: np.ndarray, keep: np.ndarray) -> dict[str, np.ndarray]:
    assert log.times is not None
    index = [np.arange(log.offsets[u], log.offsets[u + 1]) for u in users]
    index = [row[keep[row]] for row in index]
    events = np.concatenate(index)
    lengths = np.array([len(row) for row in index])
    offsets = offsets_of(lengths)
    return {"offsets": offsets, "items": log.items[events], "times": log.times[events]}


class Script:
    """One of the reference's scripts, held between its steps.

    Args:
      process: that runs it.
      commands: write end of what it is asked.
      answers: read end of what it answers.
      errors: file that its error stream goes to.
    """

    def __init__(self, process: subprocess.Popen[bytes], commands: Any, answers: Any, errors: Path):
        self._process, self._commands, self._answers = process, commands, answers
        self._errors = errors

    def ask(self, what: str, count: int) -> Elapsed:
        """Lets it do some work; returns how long that took it.

        Args:
          what: as ``torch_child`` names it.
          count: steps or users.

        Raises:
          UserError: the script failed.
        """
        line = ""
        with contextlib.suppress(BrokenPipeError):
            self._commands.write(json.dumps({"what": what, "count": count}) + "\n")
            self._commands.flush()
            line = self._answers.readline()
        if not line:
            said = self._errors.read_text(encoding="utf-8", errors="replace").strip()
            raise UserError(f"--reference: its script failed: {said[-_LAST_LINES:] or 'no word'}")
        answer = json.loads(line)
        return Elapsed(answer["seconds"], answer["own_bytes"] + answer["sampler_bytes"])

    def contestant(self, name: str, what: str, count: int) -> Contestant:
        """Makes a contestant of it.

        Args:
          name: of the row.
          what: see ``ask``.
          count: units of one call.
        """
        return Contestant(name, lambda: self.ask(what, count), count, foreign=True)


@contextlib.contextmanager
def running(directory: Path, script: str, sizes: Sizes, split: Split) -> Iterator[Script]:
    """Runs a script of the reference for the length of the block.

    Args:
      directory: of the clone.
      script: ``DIFFUSION`` or ``ENCODER``.
      sizes: of the work.
      split: what it is fed with.

    Raises:
      UserError: see ``write_feed``.
    """
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        feed, errors = scratch / "feed.npz", scratch / "errors.txt"
        write_feed(feed, split)
        asked, commands = os.pipe()
        answers, answered = os.pipe()
        words = [sys.executable, "-m", "pdrec_jax.benchmark.torch_child", str(directory.resolve())]
        words += [str(feed), str(asked), str(answered), "--", script, *_arguments(script, sizes)]
        root = str(Path(__file__).resolve().parents[2])
        paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        with open(errors, "wb") as stream:
            process = subprocess.Popen(
                words,
                cwd=scratch,
                env=os.environ | {"PYTHONPATH": paths},
                pass_fds=(asked, answered),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stream,
            )
        os.close(asked)
        os.close(answered)
        stack.callback(process.wait)
        # Closing the pipe is how it is told to end.
        writer = stack.enter_context(os.fdopen(commands, "w", encoding="utf-8"))
        reader = stack.enter_context(os.fdopen(answers, encoding="utf-8"))
        yield Script(process, writer, reader, errors)


def _arguments(script: str, sizes: Sizes) -> list[str]:
    """What its README gives for Toy, at the benchmark's sizes."""
    shared = [f"--dataset={_TOY}", f"--dims=[{sizes.hidden}]", f"--steps={sizes.noise_steps}"]
    if script == DIFFUSION:
        return [
            *shared,
            *("--noise_scale=0.01", "--noise_min=0.0005", "--noise_max=0.005"),
            *("--lr=5e-5", "--w_min=0.5", "--reweight=1"),
            f"--batch_size={sizes.diffusion_batch}",
        ]
    return [
        *shared,
        f"--base_model={BASE_MODELS.get(sizes.encoder, 'SASRec')}",
        *("--lr=0.005", "--temperature=5", "--rank_weight=0.1"),
        *("--scale_weight=4", "--scale_max=1", "--candidate_min_percentage_user=90"),
        *("--top_candidate_coarse_num=50", "--top_candidate_fine_num=5"),
        "--top_candidate_weight=0.05",
        f"--batch_size={sizes.encoder_batch}",
        f"--hidden_units={sizes.width}",
        f"--num_blocks={sizes.blocks}",
        f"--maxlen={sizes.max_length}",
    ]
