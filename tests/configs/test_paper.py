"""The configurations of the paper's data: what they set, and which users they leave."""

from pathlib import Path

import pytest

from pdrec_jax.data.sources import find_files, load
from pdrec_jax.data.splits import leave_one_out
from pdrec_jax.errors import UserError
from pdrec_jax.evaluation.protocol import get_protocol, user_sets
from pdrec_jax.experiment import resolve
from pdrec_jax.main import load_config
from pdrec_jax.overrides import apply_overrides, apply_protocol, validate
from pdrec_jax.settings import differences, put

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def config_of(name: str, variant: str = ""):
    return load_config(f"{CONFIGS / name}.py{variant}")


PAIRS = ["toy_game", "game_toy", "book_music", "music_book"]


@pytest.mark.parametrize("name", ["toy", "game", "book", "music", "custom", *PAIRS])
def test_are_valid(name) -> None:
    config = config_of(name)
    validate(config)
    validate(apply_overrides(config, ()))
    assert config.name == name


@pytest.mark.parametrize("name", ["toy", "game", "book", "music"])
def test_variants(name) -> None:
    paper, readme = config_of(name, ":variant=paper"), config_of(name, ":readme")
    validate(paper)
    assert paper.encoder.learning_rate == 0.005
    assert paper.hbr.rank_weight == (0.1 if name in ("toy", "game") else 0.3)
    assert paper.to_dict() != readme.to_dict()
    own = config_of(name)
    if name in ("toy", "game"):
        assert own.to_dict() == config_of(name, ":tuned").to_dict() != readme.to_dict()
        own.strict_overrides = ()
    assert readme.to_dict() == own.to_dict()
    with pytest.raises(UserError, match=r"'(paper|readme|paper-times)' is expected, got 'fast'$"):
        config_of(name, ":fast")


def test_toy_is_tuned_under_strict_alone() -> None:
    def resolved(**fields):
        config = config_of("toy")
        config.data.source = "real"
        by_hand = set()
        for path, value in fields.items():
            by_hand.add(path.replace("__", "."))
            put(config, path.replace("__", "."), value)
        return apply_protocol(config, by_hand)

    strict = resolved()
    validate(strict)
    assert (strict.encoder.negatives, strict.nns.placement) == (4, "instead")
    assert (strict.dpa.drawn, strict.dpa.coarse, strict.dpa.weight) == (1, 500, 0.05)
    assert strict.encoder.variants == ("base", "nns+dpa", "hbr+nns+dpa")
    assert resolved(encoder__epochs=7).encoder.epochs == 7
    reference = resolved(protocol="reference")
    readme = config_of("toy", ":readme")
    readme.protocol, readme.data.source = "reference", "real"
    assert differences(reference, apply_protocol(readme, ())) == []


@pytest.mark.parametrize(
    ("name", "encoder", "values"),
    [  # learning rate, then c_w, omega_f, omega_r, omega_m and omega_d of its commands
        ("toy", "gru4rec", (0.005, 3.0, 2.0, 0.1, 0.5, 0.3)),
        ("game", "gru4rec", (0.005, 3.0, 2.0, 0.1, 0.5, 0.3)),
        ("toy_game", "gru4rec", (0.005, 3.0, 2.0, 0.1, 0.5, 0.3)),
        ("toy", "sasrec", (0.005, 1.0, 4.0, 0.1, 0.9, 0.05)),
        ("toy", "cl4srec", (0.005, 1.0, 4.0, 0.1, 0.9, 0.05)),
        ("toy:paper", "sasrec", (0.005, 3.0, 2.0, 0.1, 0.5, 0.3)),
        ("book", "gru4rec", (0.01, 3.0, 4.0, 0.3, 0.8, 0.01)),
        ("music:times", "gru4rec", (0.01, 3.0, 4.0, 0.3, 0.8, 0.01)),
        ("book", "sasrec", (0.001, 3.0, 4.0, 0.5, 0.8, 0.01)),
        ("book:paper", "gru4rec", (0.005, 3.0, 4.0, 0.3, 0.8, 0.01)),
    ],
)
def test_values_of_the_public_readme(name, encoder, values) -> None:
    name, colon, variant = name.partition(":")
    config = config_of(name, colon + variant)
    config.protocol, config.encoder.name = "reference", encoder
    config = apply_protocol(config, ())
    assert values == (
        config.encoder.learning_rate,
        *(config.hbr.clip, config.hbr.scale, config.hbr.rank_weight),
        *(config.nns.first_fraction, config.dpa.weight),
    )


def test_under_strict_all_encoders_are_tuned_alike() -> None:
    gru4rec = config_of("toy")
    gru4rec.encoder.name = "gru4rec"
    differing = differences(apply_protocol(gru4rec, ()), apply_protocol(config_of("toy"), ()))
    assert differing == ["encoder.name"]


@pytest.mark.parametrize("name", ["toy", "toy:readme", "game:paper", "music", "custom", *PAIRS])
def test_reference_delivers_batches_as_the_public_code_does(name) -> None:
    """Three times each; the diffusion model's once."""
    name, colon, variant = name.partition(":")
    for protocol, times in (("strict", 1), ("reference", 3)):
        config = config_of(name, colon + variant)
        config.protocol = protocol
        settled = apply_protocol(config, ())
        assert (settled.encoder.batch_repeat, settled.diffusion.batch_repeat) == (times, 1)


