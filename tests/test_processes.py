"""Several processes: how they find one another, what they agree on, and what they save together."""

import functools
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from pdrec_jax import processes
from pdrec_jax.checkpoints import NoCheckpoint, Store
from pdrec_jax.errors import UserError
from pdrec_jax.processes import PORT, find
from pdrec_jax.sharding import make_mesh

ROOT = Path(__file__).resolve().parents[1]


class TestFind:
    def test_nothing_means_alone(self) -> None:
        assert find({}) is None
        assert find({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}) is None  # a batch script, no step
        assert find({"TPU_WORKER_HOSTNAMES": "localhost"}) is None

    def test_jax_names(self) -> None:
        environ = {
            "JAX_COORDINATOR_ADDRESS": "host:1",
            "JAX_NUM_PROCESSES": "4",
            "JAX_PROCESS_ID": "3",
        }
        found = {
            "coordinator_address": "host:1",
            "num_processes": 4,
            "process_id": 3,
            "cluster_detection_method": "deactivate",
        }
        assert find(environ) == found
        del environ["JAX_PROCESS_ID"]
        assert find({**environ, "JOB_COMPLETION_INDEX": "2"}) == {**found, "process_id": 2}
        with pytest.raises(UserError, match="JOB_COMPLETION_INDEX: a number is expected"):
            find(environ)
        with pytest.raises(UserError, match="0 to 3"):
            find({**environ, "JAX_PROCESS_ID": "4"})

    @pytest.mark.parametrize(
        ("environ", "missing"),
        [
            ({"JAX_COORDINATOR_ADDRESS": "h:1"}, "JAX_NUM_PROCESSES: a number"),
            (
                {"JAX_COORDINATOR_ADDRESS": "h:1", "JAX_PROCESS_ID": "0"},
                "JAX_NUM_PROCESSES: a number",
            ),
            (
                {"JAX_COORDINATOR_ADDRESS": "h:1", "JAX_NUM_PROCESSES": "2"},
                "JOB_COMPLETION_INDEX: a number",
            ),
            (
                {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"},
                "JAX_COORDINATOR_ADDRESS: HOST:PORT of process 0 is expected, got None",
            ),
            (
                {"JAX_COORDINATOR_ADDRESS": "", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"},
                "JAX_COORDINATOR_ADDRESS: HOST:PORT of process 0 is expected, got ''",
            ),
            ({"JAX_PROCESS_ID": "1"}, "JAX_COORDINATOR_ADDRESS: HOST:PORT"),
            ({"JAX_NUM_PROCESSES": "2"}, "JAX_COORDINATOR_ADDRESS: HOST:PORT"),
        ],
    )
    def test_a_part_alone_is_no_run_of_one(self, environ: dict[str, str], missing: str) -> None:
        with pytest.raises(UserError, match=f"^environment: {missing}"):
            find(environ)

    def test_a_job_set(self) -> None:
        environ = {
            "JOBSET_NAME": "toy",
            "REPLICATED_JOB_NAME": "workers",
            "JAX_NUM_PROCESSES": "2",
            "JOB_COMPLETION_INDEX": "1",
        }
        found = find(environ)
        assert found is not None
        assert found["coordinator_address"] == f"toy-workers-0-0.toy:{PORT}"
        # What a JobSet names alone says nothing of how many: one that asks for nothing is alone.
        assert find({"JOBSET_NAME": "toy", "REPLICATED_JOB_NAME": "workers"}) is None

    def test_what_jax_finds_by_itself(self) -> None:
        slurm = {
            "SLURM_JOB_ID": "7",
            "SLURM_STEP_NODELIST": "node[1-2]",
            "SLURM_PROCID": "0",
            "SLURM_LOCALID": "0",
            "SLURM_NTASKS": "2",
        }
        assert find(slurm) == {}
        assert find({**slurm, "SLURM_NTASKS": "1"}) is None
        assert find({"TPU_WORKER_HOSTNAMES": "a,b"}) == {}
        # From where JAX takes an address that is set, and the rest is its to find.
        assert find({**slurm, "JAX_COORDINATOR_ADDRESS": "host:1"}) == {}
        assert find({**slurm, "JAX_NUM_PROCESSES": "4"}) == {}  # Slurm itself says it all
        assert find({"JAX_NUM_PROCESSES": "1"}) is None

    @pytest.mark.parametrize(
        ("gpus", "visible", "tasks", "own"),
        [
            ("8", None, "8(x2)", None),  # each that of its number, as JAX has it
            ("8", "0,1,2,3,4,5,6,7", "8(x2)", None),
            ("8", None, "1(x2)", list(range(8))),  # else all tasks took the first
            ("8", "4,5,6,7", "1(x2)", list(range(4))),
            ("8", "3", "8(x2)", [0]),  # dealt out
            ("8", None, "1,8", None),  # on which node, it does not say
            ("8", None, "", None),
            (None, None, "1(x2)", None),
        ],
    )
    def test_gpus_of_a_slurm_task(self, gpus, visible, tasks, own) -> None:
        environ = {
            "SLURM_JOB_ID": "7",
            "SLURM_STEP_NODELIST": "node[1-2]",
            "SLURM_PROCID": "0",
            "SLURM_LOCALID": "0",
            "SLURM_NTASKS": "2",
            "SLURM_STEP_TASKS_PER_NODE": tasks,
        }
        more = {"SLURM_GPUS_ON_NODE": gpus, "CUDA_VISIBLE_DEVICES": visible}
        environ |= {name: value for name, value in more.items() if value is not None}
        assert find(environ) == ({} if own is None else {"local_device_ids": own})

    def test_flags_come_together(self) -> None:
        with pytest.raises(UserError, match="all three are expected"):
            processes.initialise(coordinator="host:1", num_processes=2)
        processes.initialise("host:1", 1, 0)  # alone: nothing to do


def test_alone_everything_is_agreed_at_once() -> None:
    assert processes.is_first()
    assert processes.any_of(True)
    assert processes.of_first(3, 4) == (3, 4)
    assert processes.found_by_first(True, "it")
    assert not processes.found_by_first(False, "it")
    processes.barrier("nobody")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def test_a_signal_ends_a_process_that_waits_for_others(tmp_path: Path) -> None:
    port = free_port()
    place_of = [f"--coordinator=localhost:{port}", "--num_processes=2", "--process_id=0"]
    waiting = subprocess.Popen(
        [sys.executable, "-m", "pdrec_jax.main", *place_of, "--config=configs/book.py"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while not listens(port):
            assert waiting.poll() is None
            time.sleep(0.05)
        waiting.send_signal(signal.SIGTERM)
        _, err = waiting.communicate(timeout=30)
    finally:
        waiting.kill()
    assert waiting.returncode == 128 + signal.SIGTERM
    assert err == "interrupted while waiting for the other processes; the same command goes on\n"


def listens(port: int) -> bool:
    with socket.socket() as found:
        return found.connect_ex(("localhost", port)) == 0


def test_two_processes_agree_and_save_together(tmp_path: Path) -> None:
    port = free_port()
    environ = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    # A Slurm task's, whose place it is told by flags all the same.
    environ |= {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node1", "SLURM_NTASKS": "2"}
    running = [
        subprocess.Popen(
            [sys.executable, __file__, str(port), str(number), str(tmp_path)],
            cwd=ROOT,
            env={**environ, "SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    for process in running:
        _, err = process.communicate(timeout=600)
        assert process.returncode == 0, err[-3000:]
    # What four devices saved, one restores, without the padding.
    like = {
        "item_embedding": jax.ShapeDtypeStruct((7, 3), np.float32),
        "w": jax.ShapeDtypeStruct((2,), np.float32),
    }
    tree, meta = Store(tmp_path).restore("state", like)
    assert meta == {"epoch": 3}
    np.testing.assert_array_equal(tree["item_embedding"], np.arange(21).reshape(7, 3))
    # A row less is another model: no mesh leads to it.
    like["item_embedding"] = jax.ShapeDtypeStruct((6, 3), np.float32)
    with pytest.raises(UserError, match="another model: item_embedding"):
        Store(tmp_path).restore("state", like)


def take_part(port: int, number: int, place: Path) -> None:
    with processes.joined(f"localhost:{port}", 2, number):
        assert jax.process_count() == 2
        assert jax.config._read("jax_cuda_visible_devices") == "all"
        assert processes.is_first() == (number == 0)
        assert processes.any_of(number == 1)
        assert not processes.any_of(False)
        assert processes.of_first(10 + number) == (10,)
        assert processes.found_by_first(True, "it")
        assert not processes.found_by_first(number == 1, "it")  # too old to count
        if number == 0:
            assert processes.found_by_first(True, "it")
        else:
            with pytest.raises(UserError, match="it: the first process finds it and this one"):
                processes.found_by_first(False, "it")
        with pytest.raises(UserError, match=r"all of 4 devices"):
            make_mesh((2, 1))
        mesh = make_mesh((2, -1))
        assert mesh is not None
        table = np.pad(np.arange(21, dtype=np.float32).reshape(7, 3), ((0, 1), (0, 0)))
        where = {
            "item_embedding": NamedSharding(mesh, PartitionSpec("model")),
            "w": NamedSharding(mesh, PartitionSpec()),
        }
        values = {"item_embedding": table, "w": np.ones(2, np.float32)}
        tree = {
            name: jax.make_array_from_callback(
                values[name].shape, where[name], lambda index, name=name: values[name][index]
            )
            for name in values
        }
        store = Store(place)

        @functools.partial(jax.jit, donate_argnums=0)
        def step(tree: dict, change: float) -> tuple[dict, jax.Array]:
            tree = jax.tree.map(lambda leaf: leaf + change, tree)
            return tree, sum(leaf.sum() for leaf in tree.values())

        for epoch in (1, 2, 3):
            store.save("state", epoch, tree, {"epoch": epoch}, behind=epoch > 1)
            # Steps with collectives of their own go on meanwhile, and there and back again.
            for change in (1.0, -1.0) * 20:
                tree, _ = jax.block_until_ready(step(tree, change))
        assert store.step("state") == 3
        # An error of one process alone does not wait for the others, who are not there.
        store.save("alone", 1, tree, {}, behind=True)
        if number == 0:
            with pytest.raises(KeyError), store.finishing():
                raise KeyError
        else:
            with store.finishing():
                processes.barrier("elsewhere")
        if number == 0:
            processes.barrier("elsewhere")
            processes.barrier(f"saved {place / 'alone'} 1")
        store.delete("alone")
        like = jax.tree.map(
            lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), tree, where
        )
        found, meta = store.restore("state", like)
        assert meta == {"epoch": 3}
        assert found["item_embedding"].sharding == where["item_embedding"]
        for shard in found["item_embedding"].addressable_shards:
            np.testing.assert_array_equal(shard.data, table[shard.index])
        # Arrays of the host, as preferences are.
        store.save("host", 1, {"w": np.arange(3)}, {})
        host, _ = store.restore("host", {"w": jax.ShapeDtypeStruct((3,), np.arange(3).dtype)})
        np.testing.assert_array_equal(np.asarray(host["w"]), np.arange(3))
        store.delete("host")
        assert store.step("host") is None
        with pytest.raises(NoCheckpoint):
            store.restore("host", like)
        # What stops the first one stops the others too.
        store._choose = unreadable  # type: ignore[method-assign]
        with pytest.raises(OSError if number == 0 else UserError, match=r"cannot read it|no luck"):
            store.restore("state", like)


def unreadable(*_: object) -> tuple[int, bool]:
    raise OSError("no luck")


if __name__ == "__main__":
    take_part(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
