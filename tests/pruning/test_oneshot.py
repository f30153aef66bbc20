"""Units chosen and removed without training."""

import copy
import math

import pytest
import torch
from architectures import build

from hf_compress import OneShotConfig, prune_oneshot, shrink
from hf_compress.architecture.anatomy import ffn_units
from hf_compress.architecture.attention import head_axes
from hf_compress.architecture.kept import nearest_legal
from hf_compress.architecture.width import find_width_axes
from hf_compress.errors import ArchitectureError, ConfigError, DataError
from hf_compress.pruning.oneshot.importance import UNIT_CRITERIA, Seen
from hf_compress.pruning.oneshot.repair import Regression
from hf_compress.pruning.oneshot.taps import taps_of
from hf_compress.pruning.oneshot.units import unit_importance


def prune_units(model, batches, **options):
    return prune_oneshot(model, OneShotConfig(**options), batches)


def batches(number=4, size=6, labels=True):
    generator = torch.Generator().manual_seed(3)
    found = []
    for _ in range(number):
        ids = torch.randint(3, 60, (size, 9), generator=generator)
        mask = torch.ones_like(ids)
        mask[::2, 6:] = 0
        made = {"input_ids": ids, "attention_mask": mask}
        found.append(made | ({"labels": torch.randint(2, (size,), generator=generator)} if labels else {}))
    return found


def measured(model, groups, criterion, data):
    return unit_importance(model, data, taps_of(model, groups), criterion, torch.Generator().manual_seed(0))


def reader_of(model, group):
    names = {s.parameter.rpartition(".")[0] for s in group.slices if s.dim == 1 and s.parameter.endswith("weight")}
    return model.get_submodule(max(names, key=lambda name: "down" in name or "output" in name or "o_proj" in name))


def masked_loss(model, group, mask, batch):
    """The oracle: the loss with a factor on each unit, in plain autograd, one sample at a time."""
    reader = reader_of(model, group)
    each = reader.in_features // group.count
    handle = reader.register_forward_pre_hook(lambda _, args: (args[0] * mask.repeat_interleave(each),))
    try:
        return model(**batch).loss
    finally:
        handle.remove()


@pytest.mark.parametrize("criterion", ["fisher", "taylor"])
@pytest.mark.parametrize(("name", "find"), [("bert", ffn_units), ("llama", lambda m: list(head_axes(m)[0].groups))])
def test_gradients_of_masks_equal_autograd(name, find, criterion):
    model = build(name)
    data = batches()
    if name == "llama":
        data = [{**b, "labels": b["input_ids"]} for b in data]
    groups = find(model)
    found = measured(model, groups, criterion, data)
    assert all(p.grad is None for p in model.parameters())
    for group in groups:
        total = torch.zeros(group.count)
        for batch in data:
            for i in range(len(batch["labels"])):
                mask = torch.ones(group.count, requires_grad=True)
                masked_loss(model, group, mask, {k: v[i : i + 1] for k, v in batch.items()}).backward()
                total += mask.grad.square() if criterion == "fisher" else mask.grad
        assert torch.allclose(found[group], total.abs(), rtol=2e-3, atol=1e-6 + 1e-3 * float(total.abs().max()))


def test_fisher_ranks_units_as_their_ablation_does():
    model = build("bert")
    group = ffn_units(model)[1]
    data = batches(8)
    scores = measured(model, [group], "fisher", data)[group]
    costs = []
    with torch.no_grad():
        base = sum(float(masked_loss(model, group, torch.ones(group.count), b)) for b in data)
        for unit in range(group.count):
            mask = torch.ones(group.count)
            mask[unit] = 0
            costs.append(abs(sum(float(masked_loss(model, group, mask, b)) for b in data) - base))
    ranks = torch.stack([scores.argsort().argsort(), torch.tensor(costs).argsort().argsort()]).double()
    # Spearman's rank correlation; 0.65 on this net.
    assert float(torch.corrcoef(ranks)[0, 1]) > 0.5


def test_activations_and_weights_are_those_of_the_valid_positions():
    model, data = build("bert"), batches()
    group = ffn_units(model)[0]
    reader, given = reader_of(model, group), []
    reader.register_forward_pre_hook(lambda _, args: given.append(args[0].detach()))
    with torch.no_grad():
        for batch in data:
            model(**batch)
    values, masks = torch.cat(given), torch.cat([b["attention_mask"] for b in data]).bool()
    mean = torch.stack([v[m].abs().mean(0) for v, m in zip(values, masks, strict=True)])
    assert torch.allclose(measured(model, [group], "activation", data)[group], mean.norm(dim=0), rtol=1e-4)
    wanda = values[masks].norm(dim=0) * reader.weight.abs().sum(0)
    assert torch.allclose(measured(model, [group], "wanda", data)[group], wanda, rtol=1e-4)


