"""Which modules make a model's final prediction.

Level: state.
"""

from __future__ import annotations

from torch import nn


def head_modules(model: nn.Module) -> list[str]:
    """Return the names of the linear layers that make the final prediction: they lie outside the base model.

    A plain module does not say where its head is; there it is the last one, as for pruning.

    transformers looks for the head by the last parameter, which is the head's bias, and so misses a classifier.
    """
    if not hasattr(model, "get_output_embeddings"):
        return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1:]
    base = getattr(model, "base_model", model)
    inside = set() if base is model else {id(m) for m in base.modules()}
    heads = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and inside and id(module) not in inside
    }
    # Models of several parts, such as BLIP, do not name the head of a part, which shares its weight with embeddings.
    shared = {name.removesuffix(".weight") for name in getattr(model, "all_tied_weights_keys", None) or ()}
    output = model.get_output_embeddings()
    heads |= {name for name, module in model.named_modules() if name in shared and isinstance(module, nn.Linear)}
    return sorted(heads | {name for name, module in model.named_modules() if module is output})
