"""Other ways to the loss of `bench_head.py`: plain torch, TRL's and Liger's, where these are installed."""

import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F


def resident() -> int:
    """Return the bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def naive(hidden, weight, teacher, teacher_weight, labels, divergence=None):
    """Make both logits whole."""
    logits = hidden @ weight.T
    with torch.no_grad():
        target = teacher @ teacher_weight.T
    if divergence is not None:
        pull = divergence(logits, target)
    else:
        pull = F.kl_div(F.log_softmax(logits.float(), -1), F.softmax(target.float(), -1), reduction="batchmean")
    return 0.5 * F.cross_entropy(logits.float(), labels) + 0.5 * pull


def trl_gkd(*inputs):
    """Take TRL's generalised JSD with beta 0, which is forward KL."""
    from trl.experimental.gkd import GKDTrainer

    return naive(
        *inputs,
        divergence=lambda ours, theirs: GKDTrainer.generalized_jsd_loss(ours[None], theirs[None], beta=0.0),
    )


def trl_chunked(hidden, weight, teacher, teacher_weight, labels):
    """Take the divergence of TRL's DistillationTrainer; it has no cross-entropy."""
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    mask = torch.ones(1, len(hidden), device=hidden.device)
    return _chunked_divergence_loss(hidden[None], teacher[None], weight, teacher_weight, mask, 0.0)[0]


def liger(hidden, weight, teacher, teacher_weight, labels):
    """Take Liger's fused linear JSD in plain torch, with beta 0."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.5, weight_soft_loss=0.5, beta=0.0, compiled=False)
    return loss(hidden, weight, teacher, teacher_weight, labels)


PEERS = {"naive": naive}
PEERS |= {"TRL, GKD": trl_gkd, "TRL, chunked, no task loss": trl_chunked} if importlib.util.find_spec("trl") else {}
PEERS |= {"Liger, chunked": liger} if importlib.util.find_spec("liger_kernel") else {}
