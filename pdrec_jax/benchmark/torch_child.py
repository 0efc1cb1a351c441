"""Runs a script of the PyTorch reference unchanged, and hands out its steps on request.

python -m pdrec_jax.benchmark.torch_child DIRECTORY FEED COMMANDS ANSWERS -- SCRIPT ARGUMENT...

The script's own loops call its sampler before each step and its reverse loop before each user.
Those two calls are where it is held: each waits until the benchmark asks for more, so that
reference and package can take turns. Nothing else of the script changes, but for what a machine
without its data, its GPU or its PyTorch 1.12 lacks: the log comes from FEED, a trained model is
replaced by a fresh one, and where there is no GPU its ``cuda`` means the CPU.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import itertools
import json
import os
import re
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn
from unittest import mock

import numpy as np

_WARM_UP = 1  # untimed steps of a turn with sampler processes, which start it with nothing ready
_NONZEROS = 12  # of a random interaction vector, the mean on Toy


class Turns:
    """The conversation with the benchmark: one JSON line asks, one answers.

    Args:
      commands: descriptor to read from.
      answers: descriptor to write to.
    """

    def __init__(self, commands: int, answers: int):
        self._commands = os.fdopen(commands, encoding="utf-8")
        self._answers = os.fdopen(answers, "w", encoding="utf-8")
        self._left, self._warm, self._count, self._begun = 0, 0, 0, 0.0
        self._held: dict[str, Any] | None = None
        self.done: Callable[[], None] = lambda: None

    def wait(self) -> Any:
        """Returns the request held back or the next one; ends the process once nobody asks."""
        request, self._held = self._held, None
        if request is None:
            line = self._commands.readline()
            if not line:
                end(0)
            request = json.loads(line)
        return request

    def hold(self, request: dict[str, Any]) -> None:
        """Leaves a request to a later part of the script."""
        self._held = request

    def answer(self, seconds: float) -> None:
        """Sends the time of a request, and the memory of this process and its samplers."""
        own, samplers = _peak(os.getpid()), sum(_peak(child) for child in _children())
        self._answers.write(
            json.dumps({"seconds": seconds, "own_bytes": own, "sampler_bytes": samplers}) + "\n"
        )
        self._answers.flush()

    def begin(self, count: int, warm_up: int = 0) -> None:
        """Lets the script go on for ``warm_up + count`` rounds and times the last ``count``."""
        self._left, self._warm, self._count = count + warm_up, warm_up, count
        self._begun = time.perf_counter()

    def restart(self) -> None:
        """Starts the clock anew."""
        self._begun = time.perf_counter()

    def round(self, synchronise: Callable[[], None]) -> bool:
        """Marks the start of a round; False once those that were asked for are done."""
        if self._left == 0:
            if self._count:
                synchronise()
                seconds, self._count = time.perf_counter() - self._begun, 0
                self.done()
                self.answer(seconds)
            return False
        if self._warm and self._left == self._count:
            synchronise()
            self._warm, self._begun = 0, time.perf_counter()
        self._left -= 1
        return True


def end(status: int) -> NoReturn:
    """Ends the process and its samplers at once.

    A clean exit would wait for the samplers, which are stopped, for ever.
    """
    for child in _children():
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    sys.stderr.flush()
    os._exit(status)


def _children(parent: int | None = None) -> list[int]:
    """Processes started by a process, this one where none is given; none where /proc is not."""
    parent, found = parent or os.getpid(), []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
            if int(fields[1]) == parent:
                found.append(int(path.parent.name))
    return found


def _peak(process: int) -> int:
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace")
        if found := re.search(r"^VmHWM:\s+(\d+) kB", text, re.M):
            return int(found[1]) * 1024
    return 0


def _signal_samplers(number: int) -> None:
    for child in _children():
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)


def read_feed(path: str) -> list[Any]:
    """Reads what the script's own loader would return, in its order: 15 values.

    Args:
      path: ``.npz`` of ``reference.write_feed``: CSR arrays of users 1..U, items of the target
        numbered from 1, those of the source behind them.
    """
    with np.load(path, allow_pickle=False) as file:
        feed = {name: file[name] for name in file.files}
    users = len(feed["valid"])

    def rows(part: str, values: str) -> dict[int, list[Any]]:
        offsets, flat = feed[f"{part}_offsets"], feed[f"{part}_{values}"].tolist()
        return {u + 1: flat[offsets[u] : offsets[u + 1]] for u in range(users)}

    def ones(name: str) -> dict[int, list[Any]]:
        return {u + 1: [value] for u, value in enumerate(feed[name].tolist())}

    parts = ("mixed", "source", "target")
    items, times = ([rows(part, kind) for part in parts] for kind in ("items", "times"))
    # Where in another log a target event falls: read by the sampler, used by nothing after it.
    places = [{u: [-1] * len(events) for u, events in items[2].items()} for _ in range(2)]
    sizes = [users, int(feed["num_items"]), int(feed["num_target_items"])]
    held = [ones("valid"), ones("test")], [ones("valid_times"), ones("test_times")]
    return [*items, *held[0], *places, *sizes, *times, *held[1]]


def _cuda_is_the_cpu(torch: Any) -> None:
    """Lets a script that asks for ``cuda`` everywhere run where there is none."""

    def here(value: Any) -> Any:
        return "cpu" if str(value).startswith("cuda") else value

    def without_device(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if "device" in kwargs:
                kwargs["device"] = here(kwargs["device"])
            return function(*args, **kwargs)

        return call

    def moves(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            return function(self, *(here(value) for value in args), **kwargs)

        return call

    for name in ("arange", "ones", "rand", "randint", "tensor", "zeros"):
        setattr(torch, name, without_device(getattr(torch, name)))
    for kind in (torch.Tensor, torch.nn.Module):
        kind.cuda = lambda self, *args, **kwargs: self
        kind.to = moves(kind.to)


def _prepare(directory: str, feed: str) -> SimpleNamespace:
    """Readies the imports of a script; returns what the hooks need of them."""
    # By name, because neither PyTorch nor the reference is there when this is checked.
    torch: Any = importlib.import_module("torch")
    # Tools that the scripts import and whose work is of no interest here.
    for name in (
        "ipdb",
        "dill",
        *(f"matplotlib{part}" for part in ("", ".pyplot", ".font_manager")),
    ):
        sys.modules[name] = mock.MagicMock()
    if importlib.util.find_spec("sklearn") is None:
        raise SystemExit("its evaluation needs scikit-learn: install the extra 'bench'")
    if not torch.cuda.is_available():
        _cuda_is_the_cpu(torch)
    sys.path.insert(0, directory)
    diffusion: Any = importlib.import_module("models.gaussian_diffusion")
    tools: Any = importlib.import_module("utils.utils")
    schedulers = torch.optim.lr_scheduler
    plain = schedulers.ExponentialLR
    # PyTorch has since dropped the argument.
    schedulers.ExponentialLR = lambda *args, verbose=None, **kwargs: plain(*args, **kwargs)
    torch.load = lambda *args, **kwargs: sys._getframe(1).f_globals["model_diff"]
    torch.save = lambda *args, **kwargs: None
    tools.data_partition = lambda *args: read_feed(feed)
    evaluations = {}
    for name in ("evaluate_PDRec", "evaluate_T_DiffRec_TI"):
        evaluations[name] = getattr(tools, name)
        # Rising figures, so that the script never stops early.
        better = itertools.count(1)
        setattr(tools, name, lambda *args, better=better: (float(next(better)),) * 12)
    return SimpleNamespace(
        torch=torch,
        tools=tools,
        diffusion=diffusion.GaussianDiffusion,
        p_sample=diffusion.GaussianDiffusion.p_sample,
        evaluations=evaluations,
        synchronise=torch.cuda.synchronize if torch.cuda.is_available() else lambda: None,
    )


def _direct(request: dict[str, Any], scope: dict[str, Any], libraries: Any) -> float | None:
    """Serves a request that needs no turn of the script; returns its seconds, None if it does."""
    torch, count = libraries.torch, int(request["count"])
    model = scope.get("model_diff", scope["model"])
    work: Callable[[], Any]
    if request["what"] == "reverse":
        x = _vectors(torch, count, scope["itemnum"], scope["interval"])

        def work() -> Any:
            with torch.no_grad():
                return libraries.p_sample(scope["diffusion"], model, x, 0, False)
    elif request["what"] == "diffusion step":
        size = scope["args"].batch_size
        x = _vectors(torch, size, scope["itemnum"], scope["interval"])

        def work() -> Any:
            for _ in range(count):
                scope["optimizer"].zero_grad()
                losses = scope["diffusion"].training_losses(model, x, scope["args"].reweight)
                losses["loss"].mean().backward()
                scope["optimizer"].step()
    elif request["what"] == "diffusion evaluation":
        dataset = list(scope["dataset"])
        dataset[7] = count
        bounds = [scope[f"random_{name}"] for name in ("min", "max", "source_min", "source_max")]
        evaluate = libraries.evaluations["evaluate_T_DiffRec_TI"]

        def work() -> Any:
            return evaluate(model, scope["diffusion"], dataset, scope["args"], *bounds)
    elif request["what"] == "encoder evaluation":
        model = scope["model"]
        evaluate, users = libraries.evaluations["evaluate_PDRec"], scope["user_list"][:count]

        def work() -> Any:
            return evaluate(model, scope["dataset"], scope["args"], users)
    else:
        return None
    evaluates = request["what"] != "diffusion step"
    model.train(not evaluates)
    libraries.synchronise()
    begun = time.perf_counter()
    work()
    libraries.synchronise()
    seconds = time.perf_counter() - begun
    scope["model"].train()
    return seconds


def _vectors(torch: Any, count: int, num_items: int, num_target_items: int) -> Any:
    rng = np.random.default_rng(0)
    x = np.zeros((count, num_items + 1), np.float32)
    for row in x:
        row[1 + rng.choice(num_target_items, _NONZEROS, replace=False)] = rng.uniform(0.5, 1.0)
    return torch.tensor(x, device="cuda")


def _canned(batch: Any) -> list[np.ndarray]:
    """A batch whose conversion costs nothing to speak of, for the model alone.

    Of the encoder's 14 arrays those over all items are converted by the script and not read.
    """
    return [
        np.zeros((1, 1), np.float32) if array.dtype == np.float32 else array
        for array in map(np.array, batch)
    ]


def _stopped_after(start: Callable[..., None]) -> Callable[..., None]:
    """Stops a sampler's processes as soon as they are started; they run in their turns alone."""

    def initialise(self: Any, *args: Any, **kwargs: Any) -> None:
        start(self, *args, **kwargs)
        _signal_samplers(signal.SIGSTOP)

    return initialise


