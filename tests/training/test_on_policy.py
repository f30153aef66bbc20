"""Batches that the student writes: what is in them, what is learnt from them, and that a run repeats itself."""

import pytest
import tiny
import torch

from hf_compress import DistillationConfig, DistillationTrainer
from hf_compress.errors import ConfigError
from hf_compress.training.on_policy import StudentWriter, Written


def make(folder, model=tiny.llama, rows=None, teacher=None, **changes):
    config = DistillationConfig(**{"on_policy_fraction": 1.0, "on_policy_tokens": 5, **changes})
    arguments = tiny.arguments(folder, save_strategy="steps", save_steps=2, max_steps=4)
    return DistillationTrainer(
        model(0),
        arguments,
        train_dataset=rows or tiny.texts(),
        distillation=config,
        teacher=teacher if teacher is not None else model(1),
    )


def test_prompts_are_kept_and_what_is_written_is_scored(tmp_path):
    trainer = make(tmp_path)
    ids = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 0, 0, 0]])
    batch = {
        "input_ids": ids,
        "attention_mask": (ids > 0).long(),
        "labels": torch.tensor([[-100, -100, -100, 8, 9, 10], [-100, -100, 13, -100, -100, -100]]),
    }
    found = StudentWriter(trainer, trainer.compression.distillation)(batch, 0)
    assert isinstance(found, Written)
    padding = trainer.model.config.eos_token_id  # it has no other token for it
    assert found["input_ids"][:, :3].tolist() == [[5, 6, 7], [padding, 11, 12]]
    assert found["attention_mask"][:, :3].tolist() == [[1, 1, 1], [0, 1, 1]]
    assert (found["labels"][:, :3] == -100).all()
    written = found["labels"] != -100
    assert torch.equal(found["labels"][written], found["input_ids"][written])
    # Nothing counts behind the end of text, and the end itself does.
    for labels in found["labels"][:, 3:].tolist():
        end = labels.index(2) + 1 if 2 in labels else 5
        assert all(t != -100 for t in labels[:end])
        assert all(t == -100 for t in labels[end:])


@pytest.mark.parametrize("model", [tiny.llama, tiny.t5])
@pytest.mark.parametrize("chunk_size", [0, 3])
def test_only_the_teacher_is_learnt_from_and_the_loss_is_that_of_the_written_text(tmp_path, model, chunk_size):
    trainer = make(tmp_path, model, chunk_size=chunk_size)
    batches, _ = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, trainer.args.device)
    (batch,) = batches
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch)
    with torch.no_grad():
        ours, theirs = (m(**batch).logits for m in (trainer.model, trainer._objective.objectives[0].teacher.model))
    labels = batch["labels"]
    counted = labels != -100
    if model is tiny.llama:
        ours, theirs, counted = ours[:, :-1], theirs[:, :-1], counted[:, 1:]
    q, p = (torch.log_softmax(z[counted] / 2, -1) for z in (ours, theirs))
    expected = 0.5 * 4 * (p.exp() * (p - q)).sum(-1).mean()
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-4, atol=1e-7)
    assert set(trainer._loss.drain()) == {"distillation_loss"}


def test_the_student_comes_closer_to_the_teacher(tmp_path):
    trainer = make(tmp_path)
    trainer.args.max_steps, trainer.args.learning_rate = 40, 1e-2
    trainer.train()
    losses = [entry["distillation_loss"] for entry in trainer.state.log_history if "distillation_loss" in entry]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_a_fraction_is_that_share_and_the_rest_has_a_task(tmp_path):
    trainer = make(tmp_path, on_policy_fraction=0.3)
    writer = StudentWriter(trainer, trainer.compression.distillation)
    batch = {k: torch.stack([r[k] for r in tiny.texts(2)]) for k in tiny.texts(1)[0]}
    written = [isinstance(writer(batch, i), Written) for i in range(100)]
    assert 20 < sum(written) < 40
    assert written == [isinstance(writer(batch, i), Written) for i in range(100)]


def test_a_resumed_run_writes_the_same(tmp_path):
    first = make(tmp_path / "a", on_policy_fraction=0.5)
    first.train()
    again = make(tmp_path / "a", on_policy_fraction=0.5)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_cannot_write_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="generate text"):
        make(tmp_path, tiny.bert, tiny.sentences())
    with pytest.raises(ConfigError, match="0-1"):
        DistillationConfig(on_policy_fraction=1.5)
    with pytest.raises(ConfigError, match="needs? the teacher itself"):
        DistillationConfig(on_policy_fraction=0.5, cache="c")
