"""What the loss of a distilling Trainer is."""

import copy

import pytest
import tiny
import torch
import torch.nn.functional as F
from transformers import BertForQuestionAnswering, Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer

from hf_compress import (
    CompressionConfig,
    CompressionMixin,
    CompressionTrainer,
    DistillationConfig,
    DistillationTrainer,
    PruningConfig,
    PruningTrainer,
)
from hf_compress.distillation.reduce import valid_positions

CASES = {
    "sentences": (tiny.bert, tiny.sentences),
    "tokens": (tiny.bert_tokens, tiny.tagged),
    "causal": (tiny.llama, tiny.texts),
    "seq2seq": (tiny.t5, tiny.tagged),
    "images": (tiny.vit, tiny.images),
}


def naive_loss(student, teacher, batch, causal, temperature, task_weight, logit_weight):
    """Loop over samples and positions."""
    labels = batch["labels"] if batch["labels"].dim() == 2 else batch["labels"][:, None]
    student_logits, teacher_logits = (
        m(**{k: v for k, v in batch.items() if k != "labels" or m.config.is_encoder_decoder}).logits
        for m in (student, teacher)
    )
    if student_logits.dim() == 2:
        student_logits, teacher_logits = student_logits[:, None], teacher_logits[:, None]
    task, divergence, count = 0.0, 0.0, 0
    for row in range(len(labels)):
        for position in range(labels.shape[1] - causal):
            label = labels[row, position + causal]
            if label == -100:
                continue
            s, t = student_logits[row, position], teacher_logits[row, position]
            p, q = (t / temperature).softmax(-1), (s / temperature).softmax(-1)
            divergence = divergence + temperature**2 * (p * (p.log() - q.log())).sum()
            task = task + F.cross_entropy(s, label)
            count += 1
    return (task_weight * task + logit_weight * divergence) / count


