import pytest
import tiny
import torch
from torch import nn
from transformers import AutoTokenizer, BertTokenizerFast

from hf_compress.distillation.config import DistillationConfig
from hf_compress.distillation.ensemble import make_objective
from hf_compress.distillation.objective import DistillationObjective
from hf_compress.distillation.teacher import Teacher, check_teacher, load_teacher_model
from hf_compress.errors import ConfigError, TeacherError


def test_teacher_runs_without_dropout_and_without_gradients():
    model = tiny.bert(dropout=0.5).train()
    batch = {k: v[None] for k, v in tiny.sentences(1)[0].items()}
    first, second = (Teacher(model).outputs(batch).logits for _ in range(2))
    assert torch.equal(first, second)
    assert not first.requires_grad


def test_inputs_that_the_teacher_does_not_know_are_left_out():
    batch = {"pixel_values": torch.randn(2, 3, 8, 8), "labels": torch.tensor([0, 1]), "surplus": torch.ones(2)}
    found = Teacher(tiny.vit()).outputs(batch)
    assert found.logits.shape == (2, 3)
    assert found.loss is None


def test_teacher_from_a_folder_has_the_class_that_its_config_names(tmp_path):
    tiny.bert().save_pretrained(tmp_path)
    assert type(load_teacher_model(tmp_path)).__name__ == "BertForSequenceClassification"


def test_teacher_with_other_labels_is_refused():
    with pytest.raises(TeacherError, match=r"student has 2 labels .*teacher 3"):
        check_teacher(tiny.bert(num_labels=3), tiny.bert())
    names = {"id2label": {0: "no", 1: "yes"}}, {"id2label": {0: "no", 1: "maybe"}}
    with pytest.raises(TeacherError, match=r"labels are \(no, maybe\), the teacher's \(no, yes\)"):
        check_teacher(tiny.bert(**names[0]), tiny.bert(**names[1]))


def test_labels_in_another_order_are_matched_by_name():
    ours, theirs = {0: "bad", 1: "so so", 2: "good"}, {0: "good", 1: "bad", 2: "so so"}
    student, teacher = tiny.bert(id2label=ours), tiny.bert(1, id2label=theirs)
    batch = {k: v[None] for k, v in tiny.sentences(1)[0].items()}
    sorted_teacher = tiny.bert(1, id2label=ours)
    with torch.no_grad():
        for parameter, other in zip(
            sorted_teacher.classifier.parameters(), teacher.classifier.parameters(), strict=True
        ):
            parameter.copy_(other[[1, 2, 0]])
    found, expected = (
        DistillationObjective(DistillationConfig(), Teacher(t), student)(student(**batch), batch)[
            "distillation_loss"
        ].total
        for t in (teacher, sorted_teacher)
    )
    torch.testing.assert_close(found, expected)
    assert found > 1e-6
    assert check_teacher(tiny.bert(), tiny.bert(1)) is None


def test_teacher_with_another_vocabulary_is_refused_but_padding_is_not():
    with pytest.raises(TeacherError, match="tokenizers differ"):
        check_teacher(tiny.llama(vocab_size=80), tiny.llama())
    check_teacher(tiny.llama(vocab_size=1000), tiny.llama(vocab_size=1008))


def test_the_student_itself_is_refused():
    model = tiny.bert()
    with pytest.raises(TeacherError, match="same object"):
        check_teacher(model, model)


def test_a_teacher_without_a_head_is_refused():
    class Bare(nn.Module):
        def forward(self, input_ids):
            return {"last_hidden_state": input_ids}

    batch = {k: v[None] for k, v in tiny.sentences(1)[0].items()}
    student = tiny.bert()
    with pytest.raises(TeacherError, match="the teacher returned no logits"):
        DistillationObjective(DistillationConfig(), Teacher(Bare()), student)(student(**batch), batch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"divergence": "kl"}, "unknown divergence 'kl'.*there are: forward_kl"),
        ({"divergence": "jsd", "divergence_options": {"bet": 0.5}}, "no option 'bet' .did you mean 'beta'"),
        ({"divergence": "jsd", "divergence_options": {"beta": 2}}, "must lie in 0-1, found 2"),
        ({"divergence_options": {"beta": 0.5}}, "it has none"),
        ({"divergence": "taid", "divergence_options": {"progress": 0.5}}, "no option 'progress'"),
    ],
)
def test_unknown_divergences_and_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        DistillationObjective(DistillationConfig(**options), Teacher(tiny.bert(1)), tiny.bert())


@pytest.mark.parametrize("precision", ["bfloat16", "nf4", "int8"])
def test_a_teacher_from_a_folder_is_loaded_in_few_bits_and_teaches(tmp_path, precision):
    tiny.bert(1, hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "teacher")
    student, batch = tiny.bert(0), {k: torch.stack([r[k] for r in tiny.sentences(4)]) for k in tiny.sentences(1)[0]}
    config = DistillationConfig(
        teacher_precision=precision, teacher_device_map="" if precision == "bfloat16" else "cpu"
    )
    objective = make_objective(config, tmp_path / "teacher", student, "cpu")
    teacher = objective.objectives[0].teacher.model
    if precision == "bfloat16":
        assert teacher.dtype == torch.bfloat16
    else:
        assert teacher.is_quantized
    term = objective(student(**batch), batch)["distillation_loss"]
    whole = make_objective(DistillationConfig(), tmp_path / "teacher", student, "cpu")(student(**batch), batch)
    assert torch.isfinite(term.total)
    torch.testing.assert_close(term.total, whole["distillation_loss"].total, rtol=0.5, atol=1e-2)
    term.total.backward()
    assert student.classifier.weight.grad.any()


def test_tokenizers_that_number_tokens_differently_are_refused(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]
    folders = []
    for name, order in (("teacher", words), ("other", [*words[:5], "b", "a"]), ("more", [*words, "c"])):
        folder = tmp_path / name
        tiny.bert(1).save_pretrained(folder)
        BertTokenizerFast(vocab={w: i for i, w in enumerate(order)}).save_pretrained(folder)
        folders.append(folder)
    ours = AutoTokenizer.from_pretrained(folders[0])
    for fitting in (folders[0], folders[2]):
        make_objective(DistillationConfig(), fitting, tiny.bert(0), processing_class=ours)
    with pytest.raises(TeacherError, match="'a' is 5 for the student and 6 for the teacher"):
        make_objective(DistillationConfig(), folders[1], tiny.bert(0), processing_class=ours)
    loaded = tiny.bert(1).from_pretrained(folders[1])
    with pytest.raises(TeacherError, match="tokenizers"):
        make_objective(DistillationConfig(), loaded, tiny.bert(0), processing_class=ours)


def test_a_teacher_whose_vocabulary_was_cut_is_not_taken_for_what_it_was_made_from(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(45))]
    for name, order in (("whole", words), ("cut", words[:5] + words[25:])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vocab.txt").write_text("\n".join(order))
        BertTokenizerFast(str(tmp_path / name / "vocab.txt")).save_pretrained(tmp_path / name)
    tiny.bert().save_pretrained(tmp_path / "whole")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "cut")
    teacher = tiny.bert(1, vocab_size=30)
    teacher.name_or_path = str(tmp_path / "whole")
    student = tiny.bert(vocab_size=30)
    assert make_objective(DistillationConfig(), teacher, student, torch.device("cpu"), tokenizer)
    with pytest.raises(TeacherError, match="tokenizers of student and teacher differ"):
        make_objective(DistillationConfig(), str(tmp_path / "whole"), student, torch.device("cpu"), tokenizer)
