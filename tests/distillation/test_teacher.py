import pytest
import tiny
import torch
from torch import nn

from hf_compress.distillation.config import DistillationConfig
from hf_compress.distillation.objective import DistillationObjective
from hf_compress.distillation.teacher import Teacher, check_teacher, load_teacher_model
from hf_compress.errors import TeacherError, UnsupportedError


def test_teacher_runs_without_dropout_and_without_gradients():
    model = tiny.bert(dropout=0.5).train()
    batch = {k: v[None] for k, v in tiny.sentences(1)[0].items()}
    first, second = (Teacher(model).logits(batch) for _ in range(2))
    assert torch.equal(first, second)
    assert not first.requires_grad


def test_inputs_that_the_teacher_does_not_know_are_left_out():
    batch = {"pixel_values": torch.randn(2, 3, 8, 8), "labels": torch.tensor([0, 1]), "surplus": torch.ones(2)}
    assert Teacher(tiny.vit()).logits(batch).shape == (2, 3)


def test_teacher_from_a_folder_has_the_class_that_its_config_names(tmp_path):
    tiny.bert().save_pretrained(tmp_path)
    assert type(load_teacher_model(tmp_path)).__name__ == "BertForSequenceClassification"


def test_teacher_with_other_labels_is_refused():
    with pytest.raises(TeacherError, match=r"student has 2 labels .*teacher 3"):
        check_teacher(tiny.bert(num_labels=3), tiny.bert())
    names = {"id2label": {0: "no", 1: "yes"}}, {"id2label": {0: "yes", 1: "no"}}
    with pytest.raises(TeacherError, match="the same in another order"):
        check_teacher(tiny.bert(**names[0]), tiny.bert(**names[1]))


def test_teacher_with_another_vocabulary_is_refused_but_padding_is_not():
    with pytest.raises(TeacherError, match="tokenizers differ"):
        check_teacher(tiny.llama(vocab_size=80), tiny.llama())
    check_teacher(tiny.llama(vocab_size=1000), tiny.llama(vocab_size=1008))


def test_the_student_itself_is_refused():
    model = tiny.bert()
    with pytest.raises(TeacherError, match="same object"):
        check_teacher(model, model)


@pytest.mark.parametrize("changes", [{"problem_type": "multi_label_classification"}, {"num_labels": 1}])
def test_tasks_without_a_softmax_are_refused(changes):
    student = tiny.bert(**changes)
    with pytest.raises(UnsupportedError, match="softmax"):
        DistillationObjective(DistillationConfig(), Teacher(tiny.bert(1, **changes)), student)


def test_a_teacher_without_a_head_is_refused():
    class Bare(nn.Module):
        def forward(self, input_ids):
            return {"last_hidden_state": input_ids}

    with pytest.raises(TeacherError, match="returned no logits"):
        Teacher(Bare()).logits({"input_ids": torch.ones(1, 2)})