def test_entropy_and_mutual_information_of_made_up_units():
    labels = torch.arange(512) % 2
    generator = torch.Generator().manual_seed(0)
    constant, even = torch.zeros(512), torch.arange(512) / 512
    telling = labels + 0.01 * torch.rand(512, generator=generator)
    values = torch.stack([constant, even, telling], -1).view(512, 1, 3, 1)
    seen = Seen(values, None, torch.ones(512, 1, dtype=torch.bool), torch.ones(3, 1), labels)
    scores = {}
    for name in ("entropy", "mutual_information"):
        criterion = UNIT_CRITERIA.get(name)(3)
        criterion.observe(seen)
        scores[name] = criterion.scores()
    assert scores["entropy"][0] == pytest.approx(0, abs=1e-5)
    assert scores["entropy"][1] == pytest.approx(math.log(32), abs=1e-3)
    assert scores["mutual_information"][2] == pytest.approx(math.log(2), abs=1e-3)
    assert scores["mutual_information"][1] < 0.02


@pytest.mark.parametrize("has_bias", [True, False])
def test_repair_equals_the_closed_form(has_bias):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(50, n, generator=generator, dtype=torch.float64) for n in (5, 3))
    weight, bias = torch.randn(3, 5, generator=generator, dtype=torch.float64), torch.zeros(3) if has_bias else None
    regression = Regression(5, 3)
    for part in range(0, 50, 10):
        regression.add(x[part : part + 10], y[part : part + 10])
    new, moved = regression.solve(weight, bias, 0.1)
    centre = x - x.mean(0) if has_bias else x
    strength = 0.1 * float((centre.T @ centre).diagonal().mean())
    # Ridge towards the old weight is least squares with extra rows.
    rows = torch.cat([centre, strength**0.5 * torch.eye(5, dtype=torch.float64)])
    wanted = torch.cat([y - y.mean(0) if has_bias else y, strength**0.5 * weight.T])
    expected = torch.linalg.lstsq(rows, wanted).solution.T
    assert torch.allclose(new, expected)
    if has_bias:
        assert torch.allclose(moved.double(), y.mean(0) - expected @ x.mean(0), atol=1e-6)
    exact = Regression(5, 3)
    exact.add(x, x @ weight.T)
    assert torch.allclose(exact.solve(weight, None, 0.01)[0], weight)


def error(smaller, full, data):
    inputs = [{k: v for k, v in b.items() if k != "labels"} for b in data]
    with torch.no_grad():
        return sum(float((smaller(**b).logits - full(**b).logits).square().mean()) for b in inputs)


@pytest.mark.parametrize(
    ("name", "keep"),
    [
        ("bert", {"ffn": 0.5}),
        ("llama", {"ffn": 24, "heads": 1}),
        ("t5", {"heads": 0.5}),
        ("gpt2", {"ffn": 0.25}),
        ("vit", {"heads": 2, "layers": 2}),
    ],
)
def test_repair_brings_the_outputs_back(name, keep):
    model = build(name)
    state = copy.deepcopy(model.state_dict())
    data = batches(8, labels=False)
    if name == "t5":
        data = [{**b, "decoder_input_ids": b["input_ids"]} for b in data]
    if name == "vit":
        data = [
            {"pixel_values": torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(i))} for i in range(8)
        ]
    repaired = prune_units(model, data, keep=keep)
    cut = prune_units(model, data, keep=keep, repair=None)
    assert repaired.config.to_dict() == cut.config.to_dict() != model.config.to_dict()
    assert error(repaired, model, data) < 0.9 * error(cut, model, data)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    "criterion", ["fisher", "taylor", "activation", "wanda", "entropy", "mutual_information", "magnitude", "random"]
)
def test_exactly_as_many_units_stay_and_the_same_for_one_seed(criterion):
    model, data = build("bert"), batches(labels=False)
    first, again = (prune_units(model, data, keep={"ffn": 17}, criterion=criterion, rounds=3) for _ in range(2))
    assert first.config.intermediate_size == 17
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_magnitude_without_repair_is_what_shrink_keeps():
    model = build("bert")
    found = prune_units(model, batches(), keep={"ffn": 20}, criterion="magnitude", repair=None)
    expected = shrink(model, ffn=20)
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), expected.parameters(), strict=True))


