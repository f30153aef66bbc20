import functools

import pytest
import torch
import transformers as t

TEXT = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 96}
IMAGE = {k: v for k, v in TEXT.items() if k != "vocab_size"} | {"image_size": 16, "patch_size": 4}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 4, "num_decoder_layers": 3, "num_heads": 4, "vocab_size": 96}

BUILDERS = {
    "bert": lambda: t.BertForSequenceClassification(t.BertConfig(**TEXT, num_labels=3)),
    "vit": lambda: t.ViTForImageClassification(t.ViTConfig(**IMAGE)),
    "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**TEXT, **IDS, num_key_value_heads=2)),
    "qwen3": lambda: t.Qwen3ForCausalLM(
        t.Qwen3Config(**TEXT, **IDS, num_key_value_heads=2, head_dim=8, tie_word_embeddings=True)
    ),
    "gpt2": lambda: t.GPT2LMHeadModel(
        t.GPT2Config(n_embd=32, n_layer=4, n_head=4, vocab_size=96, bos_token_id=1, eos_token_id=2)
    ),
    "phi3": lambda: t.Phi3ForCausalLM(t.Phi3Config(**TEXT, **IDS, num_key_value_heads=2)),
    "distilbert": lambda: t.DistilBertForSequenceClassification(
        t.DistilBertConfig(dim=32, n_layers=4, n_heads=4, hidden_dim=48, vocab_size=96)
    ),
    "modernbert": lambda: t.ModernBertForSequenceClassification(
        t.ModernBertConfig(**TEXT, **IDS, cls_token_id=1, sep_token_id=2)
    ),
    "t5": lambda: t.T5ForConditionalGeneration(t.T5Config(**T5, feed_forward_proj="gated-gelu")),
}
FAMILIES = tuple(BUILDERS)


@functools.cache
def shared_model(family):
    """A model that no test may change, with biases and norms that are not the trivial 0 and 1."""
    with torch.random.fork_rng():
        torch.manual_seed(FAMILIES.index(family))
        model = BUILDERS[family]()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def model(family):
    return shared_model(family)


@pytest.fixture
def make():
    """Return a model of a family: shared (read only) or, with fresh=True, the test's own."""

    def build(name, fresh=False):
        if not fresh:
            return shared_model(name)
        torch.manual_seed(0)
        return BUILDERS[name]().eval()

    return build


@pytest.fixture
def inputs_for():
    """Return a fixed input of a model, and not the one that `shrink` makes up to verify itself."""

    def build(model):
        generator = torch.Generator().manual_seed(7)
        if model.main_input_name == "pixel_values":
            return {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}
        ids = torch.randint(3, 96, (2, 9), generator=generator)
        return {"input_ids": ids} | ({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})

    return build
