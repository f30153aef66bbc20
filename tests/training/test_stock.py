"""What equals the stock Trainer."""

import copy
import json

import pytest
import tiny
import torch
from torch.nn.utils import prune
from transformers import Trainer, TrainerCallback

from hf_compress import (
    CompressionConfig,
    CompressionTrainer,
    PruningCallback,
    PruningConfig,
    PruningTrainer,
    QuantizationConfig,
)

TIMES = ("train_runtime", "train_samples_per_second", "train_steps_per_second")


def run(trainer_class, folder, accepts_loss_kwargs=True, **options):
    arguments = tiny.arguments(folder, save_strategy="steps", save_steps=4, gradient_accumulation_steps=2)
    model = tiny.bert(dropout=0.1)
    model.accepts_loss_kwargs = accepts_loss_kwargs
    trainer = trainer_class(model, arguments, train_dataset=tiny.sentences(), **options)
    trainer.train()
    trainer.save_model()
    return trainer


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return one == other


def test_without_compression_weights_logs_and_checkpoints_are_those_of_the_stock_trainer(tmp_path):
    stock, ours = run(Trainer, tmp_path / "stock"), run(CompressionTrainer, tmp_path / "ours", compression=None)
    files = {str(p.relative_to(tmp_path / "stock")) for p in (tmp_path / "stock").rglob("*")}
    assert files == {str(p.relative_to(tmp_path / "ours")) for p in (tmp_path / "ours").rglob("*")}
    for name in ("model.safetensors", "checkpoint-4/model.safetensors", "checkpoint-8/config.json"):
        assert (tmp_path / "stock" / name).read_bytes() == (tmp_path / "ours" / name).read_bytes()
    for name in ("optimizer.pt", "scheduler.pt"):
        one, other = (torch.load(tmp_path / who / "checkpoint-8" / name) for who in ("stock", "ours"))
        assert same(one, other)
    logs = [[{k: v for k, v in e.items() if k not in TIMES} for e in t.state.log_history] for t in (stock, ours)]
    assert logs[0] == logs[1]
    states = [
        json.loads((tmp_path / who / "checkpoint-8/trainer_state.json").read_text()) for who in ("stock", "ours")
    ]
    assert states[0] == states[1]


@pytest.mark.parametrize("accepts", [True, False])
def test_a_config_that_only_quantizes_trains_as_the_stock_trainer_does(tmp_path, accepts):
    """Also where the stock Trainer divides the loss by the accumulation steps."""
    config = CompressionConfig(quantization=QuantizationConfig("int8"))
    stock = run(Trainer, tmp_path / "stock", accepts)
    ours = run(CompressionTrainer, tmp_path / "ours", accepts, compression=config)
    assert same(stock.model.state_dict(), ours.model.state_dict())
    logs = [[e["grad_norm"] for e in t.state.log_history if "grad_norm" in e] for t in (stock, ours)]
    assert logs[0] == logs[1]


def test_pruning_nothing_gives_the_stock_weights(tmp_path):
    """One micro-batch a step, so the loss is the stock Trainer's too."""
    weights = []
    for cls, extra in ((Trainer, {}), (PruningTrainer, {"pruning": PruningConfig(sparsity=0.0)})):
        trainer = cls(tiny.bert(dropout=0.1), tiny.arguments(tmp_path), train_dataset=tiny.sentences(), **extra)
        trainer.train()
        weights.append(trainer.model.state_dict())
    assert same(*weights)


@pytest.mark.parametrize("make", [tiny.bert, tiny.vit], ids=["bert", "vit"])
def test_the_callback_in_a_stock_trainer_prunes_saves_and_resumes_exactly(tmp_path, make):
    """The stock Trainer alone would not even load ViT's weights on resume."""
    rows = tiny.sentences() if make is tiny.bert else tiny.images()
    arguments = tiny.arguments(tmp_path, save_strategy="steps", save_steps=4)

    def trainer():
        callback = PruningCallback(PruningConfig(sparsity=0.6, scope="uniform", frequency=1))
        return Trainer(make(), arguments, train_dataset=rows, callbacks=[callback])

    whole, resumed = trainer(), trainer()
    whole.train()
    assert whole.state.log_history[-2]["sparsity"] == pytest.approx(0.6, abs=1e-3)
    name, weight = next(
        (n, p) for n, p in whole.model.named_parameters() if n.endswith(("fc2.weight", "output.dense.weight"))
    )
    assert int((weight == 0).sum()) == round(0.6 * weight.numel()), name
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert same(resumed.model.state_dict(), whole.model.state_dict())


@pytest.mark.parametrize("mode", ["one run", "resumed"])
def test_weights_that_are_gone_have_no_say_in_clipping(tmp_path, mode):
    dense, model = tiny.bert(), tiny.bert()
    at_once = PruningConfig(sparsity=0.9, criterion="magnitude", scope="uniform", schedule="constant", begin=0, end=0)
    options = {"max_grad_norm": 1e-2, "save_strategy": "steps", "save_steps": 2}

    def trained(trainer_class, model, folder, **pruning):
        arguments = tiny.arguments(tmp_path / folder, **options)
        return trainer_class(model, arguments, train_dataset=tiny.sentences(), **pruning)

    ours = trained(PruningTrainer, model, "ours", pruning=at_once)
    ours.train()
    if mode == "resumed":
        again = trained(PruningTrainer, tiny.bert(seed=1), "ours", pruning=at_once)
        again.train(resume_from_checkpoint=str(tmp_path / "ours" / "checkpoint-2"))
        model = again.model
    masks = {name.removesuffix(".weight"): mask for name, mask in ours.pruner.masks.items()}
    for name, mask in masks.items():
        prune.custom_from_mask(dense.get_submodule(name), "weight", mask)
    trained(Trainer, dense, "torch").train()
    for name, mask in masks.items():
        assert torch.equal(dense.get_submodule(name).weight_orig * mask, model.get_submodule(name).weight), name
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def test_after_a_run_that_was_broken_off_gradients_are_those_of_the_plain_model(tmp_path):
    class Interrupt(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    at_once = PruningConfig(sparsity=0.5, criterion="magnitude", schedule="constant", begin=0, end=0)
    trainer = PruningTrainer(
        tiny.bert(), tiny.arguments(tmp_path), train_dataset=tiny.sentences(), pruning=at_once, callbacks=[Interrupt()]
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    plain = copy.deepcopy(trainer.model).eval()
    for model in (plain, trainer.model.eval()):
        model.zero_grad()
        model(input_ids=torch.arange(1, 9)[None], labels=torch.tensor([1])).loss.backward()
    assert trainer.pruner.masks
    for name, mask in trainer.pruner.masks.items():
        gradient = trainer.model.get_parameter(name).grad
        assert torch.count_nonzero(gradient[~mask]), name
        assert torch.equal(gradient, plain.get_parameter(name).grad)