def install(turns: Turns, libraries: Any) -> None:
    """Holds the script at its sampler and at its reverse loop.

    Args:
      turns: the conversation.
      libraries: of ``_prepare``.
    """
    state = SimpleNamespace(canned=None, alone=False, filling=True, preference=None)

    def serve(scope: dict[str, Any], here: tuple[str, ...]) -> bool:
        """Answers requests until one needs rounds of the script; False where not of this loop."""
        while True:
            request = turns.wait()
            with mock.patch.object(libraries.diffusion, "p_sample", libraries.p_sample):
                seconds = _direct(request, scope, libraries)
            if seconds is not None:
                turns.answer(seconds)
            elif request["what"] not in here:
                turns.hold(request)
                return False
            else:
                state.alone = request["what"] == "encoder step"
                with_samplers = request["what"] == "step as shipped"
                if with_samplers:
                    _signal_samplers(signal.SIGCONT)
                turns.done = functools.partial(_signal_samplers, signal.SIGSTOP)
                turns.begin(request["count"], _WARM_UP if with_samplers else 0)
                return True

    def p_sample(self: Any, model: Any, x: Any, *rest: Any) -> Any:
        if state.filling and not turns.round(libraries.synchronise):
            state.filling = serve(sys._getframe(1).f_globals, ("preferences",))
            if state.filling:
                turns.round(libraries.synchronise)
        if state.filling:
            return libraries.p_sample(self, model, x, *rest)
        if state.preference is None:
            state.preference = libraries.torch.rand(x.shape, device="cuda")
        return state.preference

    def next_batch(sampler: Any) -> Any:
        if not turns.round(libraries.synchronise):
            if not serve(sys._getframe(1).f_globals, ("encoder step", "step as shipped")):
                raise SystemExit("preferences are asked for after the loop that fills them")
            if state.alone and state.canned is None:
                _signal_samplers(signal.SIGCONT)
                state.canned = _canned(sampler.result_queue.get())
                _signal_samplers(signal.SIGSTOP)
                turns.restart()
            turns.round(libraries.synchronise)
        return state.canned if state.alone else sampler.result_queue.get()

    for name in dir(libraries.tools):
        if name.startswith("WarpSampler"):
            kind = getattr(libraries.tools, name)
            kind.next_batch = next_batch
            kind.__init__ = _stopped_after(kind.__init__)
    libraries.diffusion.p_sample = p_sample


def main(arguments: list[str]) -> NoReturn:
    """Runs the command line, see the module.

    Args:
      arguments: without the program's name.
    """
    directory, feed, commands, answers, _, script, *rest = arguments
    turns = Turns(int(commands), int(answers))
    try:
        install(turns, _prepare(directory, feed))
        sys.argv = [script, *rest]
        runpy.run_path(str(Path(directory) / script), run_name="__main__")
        print("it ended before the benchmark did", file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    end(1)


if __name__ == "__main__":
    main(sys.argv[1:])
