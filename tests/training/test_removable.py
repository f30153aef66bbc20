"""Structures that are masked in training and removed afterwards: the smaller model is the masked one, to rounding."""

import pytest
import torch
from architectures import build
from transformers import ElectraConfig, ElectraForSequenceClassification, TrainingArguments

from hf_compress import PruningConfig, PruningTrainer, shrink
from hf_compress.errors import ArchitectureError, ConfigError


def batches(model, number=24):
    generator = torch.Generator().manual_seed(1)
    if model.main_input_name == "pixel_values":
        size = getattr(model.config, "image_size", None) or 64
        make = {"pixel_values": lambda: torch.randn(3, size, size, generator=generator)}
    else:
        make = {"input_ids": lambda: torch.randint(3, 60, (9,), generator=generator)}
    rows = [{name: each() for name, each in make.items()} for _ in range(number)]
    is_causal = type(model).__name__.endswith(("CausalLM", "LMHeadModel"))
    return [{**row, "labels": row["input_ids"] if is_causal else torch.tensor(i % 2)} for i, row in enumerate(rows)]


def trainer(model, folder, steps=6, **options):
    config = PruningConfig(**{"sparsity": 0.5, "frequency": 1, "begin": 0.0, "end": 0.5, **options})
    arguments = TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=4, learning_rate=1e-3, report_to="none",
        save_strategy="no", disable_tqdm=True, use_cpu=True, logging_steps=1,
    )  # fmt: skip
    return PruningTrainer(model, arguments, pruning=config, train_dataset=batches(model))


@torch.no_grad()
def logits(model, rows):
    inputs = {name: torch.stack([row[name] for row in rows]) for name in rows[0] if name != "labels"}
    return model.eval()(**inputs).logits


@pytest.mark.parametrize(
    ("name", "structure", "field", "left"),
    [
        ("bert", "hidden", "hidden_size", 16),
        ("llama", "hidden", "hidden_size", 16),
        ("gpt2", "hidden", "n_embd", 16),
        ("bloom", "hidden", "hidden_size", 16),
        ("vit", "hidden", "hidden_size", 16),
        ("swin", "hidden", "embed_dim", 8),
        ("resnet", "filters", "hidden_sizes", [4, 6]),
        ("convnext", "filters", "hidden_sizes", [4, 6, 8, 10]),
        ("segformer", "filters", "hidden_sizes", [4, 8, 12, 16]),
        ("mixtral", "ffn", "intermediate_size", 24),
        ("dinov2", "ffn", "mlp_ratio", 2),
        ("olmo2", "heads", "num_key_value_heads", 1),
    ],
)
@pytest.mark.parametrize("criterion", ["magnitude", "taylor"])
def test_what_was_trained_is_what_is_left(name, structure, field, left, criterion, tmp_path):
    run = trainer(build(name), tmp_path, structure=structure, criterion=criterion)
    run.train()
    shrunk = shrink(run.model)
    assert getattr(shrunk.config, field) == left
    rows = batches(run.model, 3)
    expected = logits(run.model, rows)
    assert torch.allclose(logits(shrunk, rows), expected, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("name", "field"), [("bert", "num_hidden_layers"), ("llama", "num_hidden_layers"), ("gpt2", "n_layer")]
)
def test_layers_go_one_by_one_and_the_last_stays(name, field, tmp_path):
    run = trainer(build(name), tmp_path, structure="layers", sparsity=2 / 3, criterion="taylor")
    run.train()
    assert [round(log["sparsity"], 2) for log in run.state.log_history if "loss" in log][-1] == 0.67
    shrunk = shrink(run.model)
    assert getattr(shrunk.config, field) == 1
    rows = batches(run.model, 3)
    expected = logits(run.model, rows)
    assert torch.allclose(logits(shrunk, rows), expected, atol=1e-5 * float(expected.abs().max()))
    last = [n for n, p in shrunk.named_parameters() if ".0." in n][0]
    assert torch.equal(shrunk.get_parameter(last), run.model.get_parameter(last.replace(".0.", ".2.")))


def test_a_second_training_starts_without_the_masks_of_the_first(tmp_path):
    model = build("llama")
    trainer(model, tmp_path, structure="hidden", sparsity=0.25).train()
    other = trainer(model, tmp_path, structure="hidden")
    other.train()
    expected = logits(model, batches(model, 2))
    found = logits(shrink(model), batches(model, 2))
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        (
            "bert",
            {"structure": "hidden", "sparsity": 0.3},
            ConfigError,
            "leaves 22 of 32 .* nearest legal: sparsity=0.25",
        ),
        ("bert", {"structure": "filters"}, ArchitectureError, "structure='filters': expected channels"),
        ("gemma2", {"structure": "hidden"}, ArchitectureError, "used hidden_size as a number"),
        ("bert", {"structure": "layers", "scope": "global"}, ConfigError, "scope='uniform'"),
    ],
)
def test_what_no_config_can_say_is_refused_before_training(name, options, error, message, tmp_path):
    with pytest.raises(error, match=message):
        trainer(build(name), tmp_path, **options).train()


def test_a_width_at_which_a_projection_vanishes_is_refused_before_training(tmp_path):
    """Of Electra's hidden width half is that of its embeddings, and nothing is projected then."""
    sizes = {"vocab_size": 60, "hidden_size": 32, "embedding_size": 16, "intermediate_size": 48}
    config = ElectraConfig(**sizes, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=40)
    with pytest.raises(ConfigError, match="leaves 16 of 32 .* nearest legal: sparsity=0.75"):
        trainer(ElectraForSequenceClassification(config), tmp_path, structure="hidden", sparsity=0.5).train()