def test_game_looks_earlier_than_toy_and_trains_nns_alone_too() -> None:
    toy, game = (dict(config_of(name).strict_overrides) for name in ("toy", "game"))
    assert {path for path in toy if toy[path] != game[path]} == {
        "encoder.first_evaluation",
        "encoder.evaluate_every",
        "encoder.variants",
    }
    assert toy.keys() == game.keys()
    assert game["encoder.variants"] == ("base", "nns", "nns+dpa", "hbr+nns+dpa")


def test_a_log_of_ones_own_has_what_of_toy_is_no_matter_of_size() -> None:
    custom, toy = (dict(config_of(name).strict_overrides) for name in ("custom", "toy"))
    assert toy.keys() - custom.keys() == {
        "dpa.coarse",
        "encoder.epochs",
        "encoder.patience",
        "encoder.first_evaluation",
        "encoder.evaluate_every",
    }
    assert custom.items() <= toy.items()
    paper = config_of("custom", ":paper")
    assert (paper.hbr.clip, paper.hbr.scale) == (3.0, 2.0)
    assert (paper.nns.first_fraction, paper.dpa.weight) == (0.5, 0.3)
    assert not paper.strict_overrides
    with pytest.raises(UserError, match=r"'tuned' or 'paper' is expected, got 'readme'$"):
        config_of("custom", ":readme")


def test_a_run_has_its_settings_for_strict() -> None:
    config = config_of("toy")
    config.data.source = "simulated"
    config, files = resolve(config, ())
    assert files is None
    # The shortened run's own number of epochs comes last.
    assert (config.encoder.negatives, config.encoder.epochs) == (4, 30)
    assert (config.dpa.drawn, config.dpa.coarse) == (1, 50)


def test_what_suits_a_log_counts_for_more_than_settings_for_strict(tmp_path) -> None:
    (tmp_path / "prepared.json").write_text('{"config": {"dpa.coarse": 2}}')
    config = config_of("toy")
    config.data.path, config.data.source = str(tmp_path), "simulated"
    config.simulation.overrides = ()
    found, _ = resolve(config, {"data.path"})
    assert (found.dpa.coarse, found.dpa.drawn) == (2, 1)
    by_hand = {"data.path", "dpa.coarse"}
    assert resolve(config, by_hand)[0].dpa.coarse == config.dpa.coarse == 50


@pytest.mark.parametrize(
    ("variant", "protocol", "coarse"),
    [("", "strict", 400), ("", "reference", 50), (":paper", "strict", 50)],
)
def test_custom_draws_from_as_many_as_the_log_allows(tmp_path, variant, protocol, coarse) -> None:
    (tmp_path / "prepared.json").write_text('{"config": {"dpa.coarse": 400, "dpa.fine": 5}}')
    config = config_of("custom", variant)
    config.data.path, config.protocol = str(tmp_path), protocol
    found, _ = resolve(config, ())
    assert (found.dpa.coarse, found.dpa.fine) == (coarse, 5)


def test_roles() -> None:
    toy, game = config_of("toy"), config_of("game")
    assert (game.data.target, game.data.auxiliary) == (toy.data.auxiliary, toy.data.target)
    assert (toy.data.auxiliary_first, game.data.auxiliary_first) == (False, True)
    book, music = config_of("book"), config_of("music")
    assert (music.data.target, music.data.auxiliary) == (book.data.auxiliary, book.data.target)
    assert (music.data.time, music.data.auxiliary_time) == ("order", "timestamp")
    assert (book.diffusion.weighting, music.diffusion.weighting) == ("time", "position")
    times = config_of("music", ":variant=times")
    assert (times.data.time, times.data.auxiliary_time) == ("timestamp", "timestamp")
    assert (times.diffusion.weighting, times.data.auxiliary_first) == ("time", True)
    both, paper = config_of("music", ":paper-times"), config_of("music", ":paper")
    assert both.hbr.rank_weight == paper.hbr.rank_weight != times.hbr.rank_weight
    with pytest.raises(UserError, match="'times' or 'paper-times' is expected, got 'time'"):
        config_of("music", ":time")


@pytest.mark.parametrize(
    ("name", "drawn", "evaluated", "diffusion"),
    [("toy", 7_262, 7_159, 6_903), ("game", 7_718, 7_614, 7_430)],
)
def test_users_of_the_public_code(real_data, name, drawn, evaluated, diffusion) -> None:
    config = config_of(name)
    config.data.dir = str(real_data)
    log, source = load(config, find_files(config))
    assert "note" not in source
    users = user_sets(get_protocol("reference"), leave_one_out(log))
    found = [int(some.sum()) for some in (users.preferences, users.encoder, users.diffusion)]
    assert found == [drawn, evaluated, diffusion]


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_are_their_target_with_both_logs(name) -> None:
    target = name.partition("_")[0]
    for variant in ("readme", "paper"):
        pair, single = config_of(name, f":{variant}"), config_of(target, f":{variant}")
        assert pair.data.mixed
        pair.name, pair.data.mixed = single.name, False
        if name == "book_music":
            assert pair.diffusion.weighting == "position"
            pair.diffusion.weighting = "time"
        assert pair.to_dict() == single.to_dict()
    if name in ("book_music", "music_book"):
        pair = config_of(name, ":paper-times")
        assert (pair.data.time, pair.data.auxiliary_time) == ("timestamp", "timestamp")
        assert (pair.data.target == "douban_music.inter") == pair.data.auxiliary_first
        assert (pair.diffusion.weighting, pair.data.mixed) == ("time", True)
