"""What leaves a Trainer: the finished model, the card, the push; and what it refuses at construction."""

import json
from pathlib import Path

import pytest
import tiny
import torch
from hub.hub_server import HubServer, use_hub
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification

from hf_compress import (
    CompressionConfig,
    CompressionTrainer,
    DistillationConfig,
    PruningConfig,
    PruningTrainer,
    QuantizationConfig,
    push,
)
from hf_compress.errors import (
    ArchitectureError,
    ConfigError,
    DataError,
    HubError,
    OutputExistsError,
    PushRefusedError,
    SparsityError,
    TargetError,
    TeacherError,
    UnsupportedError,
)


def trained(folder, compression=None, make=tiny.bert, **arguments):
    config = compression or CompressionConfig(DistillationConfig(), PruningConfig(0.5, "ffn", frequency=1))
    trainer = CompressionTrainer(
        make(),
        tiny.arguments(folder, eval_on_start=True, eval_strategy="epoch", **arguments),
        compression=config,
        teacher=make(1) if config.distillation else None,
        train_dataset=tiny.sentences(),
        eval_dataset=tiny.sentences(16, seed=3),
    )
    trainer.train()
    return trainer


def test_save_compressed_removes_pruned_units_and_quantizes(tmp_path):
    config = CompressionConfig(pruning=PruningConfig(0.5, "ffn", frequency=1), quantization=QuantizationConfig("int8"))
    trainer = trained(tmp_path / "run", config)
    folders = trainer.save_compressed(tmp_path / "out")
    assert {k: p.name for k, p in folders.items()} == {"model": "model", "quantized": "quantized"}
    small = AutoModelForSequenceClassification.from_pretrained(folders["model"]).eval()
    assert small.config.intermediate_size == 16
    batch = trainer.data_collator(trainer.eval_dataset)
    with torch.no_grad():
        assert torch.allclose(small(**batch).logits, trainer.model.eval()(**batch).logits, atol=1e-5)
    assert "quantization_config" in json.loads((folders["quantized"] / "config.json").read_text())
    with pytest.raises(OutputExistsError, match="already holds something"):
        trainer.save_compressed(tmp_path / "out")


def test_units_are_removed_in_float32_after_training_in_mixed_precision(tmp_path):
    # Wide enough that 16-bit logits of the two would differ.
    model = tiny.bert(hidden_size=64, intermediate_size=256)
    config = CompressionConfig(pruning=PruningConfig(0.5, "ffn", frequency=1))
    arguments = tiny.arguments(tmp_path / "run", bf16=True, learning_rate=1e-2)
    trainer = CompressionTrainer(model, arguments, compression=config, train_dataset=tiny.sentences())
    trainer.train()
    inputs = {k: v for k, v in trainer.data_collator(tiny.sentences(8)).items() if k != "labels"}
    with torch.no_grad():
        mixed = trainer.model(**inputs).logits
        small = AutoModelForSequenceClassification.from_pretrained(trainer.save_compressed(tmp_path / "out")["model"])
        assert torch.equal(mixed, trainer.model(**inputs).logits)  # still mixed afterwards
        trainer.model.__dict__.pop("forward")
        assert torch.allclose(small.eval()(**inputs).logits, trainer.model.eval()(**inputs).logits, atol=1e-5)
        assert not torch.equal(mixed, trainer.model(**inputs).logits)


@pytest.mark.parametrize("make", [tiny.bert, tiny.llama], ids=["bert", "llama"])
@pytest.mark.parametrize("scope", ["uniform", "global"])
def test_the_saved_file_has_exactly_the_zeros_asked_for(tmp_path, make, scope):
    rows = tiny.sentences() if make is tiny.bert else tiny.texts()
    config = PruningConfig(sparsity=0.37, scope=scope, frequency=1)
    model = make()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "mlp" in name or "intermediate" in name:
                parameter.fill_(0.25)  # ties everywhere
    trainer = PruningTrainer(model, tiny.arguments(tmp_path, learning_rate=0.0), pruning=config, train_dataset=rows)
    trainer.train()
    trainer.save_model()
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        saved = {name: file.get_tensor(name) for name in trainer.pruner.masks}
    zeros = [int((t == 0).sum()) for t in saved.values()]
    sizes = [t.numel() for t in saved.values()]
    if scope == "global":
        assert sum(zeros) == round(0.37 * sum(sizes))
    else:
        assert zeros == [round(0.37 * n) for n in sizes]