def trainer_of(make, data, folder, config=None, teacher=None, **arguments):
    config = config or DistillationConfig(temperature=3.0, task_weight=0.3, logit_weight=0.9)
    return DistillationTrainer(
        make(0),
        tiny.arguments(folder, **arguments),
        distillation=config,
        teacher=teacher or make(1),
        train_dataset=data,
    )


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_equal_a_loop_over_positions(tmp_path, case):
    make, data = CASES[case]
    trainer = trainer_of(make, data(), tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    twin = copy.deepcopy(trainer.model).train()
    naive_loss(twin, make(1).eval(), batch, int(case == "causal"), 3.0, 0.3, 0.9).backward()
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    for one, other in zip(trainer.model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("pruned", [False, True], ids=["distil", "distil+prune"])
def test_batches_of_8_equal_4_accumulated_batches_of_2(tmp_path, case, pruned):
    make, data = CASES[case]
    rows = data()
    config = CompressionConfig(DistillationConfig(), PruningConfig(sparsity=0.5, frequency=1) if pruned else None)
    runs = []
    for size, steps in ((8, 1), (2, 4)):
        arguments = tiny.arguments(
            tmp_path, max_steps=4, per_device_train_batch_size=size, gradient_accumulation_steps=steps, optim="sgd"
        )
        trainer = CompressionTrainer(make(0), arguments, compression=config, teacher=make(1), train_dataset=rows)
        trainer.train()
        runs.append(trainer)
    for one, other in zip(runs[0].model.parameters(), runs[1].model.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    for name in ("loss", "grad_norm", "distillation_loss", "task_loss"):
        logged = [[e[name] for e in t.state.log_history if name in e] for t in runs]
        assert logged[0] == pytest.approx(logged[1], rel=1e-4), name
        assert len(logged[0]) == 4


def test_accumulation_is_right_for_pruning_alone_where_the_model_ignores_num_items(tmp_path):
    """BERT's classification loss is a plain mean, whatever num_items_in_batch says."""
    norms = []
    for size, steps in ((8, 1), (2, 4)):
        arguments = tiny.arguments(
            tmp_path, max_steps=2, per_device_train_batch_size=size, gradient_accumulation_steps=steps
        )
        config = CompressionConfig(pruning=PruningConfig())
        trainer = CompressionTrainer(tiny.bert(), arguments, compression=config, train_dataset=tiny.sentences())
        trainer.train()
        norms.append([e["grad_norm"] for e in trainer.state.log_history if "grad_norm" in e])
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_a_micro_batch_without_labels_adds_nothing_instead_of_nan(tmp_path):
    rows = tiny.tagged(8)
    for row in rows[:7]:
        row["labels"][:] = -100
    trainer = trainer_of(
        tiny.bert_tokens, rows, tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=8, max_steps=1
    )
    trainer.train()
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    assert trainer.state.log_history[0]["task_loss"] > 0


def test_without_labels_only_the_teacher_teaches(tmp_path):
    rows = [{k: v for k, v in row.items() if k != "labels"} for row in tiny.sentences()]
    teacher = tiny.bert(1)
    with torch.no_grad():
        teacher.classifier.weight.mul_(50)
    config = DistillationConfig(temperature=1.0, task_weight=0.5, logit_weight=1.0)
    trainer = trainer_of(tiny.bert, rows, tmp_path, config, teacher, max_steps=60, learning_rate=5e-3)
    trainer.train()
    losses = [e["distillation_loss"] for e in trainer.state.log_history if "distillation_loss" in e]
    assert "task_loss" not in trainer.state.log_history[0]
    assert losses[-1] < losses[0] / 2


def test_evaluation_reports_the_task_loss_alone(tmp_path):
    trainer = trainer_of(tiny.bert, tiny.sentences(), tmp_path)
    trainer.eval_dataset = tiny.sentences(8, seed=5)
    batch = trainer.data_collator(trainer.eval_dataset)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.model.eval()(**batch).loss.item(), rel=1e-5)


def many_labels(count=64):
    return [{**row, "labels": torch.tensor([i % 2, i % 3 == 0, 1.0])} for i, row in enumerate(tiny.sentences(count))]


def numbers(count=64):
    return [{**row, "labels": torch.tensor(i / count)} for i, row in enumerate(tiny.sentences(count))]


def questions(count=64):
    """Some answers lie outside the text, which means that there is none, and texts have different lengths."""
    rows = []
    for i, row in enumerate(tiny.sentences(count)):
        start = i % 7 if i % 5 else 8
        mask = (torch.arange(8) < 8 - i % 3).long()
        row = {k: v for k, v in row.items() if k != "labels"} | {"attention_mask": mask}
        rows.append({**row, "start_positions": torch.tensor(start), "end_positions": torch.tensor(min(start + 1, 8))})
    return rows


def bernoulli(s, t, temperature):
    p, q = (t / temperature).sigmoid(), (s / temperature).sigmoid()
    return temperature**2 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log())


def naive_many(student, teacher, batch, temperature):
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    task = divergence = 0.0
    for s, t, labels in zip(student(**inputs).logits, teacher(**inputs).logits, batch["labels"], strict=True):
        divergence += sum(bernoulli(a, b, temperature) for a, b in zip(s, t, strict=True)) / len(s)
        task -= sum(y * a.sigmoid().log() + (1 - y) * (-a).sigmoid().log() for a, y in zip(s, labels, strict=True)) / 3
    return task / len(batch["labels"]), divergence / len(batch["labels"])


def naive_numbers(student, teacher, batch, temperature):
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    s, t = student(**inputs).logits[:, 0], teacher(**inputs).logits[:, 0]
    count = len(s)
    task = sum((a - y) ** 2 for a, y in zip(s, batch["labels"], strict=True)) / count
    return task, sum((a - b) ** 2 for a, b in zip(s, t, strict=True)) / count


def naive_spans(student, teacher, batch, temperature):
    inputs = {k: v for k, v in batch.items() if "positions" not in k}
    ours, theirs = student(**inputs), teacher(**inputs)
    task = divergence = 0.0
    rows = [i for i, start in enumerate(batch["start_positions"]) if start < 8]
    for i, name in ((i, name) for i in rows for name in ("start", "end")):
        label = batch[f"{name}_positions"][i]
        s, t = ours[f"{name}_logits"][i], theirs[f"{name}_logits"][i]
        if label < 8:
            ends = [j for j in rows if batch[f"{name}_positions"][j] < 8]
            task = task + F.cross_entropy(s, label) / 2 / len(ends)
        there = batch["attention_mask"][i].bool()
        p, q = (t[there] / temperature).softmax(-1), (s[there] / temperature).softmax(-1)
        divergence = divergence + temperature**2 * (p * (p / q).log()).sum() / 2 / len(rows)
    return task, divergence


def bert_questions(seed=0):
    return BertForQuestionAnswering(tiny.bert(seed).config) if torch.manual_seed(seed) else None


OTHERS = {
    "many labels": (lambda seed=0: tiny.bert(seed, num_labels=3), many_labels, naive_many),
    "numbers": (lambda seed=0: tiny.bert(seed, num_labels=1), numbers, naive_numbers),
    "spans": (bert_questions, questions, naive_spans),
}


@pytest.mark.parametrize("case", OTHERS)
def test_multi_label_regression_and_questions_equal_hand_computed_losses(tmp_path, case):
    make, data, naive = OTHERS[case]
    trainer = trainer_of(make, data(), tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    twin = copy.deepcopy(trainer.model).train()
    task, divergence = naive(twin, make(1).eval(), batch, 3.0)
    (0.3 * task + 0.9 * divergence).backward()
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    torch.testing.assert_close(loss, 0.3 * task + 0.9 * divergence)
    for one, other in zip(trainer.model.parameters(), twin.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, atol=1e-6, rtol=1e-4)


def test_columns_of_questions_come_in_any_order():
    batch = {name: torch.stack([row[name] for row in questions()]) for name in reversed(questions()[0])}
    assert list(batch)[-1] == "input_ids"
    found = valid_positions(batch, "spans")
    assert torch.equal(found, valid_positions(dict(reversed(batch.items())), "spans"))


@pytest.mark.parametrize("case", OTHERS)
def test_they_too_give_the_same_gradient_for_8_and_4_times_2(tmp_path, case):
    make, data, _ = OTHERS[case]
    norms = []
    for size, steps in ((8, 1), (2, 4)):
        arguments = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "optim": "sgd"}
        trainer = trainer_of(make, data(), tmp_path, **arguments)
        trainer.train()
        norms.append([(e["grad_norm"], e["loss"]) for e in trainer.state.log_history if "grad_norm" in e])
    for one, other in zip(*norms, strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_own_loss_function_and_label_smoothing_keep_working(tmp_path):
    def summed(outputs, labels, num_items_in_batch=None):
        return F.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch

    norms = []
    for extra in ({}, {"compute_loss_func": summed}):
        for size, steps in ((8, 1), (2, 4)):
            arguments = tiny.arguments(
                tmp_path,
                max_steps=1,
                per_device_train_batch_size=size,
                gradient_accumulation_steps=steps,
                label_smoothing_factor=0.0 if extra else 0.1,
            )
            trainer = DistillationTrainer(
                tiny.bert(), arguments, teacher=tiny.bert(1), train_dataset=tiny.sentences(), **extra
            )
            trainer.train()
            norms.append(trainer.state.log_history[0]["grad_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    assert norms[2] == pytest.approx(norms[3], rel=1e-4)


def test_a_loss_of_the_users_own_is_accumulated_as_in_the_stock_trainer(tmp_path):
    class Plain(torch.nn.Module):
        """Takes no `num_items_in_batch`."""

        def __init__(self):
            super().__init__()
            self.bert = tiny.bert()

        def forward(self, input_ids, attention_mask=None, labels=None):
            return {"logits": self.bert(input_ids, attention_mask=attention_mask).logits}

    def own(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        loss = F.cross_entropy(outputs["logits"], inputs["labels"])
        return (loss, outputs) if return_outputs else loss

    logged = []
    for base, extra in ((Trainer, {}), (PruningTrainer, {"pruning": PruningConfig(begin=0.5)})):
        arguments = tiny.arguments(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4)
        trainer = type("Own", (base,), {"compute_loss": own})(
            Plain(), arguments, train_dataset=tiny.sentences(), **extra
        )
        trainer.train()
        logged.append(trainer.state.log_history[0])
    for name in ("loss", "grad_norm"):
        assert logged[1][name] == pytest.approx(logged[0][name], rel=1e-5)


def test_the_mixin_works_on_another_trainer_with_a_teacher_from_a_folder(tmp_path):
    class Both(CompressionMixin, Seq2SeqTrainer):
        pass

    tiny.t5(1).save_pretrained(tmp_path / "teacher")
    common = {"train_dataset": tiny.tagged(), "compression": CompressionConfig(DistillationConfig())}
    arguments = tiny.arguments(tmp_path, max_steps=2)
    arguments = Seq2SeqTrainingArguments(**{k: v for k, v in arguments.to_dict().items() if not k.startswith("_")})
    losses = []
    for teacher in (tiny.t5(1), str(tmp_path / "teacher")):
        trainer = Both(tiny.t5(), arguments, teacher=teacher, **common)
        trainer.train()
        losses.append(trainer.state.log_history[-2]["distillation_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
