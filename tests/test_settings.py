"""Settings: what every field takes, what it refuses and how, and the rules between fields."""

import math
from typing import Any

import pytest
from ml_collections import ConfigDict

from pdrec_jax.errors import UserError
from pdrec_jax.overrides import validate
from pdrec_jax.settings import (
    FIELDS,
    FREE_FIELDS,
    default_config,
    differences,
    flatten,
    get,
    put,
    seeded,
)

BELOW_0 = dict.fromkeys(
    ("save_seconds", "hbr.rank_weight", "nns.first_fraction", "dpa.weight", "encoder.dropout"), -0.1
)
# For each kind of field a value that is just out of range; the rest follows from the type.
OUT_OF_RANGE: dict[str, Any] = {
    **BELOW_0,
    "name": "a/b",
    "mesh": (-1, -1),
    "seed": -1,
    "seeds_at_once": -1,
    "preferences_by": "caser",
    "save_async": "yes",
    "compilation_cache": " ",
    "hbr.floor": "lowest",
    "dpa.pool": "seen",
    "dpa.drawn": -1,
    "nns.refresh_epochs": -1,
    "simulation.seed": -2,
    "protocol": "Strict",
    "stage": "encoders",
    "data.source": "csv",
    "data.ids": "int",
    "simulation.num_users": 1,
    "simulation.num_items": 199,
    "simulation.num_source_items": -1,
    "simulation.mean_length": 3.9,
    "simulation.overrides": ("seed", 1),
    "strict_overrides": ("seed", 1),
    "reference_overrides": ("seed", 1),
    "gru4rec_overrides": ("seed", 1),
    "diffusion.schedule": "quadratic",
    "diffusion.noise_scale": -0.1,
    "diffusion.noise_min": -0.1,
    "diffusion.noise_max": math.inf,
    "diffusion.hidden": (8, 0),
    "diffusion.target": "x_0",
    "diffusion.dropout": 1.0,
    "diffusion.sampling_steps": -1,
    "diffusion.noise_fraction": 0.0,
    "diffusion.error_fraction": 1.1,
    "diffusion.weighting": "times",
    "diffusion.w_min": -0.1,
    "diffusion.w_max": 0.0,
    "diffusion.ties": "allone",
    "diffusion.learning_rate": 0.0,
    "diffusion.learning_rate_decay": 1.1,
    "diffusion.weight_decay": -0.1,
    "nns.placement": "besides",
    "dpa.draw_by": "zipf",
    "hbr.clip": 0.0,
    "hbr.scale": 0.0,
    "encoder.variants": (),
    "encoder.max_length": 1,
    "encoder.width": 10**12,
    "encoder.negatives": 5 * 10**9,
    "encoder.epochs": 10**12,
    "diffusion.embedding_size": 10**12,
    "encoder.crop": 1.1,
    "encoder.mask": -0.1,
    "encoder.reorder": 2.0,
    "encoder.contrast_weight": -0.1,
    "encoder.contrast_temperature": 1e-60,
    "encoder.temperature": 0.0,
    "encoder.positive_weight": 0.0,
    "encoder.history_weight": -0.1,
    "encoder.learning_rate": 0.0,
    "encoder.learning_rate_decay": 0.0,
    "encoder.min_epochs": -1,
}
COUNTS = [path for path, field in FIELDS.items() if type(field.default) is int]
FLAGS = [path for path, field in FIELDS.items() if type(field.default) is bool]
NUMBERS = [path for path, field in FIELDS.items() if type(field.default) is float]
TEXTS = [path for path, field in FIELDS.items() if type(field.default) is str]
TUPLES = [path for path, field in FIELDS.items() if type(field.default) is tuple]


def config_with(**values: Any) -> ConfigDict:
    """The default config with some fields set, `.` written as `__`; types are not looked at."""
    config = default_config()
    for name, value in values.items():
        section, _, field = name.replace("__", ".").rpartition(".")
        holder = config[section] if section else config
        with holder.ignore_type():
            holder[field] = value
    return config


def complaint(**values: Any) -> str:
    with pytest.raises(UserError) as caught:
        validate(config_with(**values))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def complaint_of(path: str, value: Any) -> str:
    return complaint(**{path.replace(".", "__"): value})


def test_defaults_are_valid() -> None:
    config = default_config()
    validate(config)
    assert dict(flatten(config)) == {path: field.default for path, field in FIELDS.items()}
    assert len(COUNTS + FLAGS + NUMBERS + TEXTS + TUPLES) == len(FIELDS)
    assert all(field.meaning for field in FIELDS.values())
    assert set(FREE_FIELDS) < set(FIELDS)


@pytest.mark.parametrize("path", FIELDS)
def test_every_field_refuses_what_is_out_of_range(path: str) -> None:
    if path in OUT_OF_RANGE:
        value = OUT_OF_RANGE[path]
    elif path in COUNTS:
        value = 0
    else:
        assert path in FLAGS or FIELDS[path].expected == "text"
        return
    expected = f"config.{path}: {FIELDS[path].expected} is expected, got {value!r}"
    assert complaint_of(path, value) == expected