def test_a_vit_that_is_saved_under_other_names_is_checked_all_the_same(tmp_path):
    rows = [{"pixel_values": torch.randn(3, 8, 8), "labels": torch.tensor(i % 3)} for i in range(32)]
    trainer = PruningTrainer(
        tiny.vit(), tiny.arguments(tmp_path), pruning=PruningConfig(frequency=1), train_dataset=rows
    )
    trainer.train()
    trainer.save_model()
    with torch.no_grad():
        next(p for n, p in trainer.model.named_parameters() if n in trainer.pruner.masks).fill_(1)
    with pytest.raises(SparsityError, match="must be zero"):
        trainer.save_model()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with HubServer() as server:
        use_hub(server, monkeypatch, tmp_path / "hf_home")
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        yield server


def test_push_to_hub_sends_model_and_card_in_one_commit_and_no_pickle(tmp_path, hub):
    trainer = trained(tmp_path / "run", save_strategy="steps", save_steps=4)
    trainer.args.hub_model_id = "tester/small"
    trainer.push_to_hub()
    files = hub.files("tester/small")
    assert {"config.json", "model.safetensors", "README.md"} <= set(files)
    assert not [f for f in files if f.endswith((".bin", ".pt", ".pth")) or "checkpoint" in f or "pruning_state" in f]
    assert (tmp_path / "run" / "training_args.bin").is_file()
    assert files["model.safetensors"] == (tmp_path / "run" / "model.safetensors").read_bytes()
    assert len([c for c in hub.commits("tester/small") if c.files]) == 1


def test_the_card_of_a_trainer_shows_what_it_measured(tmp_path):
    trainer = trained(tmp_path / "run")
    trainer.save_model()
    trainer.create_model_card(language="en", license="apache-2.0", tags="tiny", model_name="small")
    card = (tmp_path / "run" / "README.md").read_text()
    parameters = sum(p.numel() for p in trainer.model.parameters())
    evaluated = [e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e]
    for part in (f"{parameters:,}", f"{evaluated[0]:.3g}", f"{evaluated[-1]:.3g}", "license: apache-2.0", "# small"):
        assert part in card
    assert str(tmp_path) not in card


def test_a_refused_push_leaves_the_hub_as_it_was(tmp_path, hub):
    trainer = trained(tmp_path / "run")
    torch.save({}, tmp_path / "run" / "extra.pt")
    with pytest.raises(PushRefusedError, match=r"extra\.pt"):
        trainer.push_to_hub()
    assert not hub.requests
    assert not hub.repos


@pytest.mark.parametrize("strategy", ["every_save", "checkpoint", "all_checkpoints"])
def test_each_checkpoint_is_pushed_whole_and_without_training_state(tmp_path, hub, caplog, strategy):
    trainer = trained(
        tmp_path / "run", push_to_hub=True, hub_model_id="tester/often", save_strategy="steps", save_steps=4,
        hub_strategy=strategy, save_total_limit=1,
    )  # fmt: skip
    assert ("stays here" in caplog.text) == (strategy != "every_save")
    commits = [c for c in hub.commits("tester/often") if c.files]
    assert [c.message for c in commits] == ["Training in progress, step 4", "Training in progress, step 8"]
    assert all({"config.json", "model.safetensors"} <= set(c.files) for c in commits)
    assert not [f for c in commits for f in c.files if f.endswith((".bin", ".pt", ".pth")) or "state" in f]
    last = tmp_path / "run" / "checkpoint-8" / "model.safetensors"
    assert commits[-1].files["model.safetensors"] == last.read_bytes()
    trainer.save_model()
    assert "model.safetensors" in hub.files("tester/often")


