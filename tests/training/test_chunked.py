"""Training without logits against training with them: the same loss and gradients, and no large tensor."""

import pytest
import tiny
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
)

from hf_compress import CacheConfig, CompressionConfig, CompressionTrainer, DistillationConfig, cache_teacher
from hf_compress.errors import ConfigError
from hf_compress.training.chunked import ChunkedLoss

SMALL = {"vocab_size": 50, **tiny.WIDTH}


def gpt2(seed):
    torch.manual_seed(seed)
    drops = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=32, n_embd=16, n_layer=2, n_head=2, **drops))


def gemma2(seed):
    torch.manual_seed(seed)
    config = Gemma2Config(**SMALL, num_key_value_heads=1, head_dim=8, final_logit_softcapping=0.5)
    return Gemma2ForCausalLM(config)


def cohere(seed):
    torch.manual_seed(seed)
    return CohereForCausalLM(CohereConfig(**SMALL, num_key_value_heads=1, logit_scale=0.25))


def bart(seed):
    torch.manual_seed(seed)
    sizes = {f"{s}_{k}": v for s in ("encoder", "decoder") for k, v in (("layers", 1), ("ffn_dim", 32))}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = BartConfig(vocab_size=50, d_model=16, max_position_embeddings=32, dropout=0.0, **sizes, **heads)
    model = BartForConditionalGeneration(config)
    model.final_logits_bias.normal_()
    return model


def masked_bert(seed):
    torch.manual_seed(seed)
    drops = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForMaskedLM(BertConfig(**SMALL, max_position_embeddings=16, **drops))


MODELS = {
    "llama": tiny.llama,
    "gpt2, tied": gpt2,
    "gemma2, capped": gemma2,
    "cohere, scaled": cohere,
    "t5": tiny.t5,
    "bart, offset": bart,
    "bert": masked_bert,
}


def trainer_for(folder, make, config, *, teacher=None, **options):
    rows = options.pop("train_dataset", None) or tiny.texts()
    extra = {k: options.pop(k) for k in ("compute_loss_func", "unlabeled_dataset") if k in options}
    teacher = teacher if teacher is not None or config.get("cache") else make(1)
    return CompressionTrainer(
        make(0),
        tiny.arguments(folder, **options),
        train_dataset=rows,
        compression=CompressionConfig(DistillationConfig(**config)),
        teacher=teacher,
        **extra,
    )


def step(trainer):
    """Return the loss and the gradients of the first optimizer step."""
    batches, _ = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 2, trainer.args.device)
    trainer.model.train()
    loss = sum(trainer.compute_loss(trainer.model, dict(batch)) for batch in batches)
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}


def assert_same(found, expected, **close):
    torch.testing.assert_close(found[0], expected[0], **close)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, msg=lambda m, n=name: f"{n}: {m}", **close)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("config", [{}, {"divergence": "jsd", "temperature": 1.0}], ids=["kl", "jsd"])
def test_equals_training_with_logits(tmp_path, name, config):
    whole = trainer_for(tmp_path, MODELS[name], {"chunk_size": 0, **config})
    chunked = trainer_for(tmp_path, MODELS[name], {"chunk_size": 3, **config})
    assert_same(step(chunked), step(whole), rtol=1e-4, atol=1e-6)
    assert chunked._loss._chunked is not None
    logs = whole._loss.drain(), chunked._loss.drain()
    assert logs[0] == pytest.approx(logs[1], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ({}, {"label_smoothing_factor": 0.1}),
        ({"hidden_weight": 1.0, "relation_weight": 1.0}, {}),
        ({"divergence": "soft_cross_entropy"}, {}),
        ({"unlabeled_ratio": 0.5}, {"unlabeled_dataset": [{"input_ids": r["input_ids"]} for r in tiny.texts(8)]}),
        ({}, {"train_dataset": [{"input_ids": row["input_ids"]} for row in tiny.texts()]}),
    ],
    ids=["smoothing", "layers", "soft cross-entropy", "unlabelled", "no labels"],
)
def test_equals_training_with_logits_for(tmp_path, config, options):
    runs = [trainer_for(tmp_path, tiny.llama, {"chunk_size": n, **config}, **options) for n in (0, 3)]
    for run in runs:
        run.state.max_steps = 1
    assert_same(step(runs[1]), step(runs[0]), rtol=1e-4, atol=1e-6)


def test_several_teachers_and_padded_vocabularies(tmp_path):
    teachers = [tiny.llama(1), tiny.llama(2)]
    for config in ({}, {"teacher_weights": (1.0, 3.0)}):
        runs = [trainer_for(tmp_path, tiny.llama, {"chunk_size": n, **config}, teacher=teachers) for n in (0, 3)]
        assert_same(step(runs[1]), step(runs[0]), rtol=1e-4, atol=1e-6)
    padded = tiny.llama(1, vocab_size=20_064)

    def student(seed):
        return tiny.llama(seed, vocab_size=20_000)

    runs = [trainer_for(tmp_path, student, {"chunk_size": n}, teacher=padded) for n in (0, None)]
    assert_same(step(runs[1]), step(runs[0]), rtol=1e-4, atol=1e-6)
    assert runs[1]._loss._chunked is not None


