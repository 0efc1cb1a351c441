"""Ten times the users take no more memory: `make test ARGS="-m slow -k memory"`."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

USERS = 100_000
# In a process of its own, whose peak is then that of the command alone.
CODE = """
import resource, sys
from pdrec_jax.recommend.__main__ import main
status = main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(status)
"""


@pytest.fixture(scope="module")
def many(make_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a simulated log of 100,000 users and 20,000 items."""
    fields = {
        "simulation.num_users": USERS, "simulation.num_items": 20_000, "encoder.width": 64,
        "encoder.blocks": 2, "encoder.max_length": 64,
    }  # fmt: skip
    return make_run(tmp_path_factory.mktemp("many") / "run", **fields)


def peak(run: Path, users: int) -> int:
    """Peak resident set of recommending to some users, in bytes."""
    ids = run.parent / "ids.txt"
    ids.write_text("".join(f"{user}\n" for user in range(1, users + 1)))
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", CODE, f"--workdir={run}", f"--users={ids}", "--k=20",
         f"--out={run.parent / 'recs.parquet'}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert f"{20 * users:,} recommendations for {users:,} users" in done.stdout
    unit = 1 if sys.platform == "darwin" else 1024
    found = int(done.stdout.split()[-1]) * unit
    print(f"{users:,} users: {time.monotonic() - began:.1f} s in all, {found / 2**20:.0f} MiB")
    return found


@pytest.mark.slow
def test_memory_is_flat_in_the_number_of_users(many: Path) -> None:
    # All recommendations at once would be 80 MiB, all scores 8 GiB.
    assert peak(many, USERS) - peak(many, USERS // 10) < 64 << 20
