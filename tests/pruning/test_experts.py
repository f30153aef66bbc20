"""The stacked matrices of experts lose weights like all others, along their inputs, whichever way they are stored."""

import pytest
import torch
from transformers import GptOssConfig, GptOssForCausalLM, MixtralConfig, MixtralForCausalLM

from hf_compress import OneShotConfig, prune_oneshot
from hf_compress.errors import TargetError
from hf_compress.pruning.config import PruningConfig
from hf_compress.pruning.pruner import Pruner

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
MORE = {"intermediate_size": 48, "vocab_size": 60, "num_local_experts": 2, "num_experts_per_tok": 1}


def mixtral():
    return MixtralForCausalLM(MixtralConfig(**SIZES, **MORE))


def gpt_oss():
    return GptOssForCausalLM(GptOssConfig(**SIZES, **MORE, head_dim=8))


def made(make):
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def experts_of(model):
    """Return each stack as (experts, outputs, inputs)."""
    is_transposed = isinstance(model, GptOssForCausalLM)
    found = [getattr(layer.mlp.experts, n) for layer in model.model.layers for n in ("gate_up_proj", "down_proj")]
    return [stack.detach().transpose(1, 2) if is_transposed else stack.detach() for stack in found]


def attached(model, **options):
    pruner = Pruner(PruningConfig(criterion="magnitude", frequency=1, begin=0.0, end=0.5, **options))
    pruner.attach(model)
    pruner.start(10)
    return pruner


@pytest.mark.parametrize("make", [mixtral, gpt_oss])
def test_single_weights_and_groups_along_the_inputs_go_in_the_trainer(make):
    model = made(make)
    attached(model, sparsity=0.5).step(5)
    assert all(float((stack == 0).float().mean()) == 0.5 for stack in experts_of(model))
    model = made(make)
    attached(model, structure="2:4", sparsity=0.5).step(5)
    assert all(bool(((s.reshape(-1, 4) != 0).sum(1) == 2).all()) for s in experts_of(model))


@pytest.mark.filterwarnings("error:no calibration sample")
@pytest.mark.parametrize("make", [mixtral, gpt_oss])
def test_sparsegpt_sees_what_experts_are_given(make):
    model = made(make)
    ids = {"input_ids": torch.randint(3, 60, (16, 32), generator=torch.Generator().manual_seed(0))}
    with torch.no_grad():
        dense = model(**ids).logits
        errors = {}
        for criterion in ("sparsegpt", "magnitude"):
            pruned = prune_oneshot(made(make), OneShotConfig(structure="2:4", criterion=criterion), [ids])
            assert all(bool(((s.reshape(-1, 4) != 0).sum(1) == 2).all()) for s in experts_of(pruned))
            errors[criterion] = float((pruned(**ids).logits - dense).square().mean())
    assert errors["sparsegpt"] < errors["magnitude"]


def test_blocks_of_a_stack_are_refused():
    with pytest.raises(TargetError, match="stacked in .*experts.*exclude"):
        attached(made(mixtral), structure="block:4x4")
    attached(made(mixtral), structure="block:4x4", exclude=["experts"])
