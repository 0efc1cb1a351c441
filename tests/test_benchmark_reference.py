"""The reference's place in the benchmark, held by a stand-in for its clone and for PyTorch."""

import dataclasses
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pdrec_jax.benchmark import reference, side_by_side, suite, tables, torch_child
from pdrec_jax.benchmark.contest import Elapsed, Result, Row
from pdrec_jax.benchmark.sizes import Sizes
from pdrec_jax.benchmark.workload import make_workload
from pdrec_jax.data.interactions import SOURCE
from pdrec_jax.data.splits import Split
from pdrec_jax.errors import UserError

SIZES = Sizes(users=1500, items=400, source_items=300, hidden=4, diffusion_batch=8)
TORCH = """
import numpy as np
class Tensor(np.ndarray):
    def cuda(self): raise RuntimeError("no GPU")
    def to(self, device): raise RuntimeError("no GPU")
def _make(function):
    def make(*args, device="cpu"):
        assert device == "cpu"
        return function(*args)
    return make
arange, ones, rand, randint, tensor, zeros = map(_make, (
    np.arange, np.ones, lambda shape: np.ones(shape), np.ones, np.array, np.zeros))
class no_grad:
    def __enter__(self): pass
    def __exit__(self, *args): pass
class _Space: pass
class _Plain:
    def __init__(self, optimizer): pass
nn, cuda, optim = _Space(), _Space(), _Space()
class Module:
    def cuda(self): raise RuntimeError("no GPU")
    def to(self, device): raise RuntimeError("no GPU")
nn.Module = Module
cuda.is_available = lambda: False
optim.lr_scheduler = _Space()
optim.lr_scheduler.ExponentialLR = _Plain
"""
DIFFUSION = """
import time
class GaussianDiffusion:
    def p_sample(self, model, x, steps, noise):
        time.sleep(0.01)
        return x
"""
TOOLS = """
import time
from multiprocessing import Process, Queue
import numpy as np
def data_partition(*args): raise RuntimeError("reads pickles")
def _fill(queue):
    number = 0
    while True:
        queue.put(zip(*[(number, np.zeros(700, np.float32))]))
        number += 1
class WarpSampler_X:
    def __init__(self):
        self.result_queue = Queue(maxsize=2)
        worker = Process(target=_fill, args=(self.result_queue,), daemon=True)
        worker.start()
    def next_batch(self): return self.result_queue.get()
def evaluate_PDRec(model, dataset, args, users):
    time.sleep(0.002 * len(users))
def evaluate_T_DiffRec_TI(*args): pass
"""
SCRIPT = """
import sys, time, types
import ipdb, dill, matplotlib.pyplot
from utils.utils import *
import models.gaussian_diffusion as gd
import torch
args = types.SimpleNamespace(maxlen=5)
dataset = data_partition(None)
usernum, itemnum, interval = dataset[7:10]
user_list = list(range(1, usernum))
class Model(torch.nn.Module):
    def train(self, mode=True): self.mode = mode
model = Model().cuda()
torch.optim.lr_scheduler.ExponentialLR(None, verbose=True)
adam_optimizer = None
diffusion, model_diff = gd.GaussianDiffusion(), Model()
model_diff = torch.load("none")
sampler = WarpSampler_X()
for user in range(1, usernum + 1):
    diffusion.p_sample(model_diff, torch.ones((1, itemnum + 1), device="cuda"), 0, False)
seen = []
for step in range(1000):
    number, vector = sampler.next_batch()
    seen.append(int(number[0]))
    time.sleep(0.003)
"""


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    files = {
        "libraries/torch.py": TORCH,
        "libraries/sklearn.py": "",
        "clone/models/gaussian_diffusion.py": DIFFUSION,
        "clone/models/DNN.py": "",
        "clone/utils/utils.py": TOOLS,
        "clone/PDRec.py": SCRIPT,
        "clone/TI_DiffRec.py": "raise ValueError('not today')",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "libraries"))
    return tmp_path / "clone"


@pytest.fixture(scope="module")
def split() -> Split:
    return make_workload(SIZES, "simulated").split


def test_feed_holds_what_the_split_holds(split: Split, tmp_path: Path) -> None:
    reference.write_feed(tmp_path / "feed.npz", split)
    dataset = torch_child.read_feed(str(tmp_path / "feed.npz"))
    mixed, source, target, valid, test = dataset[:5]
    places, (users, items, interval), times = dataset[5:7], dataset[7:10], dataset[10]
    assert (users, items, interval) == (600, split.mixed.num_items, split.train.num_items)
    assert list(mixed) == list(range(1, users + 1))
    fit = np.flatnonzero((split.source_lengths > 1) & (split.train.lengths > 1))
    for number in (1, 7, users):
        user = fit[number - 1]
        events = slice(*split.mixed.offsets[user : user + 2])
        np.testing.assert_array_equal(mixed[number], split.mixed.items[events])
        np.testing.assert_array_equal(times[number], split.mixed.times[events])
        np.testing.assert_array_equal(
            source[number], split.mixed.items[events][split.mixed.domains[events] == SOURCE]
        )
        events = slice(*split.train.offsets[user : user + 2])
        np.testing.assert_array_equal(target[number], split.train.items[events])
        assert max(target[number]) <= interval < min(source[number])
        assert valid[number] == [split.valid_items[user]]
        assert test[number] == [split.test_items[user]]
        assert len(places[0][number]) == len(target[number])


