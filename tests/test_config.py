import json

import pytest

from hf_compress import CompressionConfig, DistillationConfig, PruningConfig, QuantizationConfig
from hf_compress.errors import ConfigError
from hf_compress.measurement.config import MeasureSettings
from hf_compress.plain import read_yaml
from hf_compress.recipes.config import RecipeConfig

CONFIGS = [
    PruningConfig(sparsity=0.8, scope="global", include=("encoder",)),
    DistillationConfig(temperature=4),
    QuantizationConfig("nf4", skip_modules=("lm_head",)),
    CompressionConfig(DistillationConfig(), PruningConfig(), QuantizationConfig()),
    CompressionConfig(pruning=PruningConfig(structure="ffn")),
    MeasureSettings(batch_sizes=(1, 8)),
]
NAMES = [type(c).__name__ + str(i) for i, c in enumerate(CONFIGS)]


@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
@pytest.mark.parametrize("ending", ["json", "yaml"])
def test_round_trip_through_plain_data_and_files(config, ending, tmp_path):
    assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config
    config.save(tmp_path / f"config.{ending}")
    assert type(config).load(tmp_path / f"config.{ending}") == config


@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
def test_what_is_left_out_as_default_means_the_same(config):
    short = config.to_dict(defaults=False)
    assert len(str(short)) < len(str(config.to_dict()))
    assert type(config).from_dict(short) == config


@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
def test_configs_are_frozen_and_every_option_is_explained(config):
    with pytest.raises(AttributeError):
        setattr(config, next(iter(config.to_dict())), 1)
    assert all(f.metadata.get("help") for f in config.__dataclass_fields__.values())


def test_all_problems_are_reported_at_once_with_the_near_name():
    data = {
        "prunning": {},
        "pruning": {"sparsity": 2, "freqency": 5, "begin": 0.9, "end": 0.1},
        "distillation": {"temperature": 0},
    }
    with pytest.raises(ConfigError) as caught:
        CompressionConfig.from_dict(data)
    message = str(caught.value)
    for part in (
        "unknown option 'prunning' (did you mean 'pruning'?)",
        "unknown option 'freqency' (did you mean 'frequency'?)",
        "sparsity must be at least 0 and below 1, found 2",
        "found begin=0.9, end=0.1",
        "temperature must be above 0, found 0",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PruningConfig(sparsity="half"), "sparsity must be a number or none, found 'half'"),
        (lambda: PruningConfig(frequency=2.5), "frequency must be a whole number"),
        (lambda: PruningConfig(frequency=True), "frequency must be a whole number"),
        (lambda: PruningConfig(frequency=0), "frequency must be at least 1"),
        (lambda: PruningConfig(sparsity=float("nan")), "sparsity must be a finite number"),
        (lambda: PruningConfig(initial_sparsity=0.6), "between 0 and sparsity"),
        (lambda: PruningConfig(floor=2.0), "floor must lie between 0 and 1, found 2.0"),
        (lambda: PruningConfig(structure="3:2"), "keeps N of M, so 1 <= N < M, found '3:2'"),
        (lambda: PruningConfig(structure="0:4"), "keeps N of M, so 1 <= N < M, found '0:4'"),
        (lambda: PruningConfig(structure="1:4", sparsity=0.5), "structure='1:4' has sparsity 0.75, found 0.5"),
        (lambda: PruningConfig(structure="2:4", scope="erk"), "same sparsity in each target"),
        (lambda: PruningConfig(schedule="iterative"), "rounds and schedule='iterative' go together"),
        (lambda: PruningConfig(rounds=3), "rounds and schedule='iterative' go together"),
        (lambda: PruningConfig(schedule="iterative", rounds=1), "rounds must be at least 2"),
        (lambda: PruningConfig(lr_rewind=1.5), "lr_rewind must lie between 0 and 1"),
        (lambda: PruningConfig(threshold=0.0), "threshold must be above 0"),
        (lambda: PruningConfig(structure="ffn", scope="global"), "which no config can say"),
        (lambda: PruningConfig(structure="ffn", include=("x",)), "do not go with structure='ffn'"),
        (lambda: DistillationConfig(task_weight=-1), "task_weight must be at least 0"),
        (lambda: DistillationConfig(logit_weight=0), "the teacher would do nothing"),
        (lambda: QuantizationConfig(compute_dtype="half"), "compute_dtype must be one of"),
        (lambda: CompressionConfig(), "nothing to do"),
        (lambda: CompressionConfig(pruning={"sparsity": 0.5}), "pruning must be PruningConfig or none"),
        (lambda: CompressionConfig.from_dict([1]), "expected a mapping"),
        (lambda: PruningConfig.load("nowhere.json"), "there is no file"),
    ],
)
def test_bad_values_are_refused_with_what_was_expected_and_found(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_file_that_does_not_parse_is_refused(tmp_path):
    (tmp_path / "bad.yaml").write_text("sparsity: [")
    with pytest.raises(ConfigError, match=r"bad.yaml cannot be read"):
        PruningConfig.load(tmp_path / "bad.yaml")


def test_a_wrong_option_deep_in_a_recipe_is_named_even_where_the_part_around_it_has_no_defaults():
    data = {"name": "x", "task": {"type": "image-classification", "dataset": "digits"}, "measure": {"models": ["a"]}}
    stage = {"name": "a", "kind": "train", "source": "m", "compression": {"pruning": {"sparsity": 1.0}}}
    with pytest.raises(ConfigError, match="sparsity must be at least 0 and below 1, found 1.0") as caught:
        RecipeConfig.from_dict({**data, "stages": [stage]})
    assert "nothing to do" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("2:4", "2:4"), ("8e-5", 8e-5), ("1.5e3", 1500.0), ("12", 12), ("-0.5", -0.5), ("1_000", "1_000"), ("true", True),
     (".inf", float("inf")), ("yes", True), ("block:4x1", "block:4x1"), ("010", 10)],
)  # fmt: skip
def test_yaml_reads_numbers_as_people_write_them(text, value):
    """YAML 1.1 takes 2:4 for 124 and 8e-5 for text."""
    found = read_yaml(text)
    assert found == value
    assert type(found) is type(value)
