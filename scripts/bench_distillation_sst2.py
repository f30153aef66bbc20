"""Accuracy of a 3-layer student of 6-layer MiniLM on SST-2, by what it learns from, at equal budgets.

    python scripts/bench_distillation_sst2.py --data SST2_FOLDER --dense FINE_TUNED_FOLDER --output results.json
With --unlabeled FOLDER (parquet files of lines of text) the teacher is also asked about other text. Each finished run
is kept in the output, so the script goes on where it was stopped.
"""

import sst2
from transformers import AutoModelForSequenceClassification, set_seed

from hf_compress import CompressionConfig, CompressionTrainer, DistillationConfig, make_student

TERMS = {"temperature": 2.0, "task_weight": 0.1, "logit_weight": 0.9}
CASES = {
    "teacher": None,
    "plain, random initialisation": None,
    "plain, cut from the teacher": None,
    "logits, random initialisation": TERMS,
    "logits": TERMS,
    "logits + hidden states": {**TERMS, "hidden_weight": 1.0, "layer_map": "kept"},
    "logits + relations": {**TERMS, "relation_weight": 1.0, "layer_map": "last"},
    "logits + unlabelled text": TERMS,
    "logits + hidden states + unlabelled text": {**TERMS, "hidden_weight": 1.0, "layer_map": "kept"},
}

parser = sst2.parser(__doc__, steps=2000, learning_rate=1e-4)
parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
args = parser.parse_args()
tokenizer, data = sst2.load(args)
cache = str(sst2.cached(args, tokenizer, data))
texts = sst2.unlabeled(args, tokenizer)


def run(case, seed):
    """Train one student."""
    teacher = AutoModelForSequenceClassification.from_pretrained(args.dense)
    if case == "teacher":
        return sst2.score(CompressionTrainer, teacher, args, seed, tokenizer, data, steps=0)
    set_seed(seed)
    student = make_student(teacher, layers=3)
    if "random" in case:
        student = AutoModelForSequenceClassification.from_config(student.config)
    else:
        student.base_model.embeddings.requires_grad_(False)
    # Layers and other text need the teacher itself.
    is_cached = case.startswith("logits") and "+" not in case
    config = DistillationConfig(**CASES[case], cache=cache if is_cached else "") if CASES[case] else None
    compression = CompressionConfig(config) if config else None
    extra = {"compression": compression, "teacher": None if is_cached or config is None else teacher}
    if "unlabelled" in case:
        extra["unlabeled_dataset"] = texts
    return sst2.score(CompressionTrainer, student, args, seed, tokenizer, data, **extra)


sst2.table(args, [c for c in args.cases if texts or "unlabelled" not in c], run)
