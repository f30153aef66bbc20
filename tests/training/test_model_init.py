"""A Trainer whose model is made at each training: what looks into the model goes over to the new one."""

import pytest
import tiny
import torch

from hf_compress import (
    CompressionConfig,
    CompressionTrainer,
    DistillationConfig,
    DistillationTrainer,
    QuantizationConfig,
)
from hf_compress.distillation import ensemble


@pytest.mark.parametrize(
    "options",
    [{"chunk_size": 3}, {"relation_weight": 1.0}, {"attention_weight": 1.0}, {"hidden_weight": 1.0}],
    ids=lambda options: next(iter(options)),
)
def test_it_trains_as_with_the_model_itself(tmp_path, options, caplog):
    def trained(**model):
        trainer = DistillationTrainer(
            args=tiny.arguments(tmp_path, max_steps=3), train_dataset=tiny.texts(), teacher=tiny.llama(1),
            distillation=DistillationConfig(**options), **model,
        )  # fmt: skip
        trainer.train()
        # A second training, such as a search makes, starts anew.
        if "model_init" in model:
            trainer.train()
        return trainer.model.state_dict()

    expected, found = trained(model=tiny.llama(0)), trained(model_init=lambda: tiny.llama(0))
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert "logits are made whole" not in caplog.text


def test_a_teacher_in_a_folder_is_loaded_once(tmp_path, monkeypatch):
    tiny.llama(1).save_pretrained(tmp_path / "teacher")
    loaded, load = [], ensemble.load_teacher_model
    monkeypatch.setattr(ensemble, "load_teacher_model", lambda *args: loaded.append(load(*args)) or loaded[-1])
    trainer = DistillationTrainer(
        model_init=lambda: tiny.llama(0), args=tiny.arguments(tmp_path, max_steps=1), train_dataset=tiny.texts(),
        teacher=tmp_path / "teacher", distillation=DistillationConfig(),
    )  # fmt: skip
    trainer.train()
    assert len(loaded) == 1
    assert trainer._objective.objectives[0].teacher.model is loaded[0]
    assert trainer._objective.objectives[0].student is trainer.model


def test_projections_are_those_of_the_new_model(tmp_path):
    trainer = DistillationTrainer(
        model_init=lambda: tiny.bert(0, hidden_size=8), args=tiny.arguments(tmp_path), train_dataset=tiny.sentences(),
        teacher=tiny.bert(1), distillation=DistillationConfig(hidden_weight=1.0),
    )  # fmt: skip
    first = trainer._sides[0]
    trainer.train()
    callbacks = trainer.callback_handler.callbacks
    assert trainer._sides[0] in callbacks
    assert first not in callbacks
    trained = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in trainer._sides[0].modules.parameters()} <= trained


def test_the_new_model_learns_with_rounded_weights(tmp_path):
    def trained(aware, **model):
        compression = CompressionConfig(quantization=QuantizationConfig("int8", aware=aware))
        trainer = CompressionTrainer(
            args=tiny.arguments(tmp_path, learning_rate=1e-2), train_dataset=tiny.sentences(), compression=compression,
            **model,
        )  # fmt: skip
        trainer.train()
        return trainer.model.bert.pooler.dense.weight

    expected, plain = trained(True, model=tiny.bert(0)), trained(False, model=tiny.bert(0))
    assert not torch.equal(expected, plain)
    assert torch.equal(trained(True, model_init=lambda: tiny.bert(0)), expected)
