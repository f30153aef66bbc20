"""One-shot pruning of one model by one tool, in a process of its own, as one line of JSON.

    python scripts/peers_oneshot.py hf_compress sparsegpt 0.5 --model FOLDER --tokens tokens.pt
`tokens.pt` holds {"calibration": (rows, length), "heldout": (rows, length)}. The tools stand in environments of their
own, so this file imports only what the tool asked for needs.
"""

import argparse
import json
import math
import resource
import time

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM


def perplexity(model, rows):
    """The same for all tools."""
    total = 0.0
    with torch.no_grad():
        for part in rows.split(8):
            logits = model(input_ids=part).logits[:, :-1].float()
            total += float(F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum"))
    return math.exp(total / rows[:, 1:].numel())


def hf_compress(model, method, amount, rows, options):
    """This package."""
    from hf_compress import OneShotConfig, prune_oneshot

    what = {"structure": amount} if ":" in amount else {"sparsity": float(amount)}
    # Without refinement unless asked for: the others have none.
    config = OneShotConfig(criterion=method, **what, **{"refine": 0, **options})
    prune_oneshot(model, config, [{"input_ids": r} for r in rows.split(8)])


def llmcompressor(model, method, amount, rows, options):
    """Red Hat's, its oneshot entry point."""
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier

    make = {"sparsegpt": SparseGPTModifier, "wanda": WandaPruningModifier}[method]
    what = {"sparsity": 0.5, "mask_structure": amount} if ":" in amount else {"sparsity": float(amount)}
    data = Dataset.from_dict({"input_ids": rows.tolist(), "attention_mask": torch.ones_like(rows).tolist()})
    recipe = [make(targets=["Linear"], ignore=["lm_head"], **what)]
    oneshot(
        model=model,
        recipe=recipe,
        dataset=data,
        num_calibration_samples=len(rows),
        max_seq_length=rows.shape[1],
    )


def torchao(model, method, amount, rows, options):
    """PyTorch's Wanda: one threshold for each whole layer, all of it from the dense model."""
    from torchao.sparsity import WandaSparsifier

    block = int(amount.split(":")[1]) if ":" in amount else None
    level = 0.5 if block else float(amount)
    sparsifier = WandaSparsifier(sparsity_level=level, semi_structured_block_size=block)
    names = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"]
    sparsifier.prepare(model, [{"tensor_fqn": f"{name}.weight"} for name in names])
    with torch.no_grad():
        for part in rows.split(8):
            model(input_ids=part)
    sparsifier.step()
    sparsifier.squash_mask()


def main():
    """Run one tool once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tools = {"hf_compress": hf_compress, "llmcompressor": llmcompressor, "torchao": torchao}
    parser.add_argument("tool", choices=tools)
    parser.add_argument("method", help="sparsegpt, wanda, ...")
    parser.add_argument("amount", help="sparsity, or N:M")
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokens", required=True)
    parser.add_argument("--options", default="{}", help="JSON, of hf_compress")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    tokens = torch.load(args.tokens)
    with torch.no_grad():
        model(input_ids=tokens["calibration"][:1])
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    begin = time.perf_counter()
    tools[args.tool](model, args.method, args.amount, tokens["calibration"], json.loads(args.options))
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    weights = [m.weight for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"]
    zeros = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
    row = {"tool": args.tool, "method": args.method, "amount": args.amount, "seconds": round(seconds, 2)}
    row |= {"peak_mb": round(peak), "over_model_mb": round(peak - loaded), "zeros": round(zeros, 4)}
    print(json.dumps({**row, "options": args.options, "perplexity": round(perplexity(model, tokens["heldout"]), 3)}))


if __name__ == "__main__":
    main()
