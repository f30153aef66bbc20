"""Pruning beside what people already use in the Trainer."""

import itertools
import math

import pytest
import tiny
import torch
from transformers import EarlyStoppingCallback, Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainerCallback

from hf_compress import (
    CompressionConfig,
    CompressionMixin,
    CompressionTrainer,
    DistillationConfig,
    PruningCallback,
    PruningConfig,
    PruningTrainer,
)
from hf_compress.errors import UnsupportedError

MODELS = {
    "bert": (tiny.bert, tiny.sentences),
    "vit": (tiny.vit, tiny.images),
    "llama": (tiny.llama, tiny.texts),
    "t5": (tiny.t5, tiny.texts),
}


def trained(tmp_path, model="bert", pruning=None, trainer=PruningTrainer, own=None, **arguments):
    make, rows = MODELS[model]
    config = pruning or PruningConfig(0.6, criterion="platon", regrow=True, frequency=2)
    made = trainer(make(), tiny.arguments(tmp_path, **arguments), pruning=config, train_dataset=rows(), **(own or {}))
    made.train()
    made.pruner.check()
    return made


def sparsities(trainer):
    return [entry["sparsity"] for entry in trainer.state.log_history if "sparsity" in entry]


@pytest.mark.parametrize("model", list(MODELS))
@pytest.mark.parametrize(
    "arguments",
    [
        {"bf16": True},
        {"gradient_checkpointing": True},
        {"gradient_accumulation_steps": 2},
        {"label_smoothing_factor": 0.1},
        {"max_grad_norm": 0.0},
    ],
    ids=lambda a: next(iter(a)),
)
def test_options_of_the_trainer(tmp_path, model, arguments):
    if model == "t5" and "label_smoothing_factor" in arguments:
        pytest.skip("the Trainer's smoother takes the labels away, from which T5 makes its decoder inputs")
    found = sparsities(trained(tmp_path, model, **arguments))
    assert found[-1] == pytest.approx(0.6, abs=0.01)
    assert found == sorted(found)


def test_torch_compile(tmp_path):
    tiny.needs_compile()
    found = sparsities(trained(tmp_path, torch_compile=True, torch_compile_backend="eager"))
    assert found == sparsities(trained(tmp_path))


def test_accumulation_gives_the_same_masks_as_one_large_batch(tmp_path):
    whole = trained(tmp_path, per_device_train_batch_size=8, optim="sgd", learning_rate=0.1)
    parts = trained(
        tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4, optim="sgd", learning_rate=0.1
    )
    assert all(torch.equal(parts.pruner.masks[n], m) for n, m in whole.pruner.masks.items())


def test_a_loss_function_of_ones_own(tmp_path):
    seen = []

    def loss(outputs, labels, num_items_in_batch=None):
        seen.append(num_items_in_batch)
        return torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch

    assert sparsities(trained(tmp_path, own={"compute_loss_func": loss}))[-1] == pytest.approx(0.6, abs=0.01)
    assert seen


def test_seq2seq_trainer_by_mixin(tmp_path):
    class PruningSeq2SeqTrainer(CompressionMixin, Seq2SeqTrainer):
        pass

    arguments = Seq2SeqTrainingArguments(
        str(tmp_path), max_steps=6, report_to="none", use_cpu=True, save_strategy="no", predict_with_generate=True
    )
    config = CompressionConfig(pruning=PruningConfig(structure="2:4", frequency=1))
    trainer = PruningSeq2SeqTrainer(tiny.t5(), arguments, compression=config, train_dataset=tiny.texts())
    trainer.train()
    for mask in trainer.pruner.masks.values():
        assert (mask.view(-1, 4).sum(1) == 2).all()


def test_the_callback_alone_does_what_the_trainer_does(tmp_path):
    config = PruningConfig(0.6, criterion="movement", regrow=True, frequency=2)
    mine = trained(tmp_path, pruning=config)
    callback = PruningCallback(config)
    stock = Trainer(tiny.bert(), tiny.arguments(tmp_path), train_dataset=tiny.sentences(), callbacks=[callback])
    stock.train()
    for (name, a), b in zip(mine.model.named_parameters(), stock.model.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert sparsities(stock) == sparsities(mine)


class Rates(TrainerCallback):
    def __init__(self):
        self.found = []

    def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
        self.found.append(optimizer.param_groups[0]["lr"])


def test_the_learning_rate_is_rewound_at_each_mask(tmp_path):
    rates = Rates()
    config = PruningConfig(0.6, schedule="iterative", rounds=3, begin=0.25, end=0.75, lr_rewind=0.1)
    own = {"callbacks": [rates]}
    trainer = trained(tmp_path, pruning=config, own=own, max_steps=16, warmup_steps=2)
    expected = [trainer.pruner.plan.learning_rate(16, 2)(step) * 1e-3 for step in range(16)]
    assert rates.found == pytest.approx(expected)
    assert [rates.found[s] for s in (4, 8, 12)] == pytest.approx([1e-3] * 3)
    rates.found.clear()
    trainer.train()
    assert rates.found == pytest.approx(expected)


def test_rewinding_is_refused_where_the_scheduler_is_not_ours(tmp_path):
    config = PruningConfig(lr_rewind=0.1)
    stock = Trainer(
        tiny.bert(), tiny.arguments(tmp_path), train_dataset=tiny.sentences(), callbacks=[PruningCallback(config)]
    )
    with pytest.raises(UnsupportedError, match="lr_rewind needs the Trainer to make the scheduler"):
        stock.train()
    model = tiny.bert()
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    own = PruningTrainer(
        model,
        tiny.arguments(tmp_path),
        pruning=config,
        train_dataset=tiny.sentences(),
        optimizers=(optimizer, scheduler),
    )
    with pytest.raises(UnsupportedError, match="pass no scheduler of your own"):
        own.train()


def test_early_stopping_counts_only_at_the_final_sparsity(tmp_path):
    """Evaluation losses do not change at learning rate 0, so a stock Trainer would stop after two of them."""
    config = PruningConfig(0.9, frequency=1, end=0.5)
    trainer = PruningTrainer(
        tiny.bert(),
        tiny.arguments(
            tmp_path,
            max_steps=16,
            learning_rate=0.0,
            eval_strategy="steps",
            eval_steps=1,
            save_strategy="steps",
            save_steps=1,
            load_best_model_at_end=True,
            metric_for_best_model="eval_loss",
        ),
        pruning=config,
        train_dataset=tiny.sentences(),
        eval_dataset=tiny.sentences(8),
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
    )
    trainer.train()
    assert trainer.state.global_step >= 10
    assert trainer.pruner.sparsity == pytest.approx(0.9, abs=1e-3)
    assert not math.isinf(trainer.state.best_metric)


def test_a_stream_without_end_is_pruned_and_distilled(tmp_path):
    """Data too large to count: only as many rows are read as there are steps."""
    from datasets import IterableDataset

    rows, read = tiny.sentences(16), []

    def endless():
        for number in itertools.count():
            read.append(number)
            yield rows[number % 16]

    config = CompressionConfig(DistillationConfig(), PruningConfig(0.5, frequency=1))
    trainer = CompressionTrainer(
        tiny.bert(), tiny.arguments(tmp_path, max_steps=6), compression=config, teacher=tiny.bert(1),
        train_dataset=IterableDataset.from_generator(endless),
    )  # fmt: skip
    trainer.train()
    assert trainer.pruner.sparsity == pytest.approx(0.5, abs=0.01)
    assert len(read) < 200