@pytest.mark.parametrize(
    ("paths", "values"),
    [
        (COUNTS, [2.0, "2", True, None, (2,)]),
        (NUMBERS, [math.nan, math.inf, -math.inf, "1", None, (1.0,)]),
        (TEXTS, [1, None, False, ("all",)]),
        (FLAGS, [0, 1, "true", None]),
        (TUPLES, [1, "base", None, ConfigDict()]),
    ],
)
def test_every_field_refuses_other_types(paths: list[str], values: list[Any]) -> None:
    for path in paths:
        for value in values:
            if isinstance(value, ConfigDict):
                assert complaint_of(path, value).startswith(f"config.{path}: ")
            else:
                start = f"config.{path}: {FIELDS[path].expected} is expected, got "
                assert complaint_of(path, value) == start + repr(value)


@pytest.mark.parametrize("path", NUMBERS)
def test_an_integer_passes_for_a_number(path: str) -> None:
    allowed = [value for value in (0, 1, 5) if FIELDS[path].allows(float(value))]
    assert allowed
    assert all(FIELDS[path].fits(value) for value in allowed)
    assert not FIELDS[path].fits(True)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("diffusion.hidden", (2.5,)),
        ("diffusion.hidden", ("16",)),
        ("diffusion.hidden", (True,)),
        ("diffusion.hidden", ()),
        ("mesh", (8,)),
        ("mesh", (0, 8)),
        ("mesh", (2.0, 4)),
        ("encoder.variants", (1,)),
        ("encoder.variants", ("",)),
        ("encoder.variants", ("base", "base")),
        ("simulation.overrides", (("seed",),)),
        ("simulation.overrides", (("seed", 1, 2),)),
        ("simulation.overrides", (3,)),
        ("simulation.overrides", ((3, "seed"),)),
        ("seed", 2**31),
        ("name", ""),
        ("name", ".."),
        ("name", "a\nb"),
        ("name", "a\\b"),
    ],
)
def test_other_values_that_are_refused(path: str, value: Any) -> None:
    assert complaint_of(path, value).startswith(f"config.{path}: {FIELDS[path].expected} is")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed", 2**31 - 1),
        ("name", "toy-2.5 (new)"),
        ("diffusion.hidden", (1, 7, 2)),
        ("diffusion.noise_scale", 0),
        ("hbr.rank_weight", 1),
        ("simulation.overrides", (("diffusion.epochs", 3), ["seed", 1])),
        ("encoder.variants", ("base", "hbr", "dpa+nns")),
    ],
)
def test_values_at_the_edge_pass(path: str, value: Any) -> None:
    validate(config_with(**{path.replace(".", "__"): value}))


