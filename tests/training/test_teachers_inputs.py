"""A teacher gets what it takes, whether or not its student takes it, and whatever wraps it."""

import pytest
import tiny
import torch
import torch.nn.functional as F
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ResNetConfig,
    ResNetForImageClassification,
)

from hf_compress import DistillationConfig, DistillationTrainer, cache_teacher
from hf_compress.distillation.teacher import Teacher


def distilbert():
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 16}
    none = {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
    return DistilBertForSequenceClassification(DistilBertConfig(**sizes, **none))


def pairs(count=16):
    second = torch.tensor([0] * 4 + [1] * 4)
    return [{**row, "token_type_ids": second} for row in tiny.sentences(count)]


@pytest.mark.parametrize("is_cached", [False, True])
def test_segments_reach_a_teacher_whose_student_has_none(tmp_path, is_cached):
    rows, teacher, student = pairs(), tiny.bert(3), distilbert()
    for parameter in teacher.parameters():
        parameter.data *= 4
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0] if name != "labels"}
    with torch.no_grad():
        expected = teacher(**batch).logits.softmax(-1)
        ours = student(batch["input_ids"], attention_mask=batch["attention_mask"]).logits.log_softmax(-1)
    options = {"task_weight": 0.0, "logit_weight": 1.0, "temperature": 1.0, "measure_agreement": not is_cached}
    if is_cached:
        cache_teacher(teacher, rows, tmp_path / "cache", progress=False)
    trainer = DistillationTrainer(
        student,
        tiny.arguments(tmp_path / "run", max_steps=1, per_device_train_batch_size=16, remove_unused_columns=False),
        train_dataset=rows,
        eval_dataset=rows,
        distillation=DistillationConfig(**options, cache=str(tmp_path / "cache") if is_cached else ""),
        teacher=None if is_cached else teacher,
    )
    agreed = trainer.evaluate().get("eval_teacher_agreement")
    if not is_cached:
        assert agreed == pytest.approx(float((ours.argmax(-1) == expected.argmax(-1)).float().mean()))
    trainer.train()
    divergence = float(F.kl_div(ours, expected, reduction="batchmean"))
    assert trainer.state.log_history[0]["loss"] == pytest.approx(divergence, rel=1e-3)


def test_that_the_trainer_removes_them_is_said(tmp_path, caplog):
    def make(**changes):
        DistillationTrainer(
            distilbert(), tiny.arguments(tmp_path, **changes), teacher=tiny.bert(3), train_dataset=pairs()
        )

    make(remove_unused_columns=False)
    assert "the teacher takes" not in caplog.text
    make()
    assert "the teacher takes token_type_ids" in caplog.text


def test_a_teacher_with_adapters_or_compiled_takes_what_it_took_without():
    peft = pytest.importorskip("peft")
    plain = Teacher(tiny.bert(3))
    assert Teacher(torch.compile(tiny.bert(3))).accepts == plain.accepts
    adapted = Teacher(
        peft.get_peft_model(tiny.bert(3), peft.LoraConfig(target_modules=["query"], task_type="SEQ_CLS"))
    )
    row = {name: value[None] for name, value in pairs(1)[0].items()}
    # New adapters change nothing.
    assert torch.equal(adapted.outputs(row).logits, plain.outputs(row).logits)


def test_a_teacher_in_16_bit_takes_images_in_32():
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)
    teacher, row = ResNetForImageClassification(config), {"pixel_values": torch.randn(4, 3, 32, 32)}
    expected = Teacher(teacher).outputs(row).logits
    found = Teacher(teacher.to(torch.bfloat16)).outputs(row).logits
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)
