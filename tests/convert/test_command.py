"""The command: a run goes on from the reference's model, and gives its own back."""

import contextlib
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest

from pdrec_jax import run_models
from pdrec_jax.checkpoints import Store
from pdrec_jax.convert.__main__ import main
from pdrec_jax.convert.names import to_ours, to_reference
from pdrec_jax.convert.torch_files import read_tensors, write_tensors
from pdrec_jax.diffusion.denoiser import make_denoiser
from pdrec_jax.given import prepare
from pdrec_jax.training import Course

CONFIG = """
from pdrec_jax.settings import default_config
def get_config():
    config = default_config()
    config.nns.kept, config.dpa.coarse, config.dpa.fine, config.progress = 2, 5, 2, False
    config.diffusion.hidden, config.diffusion.embedding_size = (6,), 4
    config.encoder.width, config.encoder.max_length = 8, 12
    config.simulation.num_users, config.simulation.num_items = 40, 300
    config.evaluation.negatives = 20
    config.simulation.overrides = ()
    return config
"""


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    (tmp_path / "config.py").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PDREC_DATA", raising=False)
    return tmp_path


def call(*arguments: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(["--config=config.py", "--workdir=run", *arguments])
    return status, out.getvalue(), err.getvalue()


def file_of(path: Path, rows: int = 301, hidden: int = 6) -> dict[str, np.ndarray]:
    """A reference model of a catalogue of `rows` - 1 items, as the reference saves it."""
    _, params = make_denoiser(rows, (hidden,), 4, normalise=False, seed=3)
    arrays = to_reference("diffusion", params, np.arange(rows), rows)
    write_tensors(path, arrays)
    return arrays


def test_there_and_back(place) -> None:
    """The file has rows of 30 source items more than the log has items."""
    arrays = file_of(place / "model.pth", 331)
    status, out, err = call("import", "--file=model.pth")
    assert (status, err) == (0, "")
    assert out == "run: diffusion is that of model.pth; pdrec_jax.main goes on from it\n"
    meta = Store(place / "run" / "diffusion").restore_meta("best")
    assert Course.read(meta).origin.startswith("model.pth, sha256 ")
    assert json.loads((place / "run" / "data.json").read_text())["source"] == "simulated"
    status, out, _ = call("export", "--file=back.pth", "--rows=331")
    assert (status, out) == (0, "back.pth: diffusion of run, 331 rows\n")
    back = read_tensors(place / "back.pth")
    assert back.keys() == arrays.keys()
    seen = np.arange(301)
    ours = to_ours("diffusion", arrays, seen, "x"), to_ours("diffusion", back, seen, "x")
    np.testing.assert_array_equal(ours[0]["item_kernel"], ours[1]["item_kernel"])
    np.testing.assert_array_equal(ours[0]["output"]["kernel"], ours[1]["output"]["kernel"])
    np.testing.assert_array_equal(
        back["in_layers.0.weight"][:, -4:], arrays["in_layers.0.weight"][:, -4:]
    )
    assert call("export", "--file=own.pth")[1] == "own.pth: diffusion of run, 301 rows\n"


@pytest.mark.loose_jax
def test_the_run_goes_on_from_it(place) -> None:
    """Ranks, preferences and the encoder's data come of the model that was taken in."""
    from pdrec_jax.main import main as run

    file_of(place / "model.pth")
    assert call("import", "--file=model.pth")[0] == 0
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        flags = ["--config=config.py", "--workdir=run", "--config.stage=diffusion"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pdrec_jax.report.plots.write_plots", lambda *_: [])
            assert run(["main", *flags]) == 0
    assert "TI-DiffRec: from model.pth, sha256 " in err.getvalue()
    (model,) = json.loads((place / "run" / "results.json").read_text())["models"]
    assert model["origin"].startswith("model.pth, sha256 ")
    assert (model["best_epoch"], model["epochs"]) == (0, 0)
    assert Store(place / "run").step("preferences") == 1
    status, _, err = call("import", "--file=model.pth")
    assert status == 2
    assert err == "error: run: has diffusion already; name another --workdir\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["import", "--file=none.pth"], "none.pth: no such file"),
        (["import", "--file=small.pth"], "small.pth: has 50 rows, so items of 1 to 49 are"),
        (["import", "--file=wide.pth"], "wide.pth: ['first_bias'] is (7,), the config expects"),
        (["import", "--file=good.pth", "--model=base"], "good.pth: no tensor sasrec_embedding_"),
        (["import", "--file=good.pth", "--model=bass"], "config.encoder.variants: expected"),
        (["import", "--file=good.pth", "--rows=3"], "--rows: goes with export"),
        (["export", "--file=x.pth", "--rows=0"], "--rows: at least 1 and below 2^31 is expected"),
        (["export", "--file=x.pth", "--rows=1000000000000"], "--rows: at least 1 and below 2^31"),
        (["import", "--file=odd.pth"], "odd.pth: out_layers.0.bias has another shape than the ref"),
        (["import", "--file=flat.pth"], "flat.pth: a tensor has another shape than the"),
        (["import", "--file=part.pth"], "error: part.pth: no tensor emb_layer.weight, found in_la"),
        *(
            (
                ["import", f"--file={name}.pth"],
                f"error: {name}.pth: out_layers.0.bias holds numbers that are not finite",
            )
            for name in ("nan", "inf")
        ),
        (["export", "--file=run/x.pth"], "--file: run/x.pth: is within the run run; name a place"),
        (["export", "--file=x.pth"], "diffusion/best: no checkpoint here"),
        (["export"], "the following arguments are required: --file"),
        (["improve", "--file=x.pth"], "argument action: invalid choice"),
        (["import", "--file=x", "--model=base", "--config.encoder.name=cl4srec"], "not 'cl4"),
    ],
)  # fmt: skip
def test_mistakes(place, arguments, told) -> None:
    file_of(place / "small.pth", 50)
    file_of(place / "wide.pth", 301, 7)
    arrays = file_of(place / "good.pth")
    write_tensors(place / "odd.pth", {**arrays, "out_layers.0.bias": np.zeros(3, np.float32)})
    write_tensors(place / "flat.pth", {**arrays, "out_layers.0.weight": np.float32(1)})
    part = {name: array for name, array in arrays.items() if name != "emb_layer.weight"}
    write_tensors(
        place / "part.pth", {"in_layers.0.weight": part.pop("in_layers.0.weight"), **part}
    )
    for value in (np.nan, np.inf):
        bias = arrays["out_layers.0.bias"].copy()
        bias[7] = value
        write_tensors(place / f"{value}.pth", {**arrays, "out_layers.0.bias": bias})
    status, out, err = call(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert told in err
    assert err.count("\n") == 1
    assert not (place / "run").exists()
    assert not (place / "x.pth").exists()


def drawn(tree, rng):
    if isinstance(tree, dict):
        return {key: drawn(value, rng) for key, value in tree.items()}
    return rng.normal(size=tree.shape).astype(np.float32)


def test_encoders(place) -> None:
    from pdrec_jax import experiment
    from pdrec_jax.main import parse

    for name in ("sasrec", "gru4rec"):
        command = parse(["x", "--config=config.py", f"--config.encoder.name={name}"])
        config, files = experiment.resolve(command.config, command.by_hand)
        given, _ = prepare(config, files)
        shapes = run_models.model_of(given, "base", place).shapes
        arrays = to_reference(name, drawn(shapes, np.random.default_rng(0)), np.arange(301), 301)
        write_tensors(place / "encoder.pth", arrays)
        flags = ["--model=base", f"--config.encoder.name={name}", f"--workdir=run-{name}"]
        status, _, err = call("import", "--file=encoder.pth", *flags)
        assert (status, err) == (0, "")
        status, _, err = call("export", "--file=back.pth", *flags)
        assert (status, err) == (0, "")
        back = read_tensors(place / "back.pth")
        assert back.keys() == arrays.keys()
        for key, array in arrays.items():
            np.testing.assert_array_equal(back[key], array, err_msg=key)
        status, _, err = call("export", "--file=config.py", *flags)
        assert status == 2
        assert "--file: config.py: is an input too (--config), which it would overwrite" in err
        whole = dict(arrays)
        odd = {"sasrec": ("in_proj_weight", (25, 8)), "gru4rec": ("weight_ih_l0", (25, 8))}[name]
        for key in [key for key in arrays if key.endswith(odd[0])]:
            arrays[key] = np.zeros(odd[1], np.float32)
        write_tensors(place / "encoder.pth", arrays)
        status, _, err = call("import", "--file=encoder.pth", *flags, "--workdir=another")
        assert status == 2
        assert re.search(rf"encoder\.pth: \S*{odd[0]}\S* has another shape than the ref", err)
        if name == "sasrec":  # of which taps beside the first would be left out
            key = "sasrec_embedding_source.forward_layers.0.conv1.weight"
            wide = {**whole, key: np.zeros((8, 8, 3), np.float32)}
            write_tensors(place / "encoder.pth", wide)
            status, _, err = call("import", "--file=encoder.pth", *flags, "--workdir=another")
            assert status == 2
            assert "forward_layers.0.conv1.weight has another shape" in err