def test_unknown_and_missing_fields() -> None:
    assert complaint(sedd=1) == "config.sedd: unknown field, did you mean config.seed?"
    found = complaint(diffusion__stepz=1)
    assert found == "config.diffusion.stepz: unknown field, did you mean config.diffusion.steps?"
    assert complaint(qqq=1) == "config.qqq: unknown field"
    config = default_config()
    del config.encoder.width
    with pytest.raises(UserError, match=r"^config\.encoder\.width: missing, an integer of at leas"):
        validate(config)
    with pytest.raises(UserError, match=r"^config\.encoder\.with: unknown field, did you mean con"):
        put(config, "encoder.with", 1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"diffusion__w_min": 1.5}, "diffusion.w_min: at most w_max (1) is expected, got 1.5"),
        (
            {"diffusion__noise_min": 0.1},
            "diffusion.noise_min: at most noise_max (0.005) is expected, got 0.1",
        ),
        (
            {"diffusion__sampling_steps": 11},
            "diffusion.sampling_steps: at most steps (10) is expected, got 11",
        ),
        (
            {"data__learns_source": False},
            "data.learns_source: True is expected without data.mixed, where no source item is "
            "learnt, got False",
        ),
        (
            {
                "data__learns_source": False,
                "data__mixed": True,
                "encoder__history_weight": 0.05,
            },
            "encoder.history_weight: 0 is expected with data.learns_source=False, for a history "
            "has source items too, got 0.05",
        ),
        (
            {"diffusion__noise_scale": 0.0, "diffusion__target": "epsilon"},
            "diffusion.noise_scale: above 0 is expected with target 'epsilon', for without noise "
            "there is none to predict, got 0",
        ),
        (
            {"diffusion__noise_fraction": 0.5, "diffusion__target": "epsilon"},
            "diffusion.noise_fraction: 1 is expected with target 'epsilon' or normalise, got 0.5",
        ),
        (
            {"diffusion__error_fraction": 0.75},
            "diffusion.error_fraction: 1, or 0.5 at most, is expected, for the slots are split "
            "into windows of equal size; got 0.75",
        ),
        (
            {
                "diffusion__error_fraction": 0.5,
                "diffusion__learning_rate": 0.1,
                "diffusion__weight_decay": 0.6,
            },
            "diffusion.weight_decay: learning_rate times weight_decay of at most 0.05 is expected "
            "with error_fraction below 1, where rows catch up with steps that they took no part "
            "in, got 0.06",
        ),
        (
            {"diffusion__source_slots": True, "data__mixed": True},
            "diffusion.source_slots: False is expected with data.mixed, where the source items "
            "have slots already, got True",
        ),
        (
            {"diffusion__noise_fraction": 0.5, "diffusion__normalise": True},
            "diffusion.noise_fraction: 1 is expected with target 'epsilon' or normalise, got 0.5",
        ),
        ({"dpa__fine": 51}, "dpa.fine: at most dpa.coarse (50) is expected, got 51"),
        (
            {"dpa__draw_by": "rank"},
            "dpa.draw_by: 'uniform' is expected with dpa.drawn=0, where nothing is drawn, "
            "got 'rank'",
        ),
        (
            {"encoder__heads": 3, "encoder__name": "gru4rec", "preferences_by": "sasrec"},
            "encoder.heads: a divisor of the width (64) is expected, got 3",
        ),
        ({"encoder__heads": 3}, "encoder.heads: a divisor of the width (64) is expected, got 3"),
        (
            {"preferences_from": "runs/a"},
            "preferences_from: only the encoder stage reads preferences of another run; add "
            "--config.stage=encoder, got 'all'",
        ),
        (
            {"simulation__overrides": (("diffusion.epoch", 3),)},
            "simulation.overrides: there is no field 'diffusion.epoch'",
        ),
        (
            {"strict_overrides": (("nns.draw", 2),)},
            "strict_overrides: there is no field 'nns.draw'",
        ),
        (
            {"reference_overrides": (("protocol", "strict"),)},
            "reference_overrides: a field of diffusion, hbr, nns, dpa, encoder is expected, "
            "got 'protocol'",
        ),
        (
            {"nns__placement": "instead", "nns__drawn": 2, "encoder__negatives": 2}
            | {"encoder__variants": ("base", "hbr+nns")},
            "nns.placement: 'instead' expects encoder.negatives above nns.drawn (2), got 2",
        ),
        (
            {"simulation__overrides": (("diffusion.epochs", 0),)},
            "simulation.overrides: diffusion.epochs: an integer of at least 1 and at most 1000000 "
            "is expected, got 0",
        ),
    ],
)
def test_rules_between_fields(values: dict[str, Any], message: str) -> None:
    assert complaint(**values) == f"config.{message}"


def test_values_that_agree_pass() -> None:
    validate(config_with(diffusion__w_min=1.0, diffusion__sampling_steps=10, dpa__fine=50))
    validate(config_with(encoder__heads=3, encoder__name="gru4rec"))  # it has none
    validate(config_with(encoder__heads=64, preferences_from="runs/a", stage="encoder"))
    validate(config_with(diffusion__noise_fraction=0.5, diffusion__reweight=False))


def test_differences() -> None:
    config = default_config()
    assert differences(config, default_config()) == []
    config.encoder.batch_repeat, config.encoder.attend_padding = 3, False
    other = {**default_config().to_dict(), "encoder": {"variants": ["base"]}}
    assert differences(config, other) == [
        "encoder.attend_padding",
        "encoder.batch_repeat",
        "encoder.variants",
    ]
    config = default_config()
    other = config_with(seed=1, encoder__variants=["base", "hbr+nns+dpa"], old=2)
    assert differences(config, other) == ["old", "seed"]
    for path in FREE_FIELDS:
        assert differences(config, config_with(**{path.replace(".", "__"): "other"})) == []


def test_nothing_reads_the_simulation_of_a_real_log() -> None:
    config, other = default_config(), config_with(simulation__num_users=7, simulation__seed=1)
    assert differences(config, other) == ["simulation.num_users", "simulation.seed"]
    assert differences(config, other, "real") == []


def test_reading_and_writing_by_path() -> None:
    config = default_config()
    put(config, "encoder.width", 8)
    put(config, "seed", 3)
    assert (get(config, "encoder.width"), get(config, "seed")) == (8, 3)
    section = seeded(config, "encoder")
    assert (section.width, section.seed) == (8, 3)
    section.width = 4
    assert config.encoder.width == 8
    assert "seed" not in config.encoder


def test_a_field_that_an_older_run_lacks_had_its_default() -> None:
    config = default_config()
    older = config.to_dict()
    del older["seeds"], older["preferences_by"], older["diffusion"]["both"]
    assert differences(config, older) == []
    config.preferences_by = "sasrec"
    assert differences(config, older) == ["preferences_by"]


def test_a_run_of_several_seeds_may_get_more_of_them() -> None:
    one, two, five = (default_config() for _ in range(3))
    two.seeds, five.seeds = 2, 5
    assert differences(two, five) == []
    assert differences(one, two) == ["seeds"]


def test_seeds_beyond_the_largest() -> None:
    message = complaint(seed=2**31 - 1, seeds=2)
    assert message.startswith("config.seeds: seeds of at most 2147483647 are expected")