def test_a_push_that_fails_while_training_is_logged_and_the_last_one_raised(tmp_path, hub, caplog):
    hub.fail_next("/commit/", 403, b'{"error": "no rights"}', "application/json", times=1)
    options = {"push_to_hub": True, "hub_model_id": "tester/often", "save_strategy": "steps", "save_steps": 4}
    trained(tmp_path / "run", **options)
    assert "a push while training failed" in caplog.text
    assert len([c for c in hub.commits("tester/often") if c.files]) == 1
    hub.fail_next("/commit/", 403, b'{"error": "no rights"}', "application/json", times=9)
    with pytest.raises(HubError, match="may not write there"):
        trained(tmp_path / "again", learning_rate=3e-3, **options)


DISTIL = CompressionConfig(DistillationConfig())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"compression": {"pruning": {}}}, ConfigError, "must be a CompressionConfig"),
        ({"compression": DISTIL}, ConfigError, "distillation needs a teacher"),
        (
            {"compression": CompressionConfig(quantization=QuantizationConfig("int7"))},
            ConfigError,
            "unknown quantization scheme 'int7'",
        ),
        ({"compression": None, "teacher": "x"}, ConfigError, "no distillation"),
        ({"compression": DISTIL, "teacher": tiny.bert(num_labels=4)}, TeacherError, "has 2 labels"),
        ({"compression": CompressionConfig(pruning=PruningConfig(include=("layr",)))}, TargetError, "layr"),
        (
            {"compression": CompressionConfig(pruning=PruningConfig(structure="diagonals"))},
            ConfigError,
            "unknown structure",
        ),
    ],
)
def test_a_wrong_set_up_is_refused_before_anything_is_written(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        CompressionTrainer(tiny.bert(), tiny.arguments(tmp_path / "run"), train_dataset=tiny.sentences(), **options)
    assert not list(tmp_path.rglob("*.*"))


def test_an_architecture_without_ffn_is_refused_before_training(tmp_path):
    from transformers import ResNetConfig, ResNetForImageClassification

    model = ResNetForImageClassification(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]))
    with pytest.raises(ArchitectureError):
        PruningTrainer(model, tiny.arguments(tmp_path), pruning=PruningConfig(structure="ffn"), train_dataset=[{}])


def test_sharded_parameters_are_refused_with_the_way_out(tmp_path):
    arguments = tiny.arguments(tmp_path)
    arguments.deepspeed = {"zero_optimization": {"stage": 3}}
    from hf_compress.pruning.callback import refuse_sharding

    with pytest.raises(UnsupportedError, match="DistributedDataParallel"):
        refuse_sharding(arguments)


def test_an_empty_dataset_gives_one_clear_error(tmp_path):
    trainer = PruningTrainer(tiny.bert(), tiny.arguments(tmp_path), train_dataset=[])
    with pytest.raises(DataError, match="training dataset is empty"):
        trainer.train()
    assert not list(Path(tmp_path).rglob("*.safetensors"))


def test_an_adapter_is_pushed_with_its_own_card_once_its_base_has_an_id(tmp_path, hub):
    from huggingface_hub import snapshot_download
    from peft import LoraConfig, get_peft_model

    base = tmp_path / "base"
    tiny.bert().save_pretrained(base)
    model = get_peft_model(
        AutoModelForSequenceClassification.from_pretrained(base),
        LoraConfig(task_type="SEQ_CLS", target_modules=["query"]),
    )
    arguments = tiny.arguments(tmp_path / "run", eval_strategy="epoch")
    rows = {"train_dataset": tiny.sentences(), "eval_dataset": tiny.sentences(16, seed=3)}
    config = CompressionConfig(DistillationConfig())
    trainer = CompressionTrainer(model, arguments, compression=config, teacher=tiny.bert(1), **rows)
    trainer.train()
    trainer.args.hub_model_id = "tester/adapter"
    with pytest.raises(PushRefusedError, match="base_model_name_or_path"):
        trainer.push_to_hub()
    assert not hub.repos
    push(base, "tester/base")
    snapshot_download("tester/base")
    model.peft_config["default"].base_model_name_or_path = "tester/base"
    trainer.push_to_hub(finetuned_from="tester/base")
    card = hub.files("tester/adapter")["README.md"].decode()
    assert "base_model_relation: adapter" in card
    assert 'from_pretrained("tester/base")' in card
    assert str(tmp_path) not in card
