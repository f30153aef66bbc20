"""Any data as options: a config that says the same after each round trip, or one error of ours."""

import importlib
import json
import math
from pathlib import Path

import pytest
from hypothesis import strategies as st

import hf_compress
from hf_compress.errors import ConfigError
from hf_compress.options import Options
from hf_compress.plain import read_yaml

from .inputs import JUNK, TEXTS, bad_inputs, refused

for file in Path(hf_compress.__file__).parent.rglob("config.py"):
    parts = file.relative_to(Path(hf_compress.__file__).parent).with_suffix("").parts
    importlib.import_module(".".join(["hf_compress", *parts]))
CONFIGS = sorted((c for c in Options.__subclasses__() if c.__module__.startswith("hf_compress")), key=str)
NEEDED = {
    "BudgetConfig": {"max_bytes": 0.5},
    "SweepConfig": {"space": {"stages.a.source": ["b"]}},
    "CardInfo": {"model_name": "x"},
    "CompressionConfig": {"pruning": {}},
    "OneShotConfig": {"sparsity": 0.5},
    "RecipeConfig": {
        "name": "x",
        "task": {"type": "t", "dataset": "digits"},
        "stages": [{"name": "a", "kind": "train", "source": "b"}],
    },
    "StageConfig": {"name": "a", "kind": "train", "source": "b"},
    "TaskConfig": {"type": "t", "dataset": "digits"},
}


def some_options():
    """A config class and data for it: what it needs, with some options replaced by anything and some unknown."""

    def data(cls):
        names = st.one_of(st.sampled_from([f.name for f in cls.__dataclass_fields__.values()]), TEXTS, st.integers())
        changes = st.dictionaries(names, JUNK, max_size=4)
        return st.tuples(st.just(cls), changes.map(lambda c: {**NEEDED.get(cls.__name__, {}), **c}))

    return st.sampled_from(CONFIGS).flatmap(data)


def finite(data):
    if isinstance(data, dict):
        return all(finite(v) for v in data.values())
    if isinstance(data, list):
        return all(finite(v) for v in data)
    return not isinstance(data, float) or math.isfinite(data)


def test_all_configs_are_tried():
    assert len(CONFIGS) == 17
    assert all(cls.from_dict(NEEDED.get(cls.__name__, {})) for cls in CONFIGS)


@bad_inputs(some_options(), few=300, many=4000)
def test_any_options_are_a_config_that_survives_every_round_trip_or_refused(value):
    cls, data = value
    config = refused(cls.from_dict, data)
    if not isinstance(config, cls):
        return
    plain = config.to_dict()
    assert finite(plain)
    assert cls.from_dict(plain) == config
    assert cls.from_dict(json.loads(config.to_json())) == config
    assert cls.from_dict(read_yaml(config.to_yaml())) == config
    assert cls.from_dict(read_yaml(config.to_yaml(defaults=False))) == config


@bad_inputs(st.tuples(st.sampled_from(CONFIGS), JUNK), few=100, many=1000)
def test_anything_in_place_of_options_is_refused_or_a_config(value):
    cls, data = value
    assert isinstance(refused(cls.from_dict, data), (cls, ConfigError))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 10**400, 10**5000], ids=["nan", "inf", "huge", "long"])
def test_no_number_that_nothing_can_be_computed_with(number):
    for cls, name in ((hf_compress.DistillationConfig, "hidden_weight"), (hf_compress.PruningConfig, "threshold")):
        with pytest.raises(ConfigError, match=f"{name} must be"):
            cls(**{name: number})
    with pytest.raises(ConfigError, match="frequency must be"):
        hf_compress.PruningConfig(frequency=number)


@pytest.mark.parametrize("data", [{1: 0.5}, {"a": {2: 3}}, {"a": float("nan")}, {"a": [{"b": object()}]}])
def test_free_options_are_plain_data_too(data):
    """They are written into checkpoints, cards and recipes, and must be the same when read again."""
    with pytest.raises(ConfigError, match="criterion_options"):
        hf_compress.PruningConfig(criterion_options=data)