def test_neurons_of_experts_go_by_magnitude_alone():
    model, data = build("mixtral"), batches()
    found = prune_units(model, data, keep={"ffn": 0.5}, criterion="magnitude")
    expected = shrink(model, ffn=0.5)
    assert found.config.intermediate_size == model.config.intermediate_size // 2
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), expected.parameters(), strict=True))
    with pytest.raises(ArchitectureError, match="criterion='magnitude'"):
        prune_units(model, data, keep={"ffn": 0.5}, criterion="fisher")
    with pytest.raises(ArchitectureError, match="ffn: expected channels"):
        prune_units(build("bloom"), data, keep={"ffn": 0.5}, criterion="fisher")


@pytest.mark.parametrize("criterion", ["wanda", "fisher", "taylor"])
@pytest.mark.parametrize(("name", "option"), [("gpt2", "hidden"), ("llama", "hidden"), ("resnet", "filters")])
def test_channels_that_nothing_reads_go_first(name, option, criterion):
    model, keep = build(name), {}
    axes = [axis for axis in find_width_axes(model)[0] if axis.name == option]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for axis in axes:
            group = axis.groups[0]
            order = torch.stack([torch.randperm(group.count // group.blocks, generator=generator)])
            half = axis.counts(nearest_legal(axis, axis.size // 2, 1))[0]
            keep[axis.field] = sorted(order[0, :half].tolist())
            for tap in taps_of(model, [group])[group]:
                unread = tap.entries[order[0, half:]].flatten()
                tap.module.weight.movedim(tap._dim, 0)[unread] = 0
    generator = torch.Generator().manual_seed(2)
    images = [{"pixel_values": torch.randn(6, 3, 32, 32, generator=generator)}]
    data = images if name == "resnet" else [{"input_ids": b["input_ids"]} for b in batches()]
    found = prune_units(model, data, keep={option: 0.5}, criterion=criterion)
    expected = shrink(model, **{option: keep})
    assert found.config.to_dict() == expected.config.to_dict() != model.config.to_dict()
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), expected.parameters(), strict=True))


@pytest.mark.parametrize("criterion", ["loss", "influence", "angular"])
def test_a_layer_that_does_nothing_goes_first(criterion):
    model = build("llama")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layers.1" in name and ("o_proj" in name or "down_proj" in name):
                parameter.zero_()
    data = [{k: v for k, v in b.items() if k != "labels"} for b in batches()]
    smaller = prune_units(model, data, keep={"layers": 2}, layer_criterion=criterion)
    assert smaller.config.num_hidden_layers == 2
    assert error(smaller, model, data) < 1e-9


@pytest.mark.parametrize(
    ("options", "failure", "message"),
    [
        ({"keep": {}}, ConfigError, "give sparsity, structure='N:M', or keep"),
        ({"keep": {"neurons": 0.5}}, ConfigError, "found \\['neurons'\\]"),
        ({"keep": {"ffn": 0.5}, "criterion": "fischer"}, ConfigError, "did you mean 'fisher'"),
        ({"keep": {"ffn": 0.5}, "layer_criterion": "los"}, ConfigError, "criterion of layers"),
        ({"keep": {"ffn": 0.5}, "rounds": 0}, ConfigError, "rounds must be"),
        ({"keep": {"ffn": 0.5}, "repair": 0.0}, ConfigError, "repair must be above 0"),
        ({"keep": {"ffn": 49}}, ArchitectureError, "from 1 to 48"),
        ({"keep": {"ffn": [1, 2]}}, ArchitectureError, "a whole number from 1 to 48 or a fraction"),
        ({"keep": {"heads": 2}}, ArchitectureError, "size of a head follows from the width"),
        ({"keep": {"layers": 0}}, ArchitectureError, "from 1 to 3"),
    ],
)
def test_bad_input_is_refused(options, failure, message):
    with pytest.raises(failure, match=message):
        prune_units(build("bert"), batches(), **options)


def test_what_the_batches_lack_is_said():
    with pytest.raises(DataError, match="batches is empty"):
        prune_units(build("bert"), [], keep={"ffn": 0.5})
    data = [{"input_ids": b["input_ids"]} for b in batches()]
    with pytest.raises(ConfigError, match="samples have no class"):
        prune_units(build("llama"), data, keep={"ffn": 0.5}, criterion="mutual_information")
