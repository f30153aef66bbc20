"""Agreement with the teacher during evaluation, counted by hand; and the choice of the teacher's weight."""

import pytest
import tiny
import torch
from transformers.trainer_pt_utils import LabelSmoother

from hf_compress import DistillationConfig, DistillationTrainer, choose_logit_weight
from hf_compress.errors import ConfigError, DataError


def varied(make):
    """Models whose predictions differ from row to row."""

    def made(seed):
        model = make(seed)
        for parameter in model.parameters():
            parameter.data *= 4
        return model

    return made


def evaluate(folder, make, rows, **options):
    trainer = DistillationTrainer(
        make(0),
        tiny.arguments(folder, per_device_eval_batch_size=5),
        eval_dataset=rows,
        distillation=DistillationConfig(measure_agreement=True),
        teacher=make(1),
        **options,
    )
    return trainer, trainer.evaluate()["eval_teacher_agreement"]


def predictions(model, rows):
    model.eval()
    with torch.no_grad():
        return torch.stack([model(**{k: v[None] for k, v in row.items()}).logits[0].argmax(-1) for row in rows])


def test_text_images_tokens_and_language_models(tmp_path):
    for make, rows in ((varied(tiny.bert), tiny.sentences(13)), (varied(tiny.vit), tiny.images(13))):
        _, found = evaluate(tmp_path, make, rows)
        same = predictions(make(0), rows) == predictions(make(1), rows)
        assert found == pytest.approx(float(same.float().mean()))
        assert 0 < found < 1
    for make, rows, shift in ((varied(tiny.bert_tokens), tiny.tagged(13), 0), (varied(tiny.llama), tiny.texts(13), 1)):
        _, found = evaluate(tmp_path, make, rows)
        same = predictions(make(0), rows) == predictions(make(1), rows)
        counted = torch.stack([row["labels"] != -100 for row in rows])
        same, counted = same[:, : same.shape[1] - shift], counted[:, shift:]
        assert found == pytest.approx(float(same[counted].float().mean()))


def test_it_is_counted_anew_and_with_metrics_and_with_a_copy_of_the_teacher_is_one(tmp_path):
    trainer, first = evaluate(tmp_path, tiny.bert, tiny.sentences(13), compute_metrics=lambda p: {"a": 1.0})
    assert trainer.evaluate()["eval_teacher_agreement"] == first
    assert trainer.evaluate(tiny.sentences(5), metric_key_prefix="test")["test_teacher_agreement"] >= 0
    trainer.model.load_state_dict(tiny.bert(1).state_dict())
    assert trainer.evaluate()["eval_teacher_agreement"] == 1
    assert any("eval_teacher_agreement" in entry for entry in trainer.state.log_history)


def test_smoothed_labels_count_where_plain_ones_do(tmp_path):
    expected = evaluate(tmp_path, varied(tiny.bert_tokens), tiny.tagged(13))[1]
    trainer, _ = evaluate(tmp_path, varied(tiny.bert_tokens), tiny.tagged(13))
    trainer.args.label_smoothing_factor, trainer.label_smoother = 0.1, LabelSmoother(0.1)
    assert trainer.evaluate()["eval_teacher_agreement"] == expected


def test_numbers_never_agree(tmp_path):
    rows = [{**row, "labels": row["labels"].float()} for row in tiny.sentences(4)]
    with pytest.raises(ConfigError, match="regression"):
        evaluate(tmp_path, lambda seed: tiny.bert(seed, num_labels=1), rows)


def test_a_teacher_that_knows_the_task_is_chosen_and_one_that_misleads_is_not(tmp_path):
    rows = tiny.sentences(300)
    good = tiny.bert(1)
    optimizer = torch.optim.AdamW(good.parameters(), 1e-2)
    batch = {k: torch.stack([row[k] for row in rows]) for k in rows[0]}
    for _ in range(60):
        good(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    bad = tiny.bert(1)
    bad.load_state_dict(good.state_dict())
    bad.classifier.weight.data.neg_()
    bad.classifier.bias.data.neg_()
    few = rows[:100]
    student, args = tiny.bert(0), tiny.arguments(tmp_path, learning_rate=1e-2)
    before = {n: p.clone() for n, p in student.state_dict().items()}
    chosen = choose_logit_weight(student, args, teacher=bad, train_dataset=few, steps=30, held_out=0.3)
    assert chosen.weight == 0
    assert chosen.config is None
    assert set(chosen.losses) == {0.0, 0.5, 0.9}
    # Every third label is wrong; the teacher knows that odds are two to one, the student learns by heart.
    noisy = [{**row, "labels": row["labels"] if i % 3 else 1 - row["labels"]} for i, row in enumerate(few)]
    logits = good(**batch).logits
    good.classifier.weight.data *= 0.69 / float((logits[:, 0] - logits[:, 1]).abs().mean())
    good.classifier.bias.data.zero_()
    chosen = choose_logit_weight(student, args, teacher=good, train_dataset=noisy, steps=60, held_out=0.3)
    assert chosen.weight > 0
    assert chosen.config.logit_weight == chosen.weight
    assert chosen.losses[chosen.weight] == min(chosen.losses.values())
    assert all(torch.equal(p, before[n]) for n, p in student.state_dict().items())


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"weights": (0.5, 1.5)}, ConfigError),
        ({"weights": ()}, ConfigError),
        ({"held_out": 1.0}, ConfigError),
        ({"steps": 0}, ConfigError),
        ({"held_out": 0.01}, DataError),
    ],
)
def test_bad_choices_are_refused(tmp_path, options, error):
    with pytest.raises(error):
        choose_logit_weight(
            tiny.bert(0), tiny.arguments(tmp_path), teacher=tiny.bert(1), train_dataset=tiny.sentences(8), **options
        )
