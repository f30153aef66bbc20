"""Tiny models of many architectures of transformers: name -> class, config class, fields of the config."""

import torch
import transformers

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = {**SIZES, "vocab_size": 60, "max_position_embeddings": 40}
GROUPED = {**TEXT, "num_key_value_heads": 2}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
IMAGE = {**SIZES, "image_size": 16, "patch_size": 8}
SEQ2SEQ = {
    "vocab_size": 60,
    "d_model": 32,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
}
SPEECH = {
    **SIZES,
    "conv_dim": (16, 16),
    "conv_stride": (5, 2),
    "conv_kernel": (10, 3),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 60,
}

MODELS = {
    "bert": ("BertForSequenceClassification", "BertConfig", {**TEXT}),
    "roberta": ("RobertaForSequenceClassification", "RobertaConfig", {**TEXT}),
    "distilbert": (
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        {"vocab_size": 60, "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 40},
    ),
    "electra": ("ElectraForSequenceClassification", "ElectraConfig", {**TEXT, "embedding_size": 32}),
    "mpnet": ("MPNetForSequenceClassification", "MPNetConfig", {**TEXT}),
    "deberta-v2": ("DebertaV2ForSequenceClassification", "DebertaV2Config", {**TEXT}),
    "modernbert": (
        "ModernBertForSequenceClassification",
        "ModernBertConfig",
        {**IDS, **TEXT, "cls_token_id": 1, "sep_token_id": 2},
    ),
    "albert": ("AlbertForSequenceClassification", "AlbertConfig", {**TEXT, "embedding_size": 16}),
    "xlm-r": ("XLMRobertaForTokenClassification", "XLMRobertaConfig", {**TEXT}),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {
            "vocab_size": 60,
            "n_positions": 40,
            "n_embd": 32,
            "n_layer": 3,
            "n_head": 4,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "gpt-neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", {**TEXT}),
    "opt": (
        "OPTForCausalLM",
        "OPTConfig",
        {
            "vocab_size": 60,
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "ffn_dim": 48,
            "num_attention_heads": 4,
            "max_position_embeddings": 40,
            "word_embed_proj_dim": 32,
        },
    ),
    "bloom": ("BloomForCausalLM", "BloomConfig", {"vocab_size": 60, "hidden_size": 32, "n_layer": 3, "n_head": 4}),
    "llama": ("LlamaForCausalLM", "LlamaConfig", {**GROUPED}),
    "mistral": ("MistralForCausalLM", "MistralConfig", {**GROUPED}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", {**GROUPED}),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**GROUPED, "head_dim": 8}),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", {**GROUPED, "head_dim": 8}),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", {**GROUPED, "head_dim": 8}),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", {**IDS, **GROUPED}),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", {**IDS, **GROUPED}),
    "smollm3": ("SmolLM3ForCausalLM", "SmolLM3Config", {**IDS, **GROUPED}),
    "falcon": (
        "FalconForCausalLM",
        "FalconConfig",
        {
            "vocab_size": 60,
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "new_decoder_architecture": False,
            "multi_query": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**GROUPED, "num_local_experts": 2, "num_experts_per_tok": 1}),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {
            "vocab_size": 60,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 3,
            "num_decoder_layers": 2,
            "num_heads": 4,
            "decoder_start_token_id": 0,
        },
    ),
    "bart": ("BartForConditionalGeneration", "BartConfig", {**SEQ2SEQ, "max_position_embeddings": 40}),
    "marian": (
        "MarianMTModel",
        "MarianConfig",
        {
            **SEQ2SEQ,
            "max_position_embeddings": 40,
            "pad_token_id": 0,
            "decoder_start_token_id": 0,
            "eos_token_id": 1,
            "forced_eos_token_id": 1,
        },
    ),
    "pegasus": ("PegasusForConditionalGeneration", "PegasusConfig", {**SEQ2SEQ, "max_position_embeddings": 40}),
    "whisper": (
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {
            **SEQ2SEQ,
            **IDS,
            "max_source_positions": 30,
            "max_target_positions": 40,
            "num_mel_bins": 8,
            "decoder_start_token_id": 1,
            "suppress_tokens": None,
            "begin_suppress_tokens": None,
        },
    ),
    "vit": ("ViTForImageClassification", "ViTConfig", {**IMAGE}),
    "deit": ("DeiTForImageClassification", "DeiTConfig", {**IMAGE}),
    "beit": ("BeitForImageClassification", "BeitConfig", {**IMAGE}),
    "dinov2": (
        "Dinov2ForImageClassification",
        "Dinov2Config",
        {"image_size": 16, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4},
    ),
    "swin": (
        "SwinForImageClassification",
        "SwinConfig",
        {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
    ),
    "convnext": (
        "ConvNextForImageClassification",
        "ConvNextConfig",
        {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 2, 2, 1], "image_size": 64},
    ),
    "resnet": (
        "ResNetForImageClassification",
        "ResNetConfig",
        {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [2, 2], "layer_type": "basic"},
    ),
    "mobilenetv2": (
        "MobileNetV2ForImageClassification",
        "MobileNetV2Config",
        {"image_size": 64, "depth_multiplier": 0.5},
    ),
    "segformer": (
        "SegformerForImageClassification",
        "SegformerConfig",
        {
            "hidden_sizes": [8, 16, 24, 32],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 2, 4],
            "decoder_hidden_size": 16,
        },
    ),
    "wav2vec2": ("Wav2Vec2ForSequenceClassification", "Wav2Vec2Config", {**SPEECH, "num_feat_extract_layers": 2}),
    "hubert": ("HubertForSequenceClassification", "HubertConfig", {**SPEECH}),
    "wavlm": ("WavLMForSequenceClassification", "WavLMConfig", {**SPEECH}),
    "ast": (
        "ASTForAudioClassification",
        "ASTConfig",
        {**SIZES, "max_length": 40, "num_mel_bins": 16, "patch_size": 8, "frequency_stride": 8, "time_stride": 8},
    ),
    "clip": ("CLIPModel", "CLIPConfig", {"text_config": TEXT, "vision_config": IMAGE, "projection_dim": 16}),
}


def build(name):
    """Return a model with biases and norms that are not the trivial 0 and 1."""
    model_class, config_class, fields = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, model_class)(getattr(transformers, config_class)(**fields)).eval()
        with torch.no_grad():
            # Those that do not learn, such as sinusoids, are not saved by every model.
            for parameter in (p for p in model.parameters() if p.requires_grad):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model
