"""Blocks, rows, columns and N:M, by brute force over single entries."""

import itertools

import pytest
import tiny
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_compress.errors import ConfigError, TargetError
from hf_compress.pruning.config import PruningConfig
from hf_compress.pruning.pruner import Pruner


class Net(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


LAYERS = {
    "linear": lambda: nn.Linear(8, 12),
    "transposed": lambda: Conv1D(12, 8),
    "conv": lambda: nn.Conv2d(8, 12, 3),
    "conv transposed": lambda: nn.ConvTranspose2d(8, 12, 3),
}


def pruned(layer, **options):
    torch.manual_seed(0)
    net = Net(LAYERS[layer]())
    dense = net.layer.weight.detach().clone()
    pruner = Pruner(
        PruningConfig(**{"criterion": "magnitude", "begin": 0.0, "end": 0.0, "include": ("weight",), **options})
    )
    pruner.attach(net)
    pruner.start(10)
    pruner.step(0)
    pruner.check()
    return dense, pruner.masks["layer.weight"], pruner


def by_output(tensor, layer):
    """As (outputs, inputs, kernel)."""
    tensor = tensor.transpose(0, 1) if "transposed" in layer else tensor
    return tensor.reshape(12, 8, -1)


@pytest.mark.parametrize("layer", list(LAYERS))
@pytest.mark.parametrize(("keep", "group"), [(2, 4), (1, 2), (1, 8), (6, 8), (3, 4)])
def test_n_of_m_keeps_the_largest_of_each_group_along_the_inputs(layer, keep, group):
    dense, mask, pruner = pruned(layer, structure=f"{keep}:{group}")
    dense, mask = by_output(dense, layer), by_output(mask, layer)
    for o, start, k in itertools.product(range(12), range(0, 8, group), range(dense.shape[2])):
        values = [abs(float(dense[o, start + i, k])) for i in range(group)]
        largest = sorted(range(group), key=lambda i: values[i])[-keep:]
        assert [bool(mask[o, start + i, k]) for i in range(group)] == [i in largest for i in range(group)]
    assert pruner.sparsity == 1 - keep / group


@pytest.mark.parametrize("layer", list(LAYERS))
@pytest.mark.parametrize(
    ("structure", "height", "width"), [("block:4x1", 4, 1), ("block:3x4", 3, 4), ("rows", 1, 8), ("columns", 12, 1)]
)
def test_the_weakest_blocks_go_whole(layer, structure, height, width):
    dense, mask, pruner = pruned(layer, structure=structure, sparsity=0.25)
    dense, mask = by_output(dense, layer), by_output(mask, layer)
    norms = {}
    for r, c in itertools.product(range(0, 12, height), range(0, 8, width)):
        norms[r, c] = float(sum(v**2 for v in dense[r : r + height, c : c + width].flatten().tolist()))
    gone = sorted(norms, key=norms.get)[: round(0.25 * len(norms))]
    for (r, c), block in ((place, mask[place[0] : place[0] + height, place[1] : place[1] + width]) for place in norms):
        assert block.any() == block.all() == ((r, c) not in gone)
    assert pruner.sparsity == len(gone) / len(norms)


@pytest.mark.parametrize("structure", ["unstructured", "2:4", "block:3x2", "rows", "columns"])
@pytest.mark.parametrize("scope", ["uniform", "global"])
def test_as_many_units_as_asked_for_go_when_all_are_equal(structure, scope):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 6))
    for parameter in net.parameters():
        nn.init.constant_(parameter, 0.5)
    kind = {"structure": structure, "criterion": "magnitude", "scope": scope}
    config = PruningConfig(**kind, begin=0.0, end=1.0, frequency=1, include=("weight",))
    pruner = Pruner(config)
    pruner.attach(net)
    pruner.start(4)
    for step in range(5):
        pruner.step(step)
        sizes = {"unstructured": (96, 72), "2:4": (96, 72), "block:3x2": (16, 12), "rows": (12, 6), "columns": (8, 12)}
        wanted = [pruner.ramp(step) * size for size in sizes[structure]]
        expected = round(sum(wanted)) if scope == "global" else sum(round(w) for w in wanted)
        assert sum(pruner.pruned.values()) == expected
        if structure == "2:4":
            for mask in pruner.masks.values():
                assert (mask.view(-1, 4).sum(1) >= 2).all()


def test_n_of_m_rises_gradually_and_never_takes_more_than_its_share_of_a_group():
    model = tiny.bert()
    pruner = Pruner(PruningConfig(structure="2:4", begin=0.0, end=1.0, frequency=1, criterion="random"))
    pruner.attach(model)
    pruner.start(6)
    found = []
    for step in range(7):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_()
        pruner.step(step)
        found.append(pruner.sparsity)
        assert all((m.view(-1, 4).sum(1) >= 2).all() for m in pruner.masks.values())
    assert found == pytest.approx([pruner.ramp(s) for s in range(7)], abs=1e-3)
    assert found[-1] == 0.5


@pytest.mark.parametrize(
    ("structure", "layer", "message"),
    [
        ("2:3", "linear", "8 inputs, which 2:3 does not divide"),
        ("block:5x1", "linear", "blocks of 5x1 do not divide"),
        ("block:1x3", "conv", "8 inputs, which blocks of 1x3"),
    ],
)
def test_a_structure_that_does_not_divide_a_weight_is_refused_by_its_name(structure, layer, message):
    with pytest.raises(TargetError, match=rf"layer.weight has .*{message}"):
        pruned(layer, structure=structure, **({"sparsity": 1 / 3} if structure == "2:3" else {}))


@pytest.mark.parametrize("structure", ["block:0x4", "block:4", "blocks", "2:", "4x1"])
def test_a_structure_that_does_not_exist_is_refused(structure):
    with pytest.raises(ConfigError, match=r"structure .*(there are|at least one row)"):
        Pruner(PruningConfig(structure=structure))
