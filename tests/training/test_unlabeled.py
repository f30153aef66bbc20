"""Unlabelled data: only the teacher's terms, in the amount asked for, exactly resumed."""

import pytest
import tiny
import torch
from torch.utils.data import default_collate

from hf_compress import CompressionConfig, CompressionTrainer, DistillationConfig, DistillationTrainer, PruningConfig
from hf_compress.errors import ConfigError, DataError
from hf_compress.training.unlabeled import UnlabeledBatches


def rows_without_labels(rows, misleading=False):
    """Drop labels, or put wrong ones in their place."""
    if misleading:
        return [{**row, "labels": 1 - row["labels"]} for row in rows]
    return [{k: v for k, v in row.items() if k != "labels"} for row in rows]


def trainer_of(folder, unlabeled=None, config=None, make=tiny.bert, rows=tiny.sentences, **arguments):
    return DistillationTrainer(
        make(0),
        tiny.arguments(folder, **arguments),
        distillation=config or DistillationConfig(temperature=3.0, unlabeled_weight=0.7, unlabeled_ratio=0.5),
        teacher=make(1),
        train_dataset=rows(),
        unlabeled_dataset=unlabeled,
    )


def kl(student, teacher, batch, temperature):
    s, t = (m(**{k: v for k, v in batch.items() if k != "labels"}).logits / temperature for m in (student, teacher))
    p, q = t.softmax(-1), s.softmax(-1)
    return temperature**2 * (p * (p / q).log()).sum() / len(p)


@pytest.mark.parametrize("misleading", [False, True])
def test_the_loss_is_that_of_the_textbook(tmp_path, monkeypatch, misleading):
    """E_D[task + KL] + lambda E_D'[KL], whatever labels the unlabelled rows carry."""
    free = rows_without_labels(tiny.sentences(40, seed=5), misleading)
    trainer = trainer_of(tmp_path, free, max_steps=1, learning_rate=0.0)
    seen, original = [], UnlabeledBatches.__call__
    monkeypatch.setattr(UnlabeledBatches, "__call__", lambda self, n: seen.append(original(self, n)) or seen[-1])
    trainer.train()
    (extra,) = seen
    assert extra.keys() == {"input_ids", "attention_mask"}
    assert len(extra["input_ids"]) == 4
    entry = trainer.state.log_history[0]
    expected = kl(tiny.bert(0), tiny.bert(1).eval(), extra, 3.0)
    assert entry["unlabeled_distillation_loss"] == pytest.approx(float(expected.detach()), rel=1e-2)
    total = 0.5 * entry["task_loss"] + 0.5 * entry["distillation_loss"]
    assert entry["loss"] == pytest.approx(total + 0.7 * 0.5 * entry["unlabeled_distillation_loss"], rel=1e-4)


@pytest.mark.parametrize(("make", "rows"), [(tiny.bert, tiny.sentences), (tiny.llama, tiny.texts)])
def test_accumulation_does_not_change_the_gradient(tmp_path, make, rows):
    """Texts of different lengths: their tokens are counted over the whole accumulated batch."""
    free = rows_without_labels(rows(64, seed=5))
    for i, row in enumerate(free):
        row["attention_mask"] = (torch.arange(8) < 8 - i % 3).long()
    norms = []
    for size, steps in ((8, 1), (2, 4)):
        config = DistillationConfig(unlabeled_ratio=1.0)
        arguments = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "optim": "sgd"}
        trainer = trainer_of(tmp_path, free, config, make, rows, max_steps=3, learning_rate=0.1, **arguments)
        trainer.train()
        norms.append([e["grad_norm"] for e in trainer.state.log_history if "grad_norm" in e])
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


def test_a_resumed_run_goes_on_with_the_same_unlabelled_batches(tmp_path):
    free = rows_without_labels(tiny.sentences(20, seed=5))
    options = {"save_strategy": "steps", "save_steps": 4, "gradient_accumulation_steps": 2, "logging_steps": 1}
    whole = trainer_of(tmp_path, free, **options)
    whole.train()
    resumed = trainer_of(tmp_path, free, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_batches_run_through_all_rows_before_any_comes_again_and_ranks_share_them():
    rows = [{"input_ids": torch.tensor([i])} for i in range(10)]
    sizes = [UnlabeledBatches(rows, default_collate, tiny.bert(), 2, seed=3, rank=r, world=2) for r in (0, 1)]
    found = [int(i) for number in range(5) for b in sizes for i in b(number)["input_ids"]]
    assert sorted(found[:10]) == list(range(10)) == sorted(found[10:])
    assert found[:10] != found[10:]
    again = UnlabeledBatches(rows, default_collate, tiny.bert(), 2, seed=3, rank=1, world=2)
    assert torch.equal(again(4)["input_ids"], sizes[1](4)["input_ids"])
    assert torch.equal(again(0)["input_ids"], sizes[1](0)["input_ids"])


def test_it_goes_with_pruning_and_layer_terms(tmp_path):
    config = CompressionConfig(DistillationConfig(hidden_weight=1.0), PruningConfig(0.5, frequency=1))
    trainer = CompressionTrainer(
        tiny.bert(),
        tiny.arguments(tmp_path),
        compression=config,
        teacher=tiny.bert(1),
        train_dataset=tiny.sentences(),
        unlabeled_dataset=rows_without_labels(tiny.sentences(20, seed=5)),
    )
    trainer.train()
    entry = [e for e in trainer.state.log_history if "unlabeled_hidden_loss" in e][-1]
    assert entry["sparsity"] == 0.5


@pytest.mark.parametrize(
    ("unlabeled", "error", "message"),
    [
        ([], DataError, "unlabeled_dataset is empty"),
        ([{"text": "raw"}], DataError, r"has the columns \['text'\], and none is an input of BertFor"),
        (iter([{}]), DataError, "must have a length"),
    ],
)
def test_what_is_no_data_is_refused(tmp_path, unlabeled, error, message):
    with pytest.raises(error, match=message):
        trainer_of(tmp_path, unlabeled)


def test_options_that_make_no_sense_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="compression has no distillation"):
        CompressionTrainer(
            tiny.bert(),
            tiny.arguments(tmp_path),
            compression=CompressionConfig(pruning=PruningConfig()),
            train_dataset=tiny.sentences(),
            unlabeled_dataset=tiny.sentences(),
        )
    with pytest.raises(ConfigError, match="unlabeled_ratio must be above 0"):
        DistillationConfig(unlabeled_ratio=0.0)