def test_masked_language_models_in_mixed_precision_learn_the_same_in_chunks(tmp_path):
    found = []
    for size in (0, 3):
        options = {"learning_rate": 0.1, "optim": "sgd", "bf16": True, "max_steps": 4}
        trainer = trainer_for(tmp_path, masked_bert, {"chunk_size": size}, **options)
        trainer.train()
        found.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
    moved = (found[0] - torch.cat([p.detach().flatten() for p in masked_bert(0).parameters()])).norm()
    assert (found[1] - found[0]).norm() < 0.05 * moved


@pytest.mark.parametrize("options", [{"bf16": True}, {"torch_compile": True, "torch_compile_backend": "eager"}, {}])
def test_whole_runs_agree(tmp_path, options):
    if "torch_compile" in options:
        tiny.needs_compile()
    rates = {"learning_rate": 0.1, "optim": "sgd", "gradient_accumulation_steps": 2, **options}
    found = []
    for size in (0, 3):
        trainer = trainer_for(tmp_path, tiny.llama, {"chunk_size": size}, max_steps=4, **rates)
        trainer.train()
        found.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
    moved = (found[0] - torch.cat([p.detach().flatten() for p in tiny.llama(0).parameters()])).norm()
    assert (found[1] - found[0]).norm() < (0.05 if options.get("bf16") else 1e-4) * moved


def test_no_tensor_over_positions_and_vocabulary_is_made(tmp_path):
    def student(seed):
        return tiny.llama(seed, vocab_size=5_000)

    trainer = trainer_for(tmp_path, student, {"chunk_size": 4})
    step(trainer)  # tries the head on a few tokens
    with LargestTensor() as largest:
        step(trainer)
    assert largest.numel == 5_000 * 16  # the head and its gradient
    whole = trainer_for(tmp_path, student, {"chunk_size": 0})
    with LargestTensor() as largest:
        step(whole)
    assert largest.numel == 5_000 * 8 * 8


class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(value, torch.Tensor):
                self.numel = max(self.numel, value.numel())
        return out


def mixtral(seed):
    torch.manual_seed(seed)
    experts = {"num_local_experts": 2, "output_router_logits": True}
    return MixtralForCausalLM(MixtralConfig(**SMALL, num_key_value_heads=1, **experts))


class OwnLoss(tiny.LlamaForCausalLM):
    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        out = super().forward(input_ids, attention_mask, labels=labels, **kwargs)
        out.loss = None if out.loss is None else 3 * out.loss
        return out


def own_loss(seed):
    torch.manual_seed(seed)
    return OwnLoss(tiny.llama().config)


def first_loss(*args, **kwargs):
    return args[0]["logits"].sum()


@pytest.mark.parametrize(
    ("make", "config", "options", "reason"),
    [
        (tiny.bert, {}, {}, "no language-model head"),
        (mixtral, {}, {}, "routers"),
        (tiny.llama, {"logit_weight": 0.0, "hidden_weight": 1.0}, {}, "logit_weight is 0"),
        (tiny.llama, {}, {"compute_loss_func": first_loss}, "compute_loss_func"),
        (own_loss, {}, {}, "not plain cross-entropy"),
    ],
)
def test_what_needs_logits_is_refused_and_by_default_gets_them(tmp_path, make, config, options, reason):
    rows = tiny.sentences() if make is tiny.bert else tiny.texts()
    with pytest.raises(ConfigError, match=reason):
        step(trainer_for(tmp_path, make, {"chunk_size": 3, **config}, train_dataset=rows, **options))
    trainer = trainer_for(tmp_path, make, config, train_dataset=rows, **options)
    trainer._loss._chunked = trainer._loss._chunked and ChunkedLoss(trainer, trainer._objective, "causal", 3)
    assert step(trainer)[1]


def test_a_head_with_an_adapter_gets_logits(tmp_path):
    peft = pytest.importorskip("peft")

    def adapted(seed):
        return peft.get_peft_model(tiny.llama(seed), peft.LoraConfig(target_modules=["lm_head"], r=2))

    with pytest.raises(ConfigError, match="not a plain linear layer"):
        trainer_for(tmp_path, adapted, {"chunk_size": 3}, teacher=tiny.llama(1))


@pytest.mark.parametrize("chunk_size", [0, 3])
@pytest.mark.parametrize("kept", [{}, {"top_k": 50}], ids=["whole", "all of 50"])
@pytest.mark.parametrize("name", ["llama", "t5", "bert"])
def test_a_cache_teaches_what_its_teacher_does(tmp_path, name, kept, chunk_size):
    make = MODELS[name]
    cache = cache_teacher(make(1), tiny.texts(), tmp_path / "c", CacheConfig(temperature=2.0, **kept), progress=False)
    online = trainer_for(tmp_path, make, {"chunk_size": chunk_size})
    cached = trainer_for(tmp_path, make, {"chunk_size": chunk_size, "cache": str(cache)})
    # Probabilities are 16 bit on disk.
    assert_same(step(cached), step(online), rtol=1e-2 if kept else 1e-4, atol=1e-3 if kept else 1e-6)


def test_a_batch_without_any_label_that_counts_gives_nothing(tmp_path):
    rows = [{**row, "labels": torch.full_like(row["labels"], -100)} for row in tiny.texts()]
    trainer = trainer_for(tmp_path, tiny.llama, {"chunk_size": 3}, train_dataset=rows)
    loss, gradients = step(trainer)
    assert float(loss) == 0
    assert not any(gradient.any() for gradient in gradients.values())
    assert trainer._loss.drain() == {"task_loss": 0.0, "distillation_loss": 0.0}
