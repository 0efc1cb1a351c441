"""Compiled programs: where they are kept, who decides, what it saves, and when they are dropped."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from pdrec_jax import compilation
from pdrec_jax.errors import UserError
from pdrec_jax.overrides import validate
from pdrec_jax.settings import default_config

SCRIPT = """
import json, sys
import jax, jax.numpy as jnp
from pdrec_jax import compilation
compilation._LEAST_SECONDS = 0.0
compilation.seconds_spent()
place = compilation.use_cache(sys.argv[1])
result = jax.jit(lambda x: jnp.linalg.norm(jnp.sin(x) @ x))(jnp.ones((40, 40)))
print(json.dumps([str(place), float(result), compilation.seconds_spent()]))
"""


@pytest.fixture
def config():
    """Lets a test change JAX's settings of its cache, and puts them back."""
    names = (
        "jax_enable_compilation_cache",
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
    )
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", None)
    yield jax.config
    for name, value in before.items():
        jax.config.update(name, value)


def test_auto_is_a_directory_of_this_machine_in_the_users_cache(config, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place = compilation.use_cache("auto")
    assert place is not None
    assert place.parent == tmp_path / "pdrec_jax"
    assert config.jax_compilation_cache_dir == str(place)


def test_an_empty_directory_is_refused():
    own = default_config()
    own.compilation_cache = " "
    with pytest.raises(
        UserError, match=r"^config\.compilation_cache: auto, off or a directory is expected"
    ):
        validate(own)


def test_off(config):
    assert compilation.use_cache("off") is None
    assert config.jax_compilation_cache_dir is None


@pytest.mark.parametrize("setting", ["auto", "off", "elsewhere"])
def test_what_jax_was_told_stays(config, setting):
    config.update("jax_compilation_cache_dir", "mine")
    assert compilation.use_cache(setting) == Path("mine")
    assert config.jax_compilation_cache_dir == "mine"


def test_disabled_in_jax_stays_disabled(config):
    config.update("jax_enable_compilation_cache", False)
    assert compilation.use_cache("auto") is None
    assert config.jax_compilation_cache_dir is None


def test_a_second_process_reads_what_the_first_compiled(tmp_path):
    def run() -> tuple[str, float, float]:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(tmp_path)],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "true"},
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        place, result, seconds = json.loads(done.stdout)
        return place, result, seconds

    place, result, seconds = run()
    assert place == str(tmp_path)
    written = set(tmp_path.iterdir())
    assert written
    assert run()[:2] == (place, result)
    assert {path for path in tmp_path.iterdir() if path.suffix != ".atime"} <= written
    assert seconds > 0


@pytest.mark.parametrize(
    ("most", "mappings", "dropped"),
    [
        ("65530\n", 32_764, False),
        ("65530\n", 32_765, True),
        ("1048576\n", 32_765, True),  # memory grows with them, allowed or not
        ("2\n", 1, True),
        ("", 32_765, False),
        (None, 32_765, False),
    ],
)
def test_programs_are_dropped_before_linux_refuses_memory(
    most, mappings, dropped, monkeypatch, tmp_path
):
    place = tmp_path / "max_map_count"
    if most is not None:
        place.write_text(most)
    mapped = tmp_path / "maps"
    mapped.write_text("7f0000000000-7f0000001000 r-xp\n" * mappings)
    monkeypatch.setattr(compilation, "_MOST_MAPPINGS", place)
    monkeypatch.setattr(compilation, "_MAPPINGS", mapped)
    double = jax.jit(lambda x: x * 2)
    assert double(3) == 6
    assert double._cache_size() == 1
    assert compilation.drop_if_many() is dropped
    assert double._cache_size() == (0 if dropped else 1)
    assert double(3) == 6


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what Linux tells of a process")
def test_what_linux_tells_can_be_read(monkeypatch, tmp_path):
    place = tmp_path / "max_map_count"
    place.write_text("40")  # fewer than any process of Python has
    monkeypatch.setattr(compilation, "_MOST_MAPPINGS", place)
    assert compilation.drop_if_many()


def test_64_bits_are_refused(monkeypatch):
    compilation.require_32_bits()
    with (
        jax.enable_x64(True),
        pytest.raises(UserError, match=r"^JAX_ENABLE_X64: numbers of 32 bits"),
    ):
        compilation.require_32_bits()
