"""A batch that does not fit into memory: the error is passed on, nothing is half done, and a smaller batch goes on."""

import pytest
import tiny
import torch
from transformers import TrainerCallback

from hf_compress import CompressionConfig, CompressionTrainer, DistillationConfig, PruningConfig
from hf_compress.training.checkpoint import last_complete_checkpoint


class Remember(TrainerCallback):
    """Keeps the weights, masks and numbers of hooks at the end of each step."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.weights = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.masks = {name: mask.clone() for name, mask in self.trainer.pruner.masks.items()}
        self.hooks = hooks(model, self.teacher)


def make_trainer(folder, dropout=0.1, **changes):
    teacher = tiny.bert(1, hidden_size=24)
    options = {"save_strategy": "steps", "save_steps": 3, "gradient_accumulation_steps": 2, **changes}
    trainer = CompressionTrainer(
        tiny.bert(0, dropout=dropout),
        tiny.arguments(folder, **options),
        compression=CompressionConfig(
            DistillationConfig(hidden_weight=1.0, attention_weight=1.0),
            PruningConfig(sparsity=0.5, criterion="movement", regrow=True, frequency=1),
        ),
        teacher=teacher,
        train_dataset=tiny.sentences(256),
    )
    # After the one that prunes.
    memory = Remember()
    memory.trainer, memory.teacher = trainer, teacher
    trainer.add_callback(memory)
    return trainer, memory


def hooks(*models):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [len(getattr(module, kind)) for model in models for module in model.modules() for kind in kinds]


def fail(module, call):
    """Have a part of a model run out of memory at a call."""
    calls = []

    def raise_at(*_):
        calls.append(1)
        if len(calls) == call:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    return module.register_forward_hook(raise_at)


@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_the_step_that_ran_out_of_memory_changes_nothing_and_the_rerun_ends_as_if_undisturbed(tmp_path, whose):
    whole, _ = make_trainer(tmp_path / "whole")
    whole.train()
    trainer, memory = make_trainer(tmp_path / "run")
    models = {"student": trainer.model, "teacher": memory.teacher}
    broken = models[whose].bert.encoder.layer[1].output
    # The second micro-batch of the fifth step.
    handle = fail(broken, 10)
    with pytest.raises(torch.OutOfMemoryError):
        trainer.train()
    assert trainer.state.global_step == 4
    assert all(torch.equal(p, memory.weights[name]) for name, p in trainer.model.named_parameters())
    assert all(torch.equal(mask, memory.masks[name]) for name, mask in trainer.pruner.masks.items())
    assert hooks(*models.values()) == memory.hooks
    handle.remove()
    assert last_complete_checkpoint(tmp_path / "run", files=trainer.checkpoint_files).name == "checkpoint-3"
    # In the same process, as in a notebook.
    trainer.train(resume_from_checkpoint=True)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, trainer.model.state_dict()[name]), name


def test_with_auto_find_batch_size_a_smaller_batch_is_trained_as_if_it_had_been_asked_for(tmp_path):
    options = {"train_sampling_strategy": "sequential", "gradient_accumulation_steps": 1, "dropout": 0.0}
    expected, _ = make_trainer(tmp_path / "small", per_device_train_batch_size=7, **options)
    expected.train()
    trainer, _ = make_trainer(tmp_path / "run", per_device_train_batch_size=8, auto_find_batch_size=True, **options)
    fail(trainer.model.bert.encoder.layer[1].output, 1)
    torch.manual_seed(0)
    trainer.train()
    # The Trainer tries nine tenths of it.
    assert trainer.state.train_batch_size == 7
    for name, mask in expected.pruner.masks.items():
        assert torch.equal(mask, trainer.pruner.masks[name]), name
    for name, weight in expected.model.state_dict().items():
        assert torch.equal(weight, trainer.model.state_dict()[name]), name
