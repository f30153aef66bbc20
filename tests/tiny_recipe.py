"""A recipe of seconds: a ViT of one layer on a few digits, and a student that is distilled from it."""

from __future__ import annotations

ARGUMENTS = {"max_steps": 6, "per_device_train_batch_size": 32, "learning_rate": 0.003, "save_steps": 3}
TINY = {"model_type": "vit", "image_size": 8, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 32}  # fmt: skip
RECIPE = {
    "name": "tiny",
    "task": {"type": "image-classification", "dataset": "digits", "max_samples": 120},
    "stages": [
        {"name": "teacher", "kind": "train", "config": TINY, "arguments": ARGUMENTS},
        {
            "name": "student",
            "kind": "train",
            "config": TINY,
            "teacher": "teacher",
            "compression": {"distillation": {"temperature": 2.0}, "pruning": {"sparsity": 0.5, "structure": "ffn"}},
            "arguments": ARGUMENTS,
        },
    ],
    "measure": {"batch_sizes": [1]},
}
TEMPERATURE = "stages.student.compression.distillation.temperature"
SPARSITY = "stages.student.compression.pruning.sparsity"
SPACE = {TEMPERATURE: {"low": 1.0, "high": 8.0, "log": True}, SPARSITY: [0.25, 0.5, 0.75]}
