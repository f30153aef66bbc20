import pytest
import tiny
import torch
import torch.nn.functional as F

from hf_compress import DistillationConfig, DistillationTrainer, make_student
from hf_compress.distillation.student import layer_importance
from hf_compress.errors import ArchitectureError, ConfigError


def batches(rows=tiny.sentences):
    found = rows(8)
    return [{k: torch.stack([r[k] for r in found[i : i + 4]]) for k in found[0]} for i in (0, 4)]


@pytest.mark.parametrize(
    ("keep", "expected"), [("uniform", [0, 3, 5]), ("first", [0, 1, 2]), ("last", [3, 4, 5]), ([1, 4, 5], [1, 4, 5])]
)
@pytest.mark.parametrize("make", [tiny.bert, tiny.llama])
def test_the_layers_that_stay_are_the_teachers(tmp_path, make, keep, expected):
    teacher = make(num_hidden_layers=6)
    options = {"layers": 3, "keep": keep} if isinstance(keep, str) else {"layers": keep}
    student = make_student(teacher, **options)
    assert type(student) is type(teacher)
    assert student.kept_layers == expected or keep == "uniform"
    stack = (lambda m: m.bert.encoder.layer) if make is tiny.bert else (lambda m: m.model.layers)
    for layer, index in zip(stack(student), student.kept_layers, strict=True):
        for one, other in zip(layer.parameters(), stack(teacher)[index].parameters(), strict=True):
            assert torch.equal(one, other)
    student.save_pretrained(tmp_path)
    again = type(teacher).from_pretrained(tmp_path)
    assert again.config.num_hidden_layers == 3


def test_importance_is_how_much_a_layer_turns_its_input_and_padding_has_no_say():
    model = tiny.bert(num_hidden_layers=3).eval()
    inputs = batches()
    inputs[0]["attention_mask"][:, 5:] = 0
    expected, count = [0.0] * 3, 0
    for batch in inputs:
        states = model(**batch, output_hidden_states=True).hidden_states
        for row, token in batch["attention_mask"].nonzero().tolist():
            count += 1
            for i in range(3):
                cosine = F.cosine_similarity(states[i][row, token], states[i + 1][row, token], dim=0)
                expected[i] += 1 - float(cosine)
    assert layer_importance(model, inputs) == pytest.approx([e / count for e in expected], rel=1e-4)
    ranked = sorted(range(3), key=lambda i: expected[i])[1:]
    assert make_student(model, layers=2, keep="importance", batches=inputs).kept_layers == sorted(ranked)


def test_a_cut_student_learns_from_the_layers_it_was_cut_from(tmp_path):
    teacher = tiny.bert(num_hidden_layers=6)
    student = make_student(teacher, layers=[0, 2, 5])
    config = DistillationConfig(hidden_weight=1.0, layer_map="kept")
    trainer = DistillationTrainer(
        student, tiny.arguments(tmp_path, max_steps=1), distillation=config, teacher=teacher,
        train_dataset=tiny.sentences(),
    )  # fmt: skip
    assert trainer._objective.objectives[0].knowledge.pairs == {"": [(0, 0), (1, 1), (2, 3), (3, 6)]}
    trainer.train()
    with pytest.raises(ConfigError, match="layer_map='kept' is for a student that make_student has just cut"):
        DistillationTrainer(tiny.bert(), tiny.arguments(tmp_path), distillation=config, teacher=teacher)


def test_two_stacks_are_cut_by_their_fields_and_a_folder_will_do(tmp_path):
    tiny.t5().save_pretrained(tmp_path)
    student = make_student(tmp_path, layers={"num_decoder_layers": 1}, keep="first")
    assert (student.config.num_layers, student.config.num_decoder_layers) == (2, 1)
    wanted = dict(tiny.t5().decoder.block[0].named_parameters())
    for name, parameter in student.decoder.block[0].named_parameters():
        assert torch.equal(parameter, wanted[name])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layers": 1, "keep": "middle"}, ConfigError, "unknown keep 'middle'.*there are: first, importance"),
        ({"layers": 1, "keep": "importance"}, ConfigError, "pass batches="),
        ({"layers": 1, "keep": "importance", "batches": []}, ConfigError, "batches is empty"),
        ({"layers": 3}, ArchitectureError, "layers"),
        ({"layers": 0}, ArchitectureError, "layers"),
    ],
)
def test_what_cannot_be_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        make_student(tiny.bert(), **options)