def test_a_script_is_held_between_its_steps(clone: Path, split: Split) -> None:
    with reference.running(clone, reference.ENCODER, SIZES, split) as script:
        # The reverse loop sleeps 10 ms a user, a step 3 ms, the evaluation 2 ms a user.
        assert 0.03 <= script.ask("preferences", 3).seconds < 0.3
        assert 0.01 <= script.ask("reverse", 4).seconds < 0.1
        assert 0.02 <= script.ask("encoder evaluation", 10).seconds < 0.2
        assert 0.015 <= script.ask("encoder step", 5).seconds < 0.15
        shipped = script.ask("step as shipped", 4)
        assert 0.012 <= shipped.seconds < 1
        assert shipped.peak_bytes > 2**20
        assert 0.006 <= script.ask("encoder step", 2).seconds < 0.06
        child = script._process.pid
        samplers = torch_child._children(child)
        assert len(samplers) == 1
    for process in (child, *samplers):
        deadline = time.monotonic() + 5
        while _alive(process) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not _alive(process)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    return state != "Z"


def test_a_script_that_fails_says_why(clone: Path, split: Split) -> None:
    with (
        reference.running(clone, reference.DIFFUSION, SIZES, split) as script,
        pytest.raises(UserError, match="not today"),
    ):
        script.ask("diffusion step", 1)


def test_a_request_after_its_time_is_refused(clone: Path, split: Split) -> None:
    with reference.running(clone, reference.ENCODER, SIZES, split) as script:
        script.ask("encoder step", 1)
        with pytest.raises(UserError, match="after the loop"):
            script.ask("preferences", 1)


def test_what_is_no_clone_costs_one_line(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"no TI_DiffRec\.py; a clone of github hulkima/PDRec"):
        reference.check_clone(clone.parent)
    monkeypatch.setattr(reference.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="torch is missing"):
        reference.check_clone(clone)


def test_a_stage_that_the_reference_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "check_clone", lambda directory: None)
    with pytest.raises(UserError, match=r"^--reference: it has no such stage; --stage=all or "):
        suite.run(
            ["reverse"],
            SIZES,
            source="simulated",
            repeats=1,
            out=None,
            reference=Path("clone"),
        )


def test_one_domain_is_refused(tmp_path: Path) -> None:
    sizes = dataclasses.replace(SIZES, source_items=0)
    split = make_workload(sizes, "simulated").split
    with pytest.raises(UserError, match="two domains"):
        reference.write_feed(tmp_path / "feed.npz", split)


def test_every_part_stands_beside_contestants_of_ours() -> None:
    class Script:
        def contestant(self, name: str, what: str, count: int) -> Any:
            return name, what, count

    for parts in side_by_side.STAGES.values():
        for part in parts:
            theirs = part.theirs(Script())
            assert theirs
            assert all(count > 0 for _, _, count in theirs)


def test_the_reference_has_two_of_the_encoders() -> None:
    for stage in ("encoder_step", "evaluation"):
        parts = [part for part in side_by_side.STAGES[stage] if part.encoder]
        assert [part.encoder for part in parts] == ["sasrec", "gru4rec"]
        chosen = [part.sizes(dataclasses.replace(SIZES, encoder="gru4rec")) for part in parts]
        assert chosen[0] is None
        assert "--base_model=GRU4Rec" in reference._arguments(reference.ENCODER, chosen[1])
        everything = [part.sizes(dataclasses.replace(SIZES, encoder="all")) for part in parts]
        assert [sizes.encoder for sizes in everything] == ["sasrec", "gru4rec"]
        assert [part.sizes(dataclasses.replace(SIZES, encoder="cl4srec")) for part in parts] == [
            None,
            None,
        ]
    assert "--base_model=SASRec" in reference._arguments(reference.ENCODER, SIZES)


def test_speedups_are_of_one_unit_and_against_the_reference_alone() -> None:
    def row(name: str, units: int, seconds: tuple[float, ...], foreign: bool = False) -> Row:
        return Row(name, units, None, None, seconds, 0.0, 0, None, None, None, foreign)

    rows = (row("theirs", 2, (4.0, 8.0), True), row("ours", 10, (1.0, 2.0)))
    result = Result("stage", "title", "data", "step", "", (), rows, *[row("c", 1, (1.0,))] * 2, 0)
    table = tables.speedups([result])
    assert "| stage | ours | 150.0 ms a step | 20.0x (20.0 to 20.0) theirs |" in table
    assert tables.speedups([dataclasses.replace(result, rows=rows[1:])]) == ""


def test_a_contestant_elsewhere_tells_its_own_time() -> None:
    class Script(reference.Script):
        def __init__(self) -> None:
            pass

        def ask(self, what: str, count: int) -> Elapsed:
            assert (what, count) == ("reverse", 4)
            return Elapsed(12.0, 5)

    from pdrec_jax.benchmark import contest

    contestant = Script().contestant("theirs", "reverse", 4)
    assert contestant.foreign
    assert contest._seconds(contestant) == 12.0
    assert contest._peak(contestant) == (5, None, None)
