"""PEFT adapters over sparse and pruned models, and TRL's SFTTrainer."""

import copy

import pytest
import tiny
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import BertForSequenceClassification, Trainer

from hf_compress import (
    CompressionConfig,
    CompressionMixin,
    PruningCallback,
    PruningConfig,
    PruningTrainer,
    merge_adapter,
)
from hf_compress.errors import ConfigError, UnsupportedError

LORA = LoraConfig(target_modules=["query", "value"], task_type="SEQ_CLS", init_lora_weights=False)


def sparse_bert():
    model = tiny.bert()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "encoder" in name and parameter.dim() == 2:
                parameter.mul_(parameter.abs() > parameter.abs().median())
    return model


def zeros(model):
    return {n: p == 0 for n, p in model.named_parameters() if "encoder" in n and p.dim() == 2}


def test_zeros_of_a_frozen_base_survive_training_and_merging(tmp_path):
    before = zeros(sparse_bert())
    model = get_peft_model(sparse_bert(), LORA)
    config = PruningConfig(criterion="keep")
    trainer = PruningTrainer(model, tiny.arguments(tmp_path), pruning=config, train_dataset=tiny.sentences())
    trainer.train()
    assert all("lora" not in n and "classifier" not in n for n in trainer.pruner.masks)
    assert len(trainer.pruner.masks) == 13
    folders = trainer.save_compressed(tmp_path / "out")
    plain = BertForSequenceClassification.from_pretrained(folders["model"])
    after = zeros(plain)
    assert all(torch.equal(after[n], z) for n, z in before.items())
    changed = [n for n, p in plain.named_parameters() if not torch.equal(p, dict(sparse_bert().named_parameters())[n])]
    assert any("query" in n for n in changed)


def test_merging_equals_pefts_own_where_the_base_is_not_zero():
    model = get_peft_model(sparse_bert(), LORA)
    stock = dict(copy.deepcopy(model).merge_and_unload().named_parameters())
    base = zeros(sparse_bert())
    for name, parameter in merge_adapter(model).named_parameters():
        expected = torch.where(base[name], 0.0, stock[name]) if name in base else stock[name]
        assert torch.equal(parameter, expected)
    assert any((stock[n][z] != 0).any() for n, z in base.items())


def test_a_frozen_base_is_pruned_gradually_and_resumes(tmp_path):
    def made():
        arguments = tiny.arguments(tmp_path, save_strategy="steps", save_steps=4)
        model = get_peft_model(tiny.bert(), LORA)
        config = PruningConfig(0.6, criterion="magnitude", frequency=1)
        return PruningTrainer(model, arguments, pruning=config, train_dataset=tiny.sentences())

    torch.manual_seed(0)
    first = made()
    first.train()
    assert first.pruner.sparsity == pytest.approx(0.6, abs=0.01)
    again = made()
    again.train(resume_from_checkpoint=f"{tmp_path}/checkpoint-4")
    masks = again.pruner.masks
    assert all(torch.equal(m, masks[n]) for n, m in first.pruner.masks.items())
    first.save_model(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "pruning_state.safetensors").is_file()
    assert isinstance(PeftModel.from_pretrained(tiny.bert(), tmp_path / "adapter"), PeftModel)


def test_what_cannot_be_done_is_refused_with_the_reason(tmp_path):
    with pytest.raises(UnsupportedError, match="expected a PEFT model"):
        merge_adapter(tiny.bert())
    config = PruningConfig(criterion="movement")
    with pytest.raises(ConfigError, match="13 of 13 parameters to prune are frozen"):
        PruningTrainer(get_peft_model(tiny.bert(), LORA), tiny.arguments(tmp_path), pruning=config)


@pytest.fixture
def sft(tmp_path):
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    rows = Dataset.from_list([{"input_ids": r["input_ids"].tolist()} for r in tiny.texts(16)])
    arguments = trl.SFTConfig(
        str(tmp_path), max_steps=6, report_to="none", use_cpu=True, bf16=False, save_strategy="no", logging_steps=1,
        dataset_kwargs={"skip_prepare_dataset": True}, max_length=8, per_device_train_batch_size=4,
    )  # fmt: skip
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(48)} | {"<pad>": 48, "</s>": 49}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")), pad_token="<pad>", eos_token="</s>"
    )
    return trl.SFTTrainer, {"args": arguments, "train_dataset": rows, "processing_class": tokenizer}


CONFIG = PruningConfig(0.5, criterion="platon", regrow=True, frequency=1)


def test_sft_trainer_with_the_callback(sft):
    trainer_class, options = sft
    callback = PruningCallback(CONFIG)
    trainer = trainer_class(tiny.llama(), callbacks=[callback], **options)
    trainer.train()
    callback.pruner.check()
    assert callback.pruner.sparsity == pytest.approx(0.5, abs=0.01)
    assert [e["sparsity"] for e in trainer.state.log_history if "sparsity" in e][-1] == callback.pruner.sparsity


def test_sft_trainer_with_the_mixin(sft):
    trainer_class, options = sft

    class PruningSFTTrainer(CompressionMixin, trainer_class):
        pass

    trainer = PruningSFTTrainer(tiny.llama(), compression=CompressionConfig(pruning=CONFIG), **options)
    trainer.train()
    trainer.pruner.check()
    assert trainer.pruner.sparsity == pytest.approx(0.5, abs=0.01)
    assert issubclass(PruningSFTTrainer, Trainer)
