"""Single weights of whole models go without training, block by block, in memory and from folder to folder."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from architectures import build
from oneshot_runs import rows

from hf_compress import OneShotConfig, calibration_batches, prune_oneshot
from hf_compress.errors import ArchitectureError, ConfigError, DataError, OutputExistsError, TargetError
from hf_compress.measurement.inputs import dummy_inputs
from hf_compress.pruning.oneshot.allocate import outlier_share, spread_sparsity
from hf_compress.pruning.oneshot.blocks import find_blocks
from hf_compress.pruning.oneshot.matrices import find_places
from hf_compress.pruning.oneshot.obs import sparsegpt
from hf_compress.pruning.oneshot.scores import row_mask

SCRIPT = Path(__file__).parents[1] / "oneshot_runs.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def data(number=3):
    return [{"input_ids": part} for part in rows().split(12 // number)]


def made_for(model, name):
    length = 400 if name in ("wav2vec2", "hubert", "wavlm") else None
    return [dict(dummy_inputs(model, 4, seed=i, length=length)) for i in range(3)]


def pruned_names(model):
    names = [p.name for p in find_places(model)]
    blocks = find_blocks(model, names)
    return [name for name in names if any(name.startswith(f"{block}.") for block in blocks)]


def zeros(model):
    return {name: float((model.get_parameter(name) == 0).double().mean()) for name in pruned_names(model)}


def same(one, other):
    other = dict(other.named_parameters())
    return all(torch.equal(p, other[name]) for name, p in one.named_parameters())


# What is fused, transposed, tied over layers, converted in loading, of two stacks, convolutional or of experts.
KINDS = [
    "bert",
    "gpt2",
    "gpt-neox",
    "llama",
    "gemma3",
    "phi3",
    "mixtral",
    "t5",
    "bart",
    "vit",
    "swin",
    "resnet",
    "wav2vec2",
]


@pytest.mark.filterwarnings("ignore:no calibration sample")
@pytest.mark.parametrize("name", KINDS)
def test_from_folder_to_folder_equals_in_memory(tmp_path, name):
    model = build(name)
    batches, config = made_for(model, name), OneShotConfig(sparsity=0.6)
    model.save_pretrained(tmp_path / "dense")
    prune_oneshot(tmp_path / "dense", config, batches, tmp_path / "sparse", device="cpu")
    found = type(model).from_pretrained(tmp_path / "sparse")
    assert prune_oneshot(model, config, batches) is model
    assert same(found, model)
    total = [(w == 0).sum() for n, w in found.named_parameters() if n in zeros(found)]
    assert int(sum(total)) == round(0.6 * sum(found.get_parameter(n).numel() for n in zeros(found)))
    assert not (tmp_path / "sparse.part").exists()


# Matrices that are given the same are pruned together.
ORDER = [("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)]


@pytest.mark.parametrize("joint_gb", [0.0, 1.0], ids=["block by block", "matrix by matrix"])
def test_each_sees_what_the_pruned_ones_before_it_make(joint_gb):
    """The oracle: models in which all that comes before is pruned and the rest is dense."""
    model, batches = build("llama"), data()
    dense = {name: p.detach().clone() for name, p in model.named_parameters()}
    prune_oneshot(model, OneShotConfig(sparsity=0.5, criterion="wanda", joint_gb=joint_gb), batches)
    done = []
    for layer in range(3):
        steps = ORDER if joint_gb else [sum(ORDER, ())]
        for step in steps:
            names = [n for n in dense if f"layers.{layer}." in n and any(part in n for part in step)]
            given = inputs_of(dense | {name: model.get_parameter(name).detach() for name in done}, names, batches)
            for name in names:
                norms = given[name].flatten(0, -2).norm(dim=0)
                stays = row_mask(dense[name].abs() * norms, dense[name].numel() // 2)
                assert torch.equal(model.get_parameter(name), dense[name] * stays), name
            done += names


@torch.no_grad()
def inputs_of(state, names, batches):
    model, given = build("llama"), {}
    model.load_state_dict(state, strict=False)
    for name in names:
        module = model.get_submodule(name.removesuffix(".weight"))
        module.register_forward_pre_hook(lambda _, args, name=name: given.setdefault(name, []).append(args[0]))
    for batch in batches:
        model(**batch)
    return {name: torch.cat(each) for name, each in given.items()}


def test_padding_does_not_count():
    batches = [{"input_ids": rows(), "attention_mask": torch.ones_like(rows())}]
    batches[0]["attention_mask"][:, 6:] = 0
    other = [{name: values.clone() for name, values in batches[0].items()}]
    other[0]["input_ids"][:, 6:] = 7
    made = [prune_oneshot(build("llama"), OneShotConfig(sparsity=0.5), each) for each in (batches, other)]
    assert same(*made)


@pytest.mark.parametrize(
    "options", [{}, {"scope": "owl", "criterion": "wanda"}, {"scope": "sensitivity", "refine": 3}]
)
def test_activations_on_disk_are_those_in_memory(options):
    config = OneShotConfig(sparsity=0.5, **options)
    on_disk = OneShotConfig(sparsity=0.5, activations="disk", **options)
    # In float64: sums run in another order where memory is aligned in another way, and refining amplifies it.
    one, other = (prune_oneshot(build("t5").double(), c, made_for(build("t5"), "t5")) for c in (config, on_disk))
    others = dict(other.named_parameters())
    for name, parameter in one.named_parameters():
        torch.testing.assert_close(parameter, others[name], rtol=1e-6, atol=1e-8)
        assert torch.equal(parameter == 0, others[name] == 0)


@pytest.mark.parametrize("after", [1, 3])
def test_killed_and_continued_equals_uninterrupted(tmp_path, after):
    build("llama").save_pretrained(tmp_path / "dense")
    arguments = ["killed", tmp_path / "dense", tmp_path / "sparse", str(after)]
    done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, timeout=300)
    assert done.returncode == -9
    assert not (tmp_path / "sparse").exists()
    with pytest.raises(OutputExistsError, match="the beginnings of another run"):
        prune_oneshot(tmp_path / "dense", OneShotConfig(sparsity=0.4), data(), tmp_path / "sparse", device="cpu")
    config = OneShotConfig(sparsity=0.5)
    for name in ("sparse", "whole"):
        prune_oneshot(str(tmp_path / "dense"), config, data(), tmp_path / name, device="cpu")
    files = [p.name for p in (tmp_path / "whole").iterdir()]
    assert len(files) > 4
    for name in files:
        assert (tmp_path / "sparse" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_two_processes_with_half_of_the_data_each_equal_one_with_all(tmp_path):
    model = build("llama")
    model.save_pretrained(tmp_path / "dense")
    done = subprocess.run(
        [*TORCHRUN, SCRIPT, "shared", tmp_path / "dense", tmp_path / "rank"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    # Sums in another order differ in the last digits, which steps of refinement on so few rows would make more of.
    prune_oneshot(model, OneShotConfig(sparsity=0.5, scope="owl", refine=0), data(4))
    first, second = (torch.load(tmp_path / f"rank-{rank}.pt") for rank in range(2))
    streamed = type(model).from_pretrained(tmp_path / "rank-folder").state_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(first[name], second[name])
        assert torch.equal(first[name], streamed[name])
        assert torch.allclose(first[name], weight, atol=1e-4), name


def test_experts_that_see_no_token_lose_their_smallest_weights_and_it_is_said():
    model = build("mixtral")
    with torch.no_grad():
        for layer in model.model.layers:
            # Every token goes to the first two experts.
            layer.mlp.gate.weight.zero_()
            layer.mlp.gate.weight[:2] = 0.0
    dense = model.model.layers[1].mlp.experts.down_proj.detach().clone()
    with pytest.warns(UserWarning, match=r"no calibration sample passed through .*experts"):
        prune_oneshot(model, OneShotConfig(sparsity=0.5), data())
    found = model.model.layers[1].mlp.experts.down_proj
    unseen = [i for i in range(len(dense)) if torch.equal(found[i][found[i] != 0], dense[i][found[i] != 0])]
    assert unseen
    for i in unseen:
        stays = found[i] != 0
        assert dense[i][stays].abs().min() >= dense[i][~stays].abs().max()
    assert len(unseen) < len(dense)


@pytest.mark.parametrize("criterion", ["sparsegpt", "wanda", "ria", "magnitude"])
def test_n_of_m_is_exact_and_saved(tmp_path, criterion):
    model = prune_oneshot(build("gpt2"), OneShotConfig(structure="2:4", criterion=criterion), data(), tmp_path / "out")
    found = type(model).from_pretrained(tmp_path / "out")
    assert same(found, model)
    for place in find_places(found):
        groups = place.read(found.get_parameter(place.name)).reshape(-1, 4)
        assert bool(((groups == 0).sum(1) == 2).all()), place.name
    report = json.loads((tmp_path / "out" / "oneshot.json").read_text())
    assert report["calibration"]["samples"] == 12
    assert {entry["sparsity"] for entry in report["matrices"].values()} == {0.5}


@pytest.mark.parametrize("scope", ["erk", "owl", "sensitivity"])
def test_every_allocation_has_the_sparsity_of_all(scope):
    model = build("bert")
    sizes = {name: model.get_parameter(name).numel() for name in pruned_names(model)}
    prune_oneshot(model, OneShotConfig(sparsity=0.7, scope=scope, criterion="wanda"), data())
    found = zeros(model)
    assert sum(found[n] * size for n, size in sizes.items()) == pytest.approx(0.7 * sum(sizes.values()), abs=1)
    assert len({round(s, 3) for s in found.values()}) > 1


def test_owl_gives_blocks_with_outliers_more_weights():
    found = spread_sparsity({"a": 0.1, "b": 0.3, "c": 0.2}, {"a": 100, "b": 100, "c": 200}, 0.7, 0.08)
    assert found["a"] > found["c"] > found["b"]
    assert found["a"] - found["b"] == pytest.approx(0.16)
    assert (found["a"] + found["b"] + 2 * found["c"]) / 4 == pytest.approx(0.7)
    scores = torch.ones(100)
    scores[:3] = 50.0
    assert outlier_share([scores[:50], scores[50:]]) == pytest.approx(0.03)


def test_sensitivity_is_measured_on_dense_blocks_and_leaves_them_so():
    model, batches = build("llama"), data()
    dense = [p.detach().clone() for p in model.parameters()]
    config = OneShotConfig(sparsity=0.5, scope="sensitivity", spread=0.0)
    prune_oneshot(model, config, batches)
    assert same(model, prune_oneshot(build("llama"), OneShotConfig(sparsity=0.5), batches))
    assert not all(torch.equal(a, b) for a, b in zip(model.parameters(), dense, strict=True))


def test_sparsity_by_pattern_and_what_is_left_alone():
    config = OneShotConfig(sparsity=0.5, pattern_sparsity={"mlp": 0.75}, exclude=("o_proj",))
    found = zeros(prune_oneshot(build("llama"), config, data()))
    for name, share in found.items():
        assert share == pytest.approx(0.75 if "mlp" in name else 0 if "o_proj" in name else 0.5, abs=1e-3), name


def test_a_model_without_blocks_is_pruned_as_a_whole():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(128, 16),
        torch.nn.Linear(16, 2),
    )

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = model

        def forward(self, x):
            return self.layers(x)

    images = torch.randn(40, 1, 4, 4)
    dense = model[0].weight.detach().clone()
    net = prune_oneshot(Net(), OneShotConfig(sparsity=0.5, refine=0), [{"x": images}])
    patches = torch.nn.functional.unfold(images, 3, padding=1).transpose(1, 2).reshape(-1, 9)
    expected = sparsegpt(dense.view(8, 9), patches.T @ patches, prune=36)
    assert torch.allclose(net.layers[0].weight.view(8, 9), expected, atol=1e-5)


@pytest.mark.parametrize(("criterion", "steps"), [("sparsegpt", 20), ("wanda", 0)])
def test_what_sparsegpt_leaves_is_refined_unless_told_otherwise(criterion, steps):
    plain, same_steps, other = (
        prune_oneshot(build("llama"), OneShotConfig(sparsity=0.5, criterion=criterion, refine=refine), data())
        for refine in (None, steps, 20 - steps)
    )
    assert same(plain, same_steps)
    assert not same(plain, other)


def test_calibration_rows_are_drawn_from_joined_texts(tmp_path):
    class Tokenizer:
        def __call__(self, texts, add_special_tokens):
            return {"input_ids": [[ord(c) % 50 for c in text] for text in texts]}

    texts = ["hello there", "", "general kenobi " * 20]
    joined = [ord(c) % 50 for c in "".join(texts)]
    batches = calibration_batches(texts, Tokenizer(), samples=5, length=16, batch_size=2)
    assert [tuple(b["input_ids"].shape) for b in batches] == [(2, 16), (2, 16), (1, 16)]
    whole = [joined[i : i + 16] for i in range(0, len(joined) - 15, 16)]
    found = [row for b in batches for row in b["input_ids"].tolist()]
    assert all(row in whole for row in found)
    again = calibration_batches(texts, Tokenizer(), samples=5, length=16, batch_size=2)
    other = calibration_batches(texts, Tokenizer(), samples=5, length=16, batch_size=2, seed=1)
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(batches, again, strict=True))
    assert [b["input_ids"].tolist() for b in other] != [b["input_ids"].tolist() for b in batches]
    for wrong, message in (([], "holds no text"), (["  "], "holds no text"), (["short"], "at least 16 tokens")):
        with pytest.raises(DataError, match=message):
            calibration_batches(wrong, Tokenizer(), length=16)
    with pytest.raises(DataError, match="need the tokenizer"):
        calibration_batches(texts)


@pytest.mark.parametrize(
    ("options", "failure", "message"),
    [
        ({}, ConfigError, "give sparsity"),
        ({"sparsity": 1.0}, ConfigError, "below 1, found 1.0"),
        ({"structure": "3:2"}, ConfigError, "1 <= N < M"),
        ({"structure": "2:4", "sparsity": 0.6}, ConfigError, "has sparsity 0.5, found 0.6"),
        ({"structure": "2:4", "scope": "owl"}, ConfigError, "same sparsity in each group"),
        ({"structure": "ffn", "sparsity": 0.5}, ConfigError, "whole units are named by keep"),
        ({"structure": "2:5"}, ConfigError, "expected a number of inputs that 5 divides, found 32"),
        ({"sparsity": 0.5, "criterion": "wonda"}, ConfigError, "did you mean 'wanda'"),
        ({"sparsity": 0.5, "criterion": "fisher"}, ConfigError, "scores whole units"),
        ({"sparsity": 0.5, "keep": {"ffn": 0.5}}, ConfigError, "give one of both"),
        ({"sparsity": 0.5, "scope": "global"}, ConfigError, "scope must be one of"),
        ({"sparsity": 0.5, "damping": 0.0}, ConfigError, "damping must be above 0"),
        ({"sparsity": 0.5, "include": ("embed_tokens", "q_proj")}, TargetError, "stands outside of the blocks"),
        ({"sparsity": 0.5, "include": ("nothing",)}, TargetError, "matches no parameter"),
        ({"sparsity": 0.5, "pattern_sparsity": {"nothing": 0.2}}, TargetError, "matches no parameter"),
    ],
)
def test_bad_options_are_refused(options, failure, message):
    model = build("llama")
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(failure, match=message):
        prune_oneshot(model, OneShotConfig(**options), data())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "at least one batch"),
        ([[1, 2]], "names of inputs to tensors"),
        ([{"input_ids": torch.zeros(0, 4, dtype=torch.long)}], "is empty"),
        ([{"input_ids": torch.full((1, 4), 60)}], "expected tokens from 0 to 59, found 60 to 60"),
    ],
)
def test_bad_calibration_is_refused_before_anything_is_written(tmp_path, batches, message):
    build("llama").save_pretrained(tmp_path / "dense")
    with pytest.raises(DataError, match=message):
        prune_oneshot(tmp_path / "dense", OneShotConfig(sparsity=0.5), batches, tmp_path / "sparse")
    with pytest.raises(DataError, match=message):
        prune_oneshot(build("llama"), OneShotConfig(sparsity=0.5), batches, tmp_path / "sparse")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dense"]


def test_bad_places_are_refused(tmp_path):
    config = OneShotConfig(sparsity=0.5)
    with pytest.raises(ConfigError, match="give output"):
        prune_oneshot(tmp_path, config, data())
    with pytest.raises(ArchitectureError, match="expected the folder or id"):
        prune_oneshot(tmp_path, config, data(), tmp_path / "out")
    build("albert").save_pretrained(tmp_path / "albert")
    with pytest.raises(ArchitectureError, match="found none in .*load it and pass it"):
        prune_oneshot(tmp_path / "albert", config, data(), tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(OutputExistsError, match="exists already"):
        prune_oneshot(build("llama"), config, data(), tmp_path / "full")


@pytest.mark.parametrize("lost", ["lm_head", "layers.1.mlp.up_proj"])
def test_a_folder_that_lacks_weights_is_refused_and_not_filled_up(tmp_path, lost):
    model = build("llama")
    state = {name: value for name, value in model.state_dict().items() if lost not in name}
    model.save_pretrained(tmp_path / "dense", state_dict=state)
    with pytest.raises(ArchitectureError, match=f"lacks weights of LlamaForCausalLM: .*{lost}"):
        prune_oneshot(tmp_path / "dense", OneShotConfig(sparsity=0.5), data(), tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


def test_the_model_is_in_its_mode_and_its_forward_pass_its_own_afterwards():
    model = build("llama").train()
    prune_oneshot(model, OneShotConfig(sparsity=0.5), data())
    assert model.training
    assert not any("forward" in vars(m) or m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(model.generation_config, transformers.GenerationConfig)


def test_patterns_choose_experts_too():
    everything = {p.name for p in find_places(build("mixtral"))}
    experts = {name for name in everything if "experts" in name}
    assert len(experts) == 6
    assert {p.name for p in find_places(build("mixtral"), exclude=("experts",))} == everything - experts
    assert {p.name for p in find_places(build("mixtral"), include=("down_proj",))} == {
        n for n in experts if "down" in n
    }
