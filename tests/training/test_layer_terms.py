"""Layer terms in the Trainer: what is logged, what is trained, what is saved."""

import copy

import pytest
import tiny
import torch
from safetensors.torch import load_file
from transformers import MPNetConfig, MPNetForSequenceClassification

from hf_compress import DistillationConfig, DistillationTrainer
from hf_compress.distillation import features
from hf_compress.errors import CheckpointError, ConfigError, TeacherError, UnsupportedError

ALL = {"hidden_weight": 1.0, "attention_weight": 0.5, "relation_weight": 0.5, "gram_weight": 0.25}
CASES = {
    "bert": (tiny.bert, tiny.sentences),
    "llama": (tiny.llama, tiny.texts),
    "vit": (tiny.vit, tiny.images),
    "t5": (lambda seed=0, **k: tiny.t5(seed), tiny.tagged),
}


def trainer_of(folder, case="bert", config=None, teacher=None, student=None, **arguments):
    make, rows = CASES[case]
    return DistillationTrainer(
        student or make(0),
        tiny.arguments(folder, **arguments),
        distillation=config or DistillationConfig(**ALL),
        teacher=teacher or make(1),
        train_dataset=rows(),
    )


@pytest.mark.parametrize("case", list(CASES))
def test_each_term_is_logged_and_the_loss_is_their_weighted_sum(tmp_path, case):
    trainer = trainer_of(tmp_path, case, max_steps=3, learning_rate=0.0)
    trainer.train()
    stacks = ("_encoder", "_decoder") if case == "t5" else ("",)
    for entry in trainer.state.log_history[:3]:
        expected = 0.5 * entry["task_loss"] + 0.5 * entry["distillation_loss"]
        for name, weight in ALL.items():
            for stack in stacks:
                value = entry[name.replace("weight", "loss") + stack]
                assert value > 0
                expected += weight * value
        assert entry["loss"] == pytest.approx(expected, rel=1e-3)


def test_hidden_and_relation_terms_are_those_of_the_mapped_layers(tmp_path):
    config = DistillationConfig(hidden_weight=1.0, relation_weight=1.0, layer_map=("1:3", "2:1"))
    teacher = tiny.bert(1, num_hidden_layers=3)
    trainer = trainer_of(tmp_path, config=config, teacher=teacher)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    trainer.compute_loss(trainer.model, batch)
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    ours, theirs = (m(**inputs, output_hidden_states=True).hidden_states for m in (trainer.model, teacher.eval()))
    mask = batch["attention_mask"].bool()
    expected = sum(features.hidden_mse(ours[m], theirs[n], mask)[0] for m, n in ((1, 3), (2, 1))) / 2 / mask.sum()
    logged = trainer._loss.drain()
    assert logged["hidden_loss"] == pytest.approx(float(expected), rel=1e-5)
    relation = 0.0
    for m, n in ((1, 3), (2, 1)):
        for name in ("query", "key", "value"):
            # What the layer's own projections make of its input.
            one, other = (
                getattr(model.bert.encoder.layer[i - 1].attention.self, name)(states[i - 1])
                for model, states, i in ((trainer.model, ours, m), (teacher, theirs, n))
            )
            relation += features.relation_kl(one, other, mask, 1)[0] / 3 / 2 / mask.sum()
    assert logged["relation_loss"] == pytest.approx(float(relation.detach()), rel=1e-4)


@pytest.mark.parametrize("case", ["bert", "llama", "t5"])
def test_accumulation_does_not_change_the_gradient(tmp_path, case):
    norms = []
    for size, steps in ((8, 1), (2, 4)):
        trainer = trainer_of(
            tmp_path, case, max_steps=2, per_device_train_batch_size=size, gradient_accumulation_steps=steps
        )
        trainer.train()
        norms.append([e["grad_norm"] for e in trainer.state.log_history if "grad_norm" in e])
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


WIDER = {"hidden_size": 24, "num_attention_heads": 2}


def test_projections_between_widths_learn_and_are_in_checkpoints_and_not_in_the_model(tmp_path):
    def made(**changes):
        config = DistillationConfig(hidden_weight=1.0)
        return trainer_of(
            tmp_path, config=config, teacher=tiny.bert(1, **WIDER), save_strategy="steps", save_steps=4, **changes
        )

    trainer = made()
    projections = trainer._sides[0].modules
    start = copy.deepcopy(projections.state_dict())
    assert {tuple(p.shape) for p in projections.parameters()} == {(24, 16)}
    trainer.train()
    assert all(not torch.equal(start[n], t) for n, t in projections.state_dict().items())
    trainer.save_model(tmp_path / "final")
    assert load_file(tmp_path / "final" / "model.safetensors").keys() == tiny.bert().state_dict().keys()
    saved = load_file(tmp_path / "checkpoint-4" / "distillation_state.safetensors")
    assert saved.keys() == start.keys()
    again = made()
    again.train(resume_from_checkpoint=True)
    resumed = made()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    logs = [[e for e in t.state.log_history if "hidden_loss" in e] for t in (trainer, resumed)]
    assert [e["hidden_loss"] for e in logs[0]] == [e["hidden_loss"] for e in logs[1]]
    for (name, one), other in zip(trainer.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other), name
    assert all(torch.equal(t, projections.state_dict()[n]) for n, t in resumed._sides[0].modules.state_dict().items())
    (tmp_path / "checkpoint-8" / "distillation_state.safetensors").unlink()
    with pytest.raises(CheckpointError, match="distillation_state.safetensors is missing.*resume from checkpoint-4"):
        made().train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))


