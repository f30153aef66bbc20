import pytest
import tiny
import torch

from hf_compress import DistillationConfig, DistillationTrainer
from hf_compress.distillation.ensemble import make_objective
from hf_compress.errors import ConfigError, TeacherError


def batch():
    rows = tiny.sentences(4)
    return {k: torch.stack([r[k] for r in rows]) for k in rows[0]}


@pytest.mark.parametrize("weights", [(), (1.0, 3.0)])
def test_terms_are_the_weighted_means_over_the_teachers(weights):
    student, teachers = tiny.bert(0), [tiny.bert(1), tiny.bert(2)]
    config = DistillationConfig(hidden_weight=1.0, teacher_weights=weights)
    inputs = batch()
    outputs = student(**inputs, output_hidden_states=True)
    found = make_objective(config, teachers, student)(outputs, inputs)
    alone = [make_objective(DistillationConfig(hidden_weight=1.0), t, student)(outputs, inputs) for t in teachers]
    shares = [w / 4 for w in weights] or [0.5, 0.5]
    assert found.keys() == {"distillation_loss", "hidden_loss"}
    for name, term in found.items():
        expected = sum(s * a[name].total for s, a in zip(shares, alone, strict=True))
        torch.testing.assert_close(term.total, expected)
        assert term.count == alone[0][name].count


def test_the_gradient_is_that_of_the_mean_of_the_probabilities():
    student, teachers = tiny.bert(0), [tiny.bert(1).eval(), tiny.bert(2).eval()]
    inputs = batch()
    outputs = student(**inputs)
    logits = outputs.logits
    term = make_objective(DistillationConfig(temperature=1.0), teachers, student)(outputs, inputs)["distillation_loss"]
    (gradient,) = torch.autograd.grad(term.total, logits)
    mean = sum(t(**inputs).logits.softmax(-1) for t in teachers) / 2
    torch.testing.assert_close(gradient, (logits.softmax(-1) - mean).detach(), atol=1e-6, rtol=1e-4)


def test_a_trainer_takes_models_and_folders_of_different_shapes_together(tmp_path):
    tiny.bert(1, hidden_size=24, num_hidden_layers=3).save_pretrained(tmp_path / "wide")
    trainer = DistillationTrainer(
        tiny.bert(),
        tiny.arguments(tmp_path, max_steps=2),
        distillation=DistillationConfig(hidden_weight=1.0),
        teacher=[tmp_path / "wide", tiny.bert(2)],
        train_dataset=tiny.sentences(),
    )
    trainer.train()
    assert set(trainer._sides[0].modules) == {"0"}
    assert all(e["hidden_loss"] > 0 for e in trainer.state.log_history if "hidden_loss" in e)


@pytest.mark.parametrize("weights", [(1.0,), (1.0, -1.0), (0.0, 0.0)])
def test_weights_that_do_not_fit_are_refused(weights):
    with pytest.raises(ConfigError, match="one number of at least 0 for each of the 2 teachers"):
        make_objective(DistillationConfig(teacher_weights=weights), [tiny.bert(1), tiny.bert(2)], tiny.bert())


def test_no_teacher_and_a_wrong_one_among_several_are_refused():
    with pytest.raises(ConfigError, match="empty list"):
        make_objective(DistillationConfig(), [], tiny.bert())
    with pytest.raises(TeacherError, match="teacher 3"):
        make_objective(DistillationConfig(), [tiny.bert(1), tiny.bert(2, num_labels=3)], tiny.bert())
