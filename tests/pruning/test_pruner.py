import pytest
import tiny
import torch

from hf_compress.errors import CheckpointError, ConfigError, SparsityError, TargetError
from hf_compress.pruning.checkpoint import load_pruning_state, save_pruning_state
from hf_compress.pruning.config import PruningConfig
from hf_compress.pruning.pruner import Pruner


def started(model, steps=10, **options):
    pruner = Pruner(PruningConfig(**{"criterion": "magnitude", "frequency": 1, "begin": 0.0, "end": 0.5, **options}))
    pruner.attach(model)
    pruner.start(steps)
    return pruner


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.97])
def test_uniform_zeroes_the_smallest_weights_of_each_matrix_exactly(sparsity):
    model, dense = tiny.bert(), dict(tiny.bert().named_parameters())
    pruner = started(model, sparsity=sparsity)
    pruner.step(5)
    assert len(pruner.masks) == 13
    for name, mask in pruner.masks.items():
        prune = round(sparsity * mask.numel())
        weight = dict(model.named_parameters())[name]
        assert int((weight == 0).sum()) == prune
        if prune:
            cut = dense[name].abs().flatten().sort().values[prune]
            assert torch.equal(weight, torch.where(dense[name].abs() >= cut, dense[name], 0.0))


def test_constant_weights_lose_exactly_the_number_asked_for():
    model = tiny.bert()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    pruner = started(model, sparsity=0.3, scope="global")
    pruner.step(5)
    total = sum(m.numel() for m in pruner.masks.values())
    zeros = sum(int((dict(model.named_parameters())[n] == 0).sum()) for n in pruner.masks)
    assert zeros == round(0.3 * total)


def test_global_scope_ranks_over_all_matrices():
    model = tiny.bert()
    with torch.no_grad():
        model.bert.encoder.layer[0].intermediate.dense.weight.mul_(1e-6)
    weak = "bert.encoder.layer.0.intermediate.dense.weight"
    for floor, kept in ((0.0, 0), (0.25, int(0.25 * 0.88 * 512))):
        pruner = started(model, sparsity=0.12, scope="global", floor=floor)
        pruner.step(5)
        assert int(pruner.masks[weak].sum()) == kept
        assert pruner.sparsity == pytest.approx(0.12, abs=1e-4)


@pytest.mark.parametrize("make", [tiny.bert, tiny.llama, tiny.vit], ids=["bert", "llama", "vit"])
def test_ffn_zeroes_whole_neurons_so_that_their_activation_does_not_matter(make):
    model = make()
    pruner = started(model, sparsity=0.25, structure="ffn")
    pruner.step(5)
    assert pruner.sparsity == 0.25
    pruner.check()
    assert {m.shape for m in pruner.masks.values()} <= {(32, 16), (16, 32), (32,)}
    for name, mask in pruner.masks.items():
        gone = ~mask if mask.dim() == 1 else (~mask).all(1 if mask.shape[0] == 32 else 0)
        assert int(gone.sum()) == 8, name
        assert int((~mask).sum()) == 8 * mask.numel() // 32, name


def test_pruned_weights_stay_pruned_when_the_others_shrink():
    model = tiny.bert()
    pruner = started(model, sparsity=0.5)
    pruner.step(1)
    gone = {n: ~m for n, m in pruner.masks.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-1, 1)
    pruner.step(5)
    assert all(not pruner.masks[n][g].any() for n, g in gone.items())


def test_nothing_is_touched_outside_the_targets():
    model, dense = tiny.bert(), tiny.bert().state_dict()
    started(model, sparsity=0.9).step(5)
    untouched = [n for n in dense if "embeddings" in n or "LayerNorm" in n or "bias" in n or "classifier" in n]
    assert len(untouched) > 10
    assert all(torch.equal(model.state_dict()[n], dense[n]) for n in untouched)


def test_check_finds_a_weight_that_came_back():
    model = tiny.bert()
    pruner = started(model, sparsity=0.5)
    pruner.step(5)
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.weight.fill_(1)
    with pytest.raises(SparsityError, match=r"layer.1.output.dense.weight: 256 entries must be zero, 256"):
        pruner.check()


@pytest.mark.parametrize("structure", ["unstructured", "ffn"])
def test_state_round_trip_through_a_checkpoint(tmp_path, structure):
    model = tiny.bert()
    pruner = started(model, sparsity=0.45, structure=structure)
    pruner.step(3)
    save_pruning_state(pruner, tmp_path)
    again = started(model, sparsity=0.45, structure=structure)
    load_pruning_state(again, tmp_path)
    assert again.sparsity == pruner.sparsity > 0
    assert all(torch.equal(again.masks[n], m) for n, m in pruner.masks.items())


def test_state_of_another_config_model_or_file_is_refused(tmp_path):
    model = tiny.bert()
    pruner = started(model, sparsity=0.45)
    pruner.step(3)
    save_pruning_state(pruner, tmp_path)
    with pytest.raises(CheckpointError, match="resume with the same options"):
        load_pruning_state(started(model, sparsity=0.5), tmp_path)
    with pytest.raises(CheckpointError, match="do not fit this model"):
        load_pruning_state(started(tiny.bert(num_hidden_layers=3), sparsity=0.45), tmp_path)
    (tmp_path / "pruning_state.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_pruning_state(started(model, sparsity=0.45), tmp_path)
    with pytest.raises(CheckpointError, match="has no pruning_state"):
        load_pruning_state(started(model, sparsity=0.45), tmp_path / "elsewhere")


@pytest.mark.parametrize("option", ["structure", "criterion", "schedule"])
def test_unknown_names_list_what_exists(option):
    with pytest.raises(ConfigError, match=f"unknown {option} 'magnitud'.*there are:"):
        Pruner(PruningConfig(**{option: "magnitud"}))


def test_a_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(TargetError, match="encodr"):
        started(tiny.bert(), include=("encodr",))