def test_a_scheduler_that_does_not_know_the_projections_is_refused(tmp_path):
    model = tiny.bert()
    optimizer = torch.optim.AdamW(model.parameters())
    options = {"teacher": tiny.bert(1, **WIDER), "distillation": DistillationConfig(hidden_weight=1.0)}
    arguments = tiny.arguments(tmp_path, max_steps=2)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    with pytest.raises(UnsupportedError, match=r"pass optimizers=\(optimizer, None\)"):
        DistillationTrainer(model, arguments, optimizers=(optimizer, scheduler), **options)
    rows = tiny.sentences()
    DistillationTrainer(model, arguments, optimizers=(optimizer, None), train_dataset=rows, **options).train()


@pytest.mark.parametrize("name", ["hidden_weight", "attention_weight", "relation_weight", "gram_weight"])
def test_gradient_checkpointing_changes_no_gradient_or_is_refused(tmp_path, name):
    def norm(**arguments):
        config = DistillationConfig(task_weight=0.0, logit_weight=0.0, **{name: 1.0})
        trainer = DistillationTrainer(
            tiny.llama(), tiny.arguments(tmp_path, max_steps=1, **arguments), train_dataset=tiny.texts(),
            teacher=tiny.llama(1), distillation=config,
        )  # fmt: skip
        trainer.train()
        return trainer.state.log_history[0]["grad_norm"]

    expected = norm()
    assert norm(gradient_checkpointing=True) == pytest.approx(expected, rel=1e-4)
    reentrant = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    if name in ("attention_weight", "relation_weight"):
        with pytest.raises(UnsupportedError, match="use_reentrant"):
            norm(**reentrant)
    else:
        assert norm(**reentrant) == pytest.approx(expected, rel=1e-4)


def test_relations_and_similarities_need_no_projection(tmp_path):
    config = DistillationConfig(relation_weight=1.0, gram_weight=1.0)
    trainer = trainer_of(tmp_path, config=config, teacher=tiny.bert(1, **WIDER), max_steps=2)
    assert not trainer._sides
    trainer.train()


def test_attention_maps_switch_to_eager_attention_and_say_what_it_costs(tmp_path, caplog):
    student = tiny.bert()
    trainer_of(tmp_path, config=DistillationConfig(attention_weight=1.0), student=student)
    assert student.config._attn_implementation == "eager"
    assert "slower" in caplog.text
    caplog.clear()
    other = tiny.bert()
    trainer_of(tmp_path, config=DistillationConfig(hidden_weight=1.0), student=other)
    assert other.config._attn_implementation == "sdpa"
    assert not caplog.text


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"layer_map": "uniformly", "hidden_weight": 1.0}, ConfigError, "unknown layer map 'uniformly'"),
        ({"layer_map": ("3:1",), "hidden_weight": 1.0}, ConfigError, "the student has 2 layers"),
        ({"logit_weight": 0.0}, ConfigError, "the teacher would do nothing"),
        ({"hidden_loss": "l1"}, ConfigError, "hidden_loss must be 'mse' or 'cosine'"),
        ({"relation_weight": 1.0, "relation_heads": 5}, ConfigError, "relation_heads=5 divides neither"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path, config, error, message):
    with pytest.raises(error, match=message):
        trainer_of(tmp_path, config=DistillationConfig(**config), max_steps=1).train()


def test_models_that_cannot_be_compared_are_refused_with_the_reason(tmp_path):
    config = DistillationConfig(logit_weight=0.0, hidden_weight=1.0)
    with pytest.raises(TeacherError, match="one of student and teacher has an encoder and a decoder"):
        trainer_of(tmp_path, "t5", config=config, teacher=tiny.llama(1))
    relations = DistillationConfig(relation_weight=1.0)
    with pytest.raises(UnsupportedError, match="MPNetForSequenceClassification computes attention in its own way"):
        trainer_of(tmp_path, config=relations, student=mpnet(0), teacher=mpnet(1), max_steps=1).train()


def mpnet(seed):
    torch.manual_seed(seed)
    return MPNetForSequenceClassification(MPNetConfig(vocab_size=50, max_position_embeddings=20, **tiny.WIDTH))


@pytest.mark.parametrize("case", ["bert", "llama", "vit", "t5"])
def test_relations_are_the_same_under_eager_and_sdpa_attention(tmp_path, case):
    found = []
    for kind in ("eager", "sdpa"):
        make, rows = CASES[case]
        student, teacher = make(0), make(1)
        for model in (student, teacher):
            model.set_attn_implementation(kind)
        config = DistillationConfig(relation_weight=1.0)
        trainer = trainer_of(tmp_path, case, config, teacher, student, max_steps=1)
        trainer.train()
        (entry,) = [e for e in trainer.state.log_history if "task_loss" in e]
        found.append([v for k, v in sorted(entry.items()) if k.startswith("relation_loss")])
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert len(found[0]) == (2 if case == "t5" else 1)


def test_a_model_without_a_head_learns_from_layers_alone(tmp_path):
    student, teacher = tiny.bert(0).bert, tiny.bert(1).bert
    rows = [{k: v for k, v in row.items() if k != "labels"} for row in tiny.sentences()]
    config = DistillationConfig(task_weight=0.0, logit_weight=0.0, hidden_weight=1.0)
    trainer = DistillationTrainer(
        student, tiny.arguments(tmp_path, max_steps=30), distillation=config, teacher=teacher, train_dataset=rows
    )
    trainer.train()
    losses = [e["hidden_loss"] for e in trainer.state.log_history if "hidden_loss" in e]
    assert losses[-1] < 0.9 * losses[0]
