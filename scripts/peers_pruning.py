"""Gradual magnitude pruning as the tools of torch have it, for comparison: each a callback for the stock Trainer."""

import torch
from torch import nn
from torch.nn.utils import prune
from transformers import TrainerCallback

EVERY = 10


def encoder_linears(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the linear layers that our Trainer prunes by default, with their names."""
    return [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "classifier"]


class TorchPrune(TrainerCallback):
    """torch.nn.utils.prune: `weight_orig` times `weight_mask` in each forward pass, a new mask every 10 steps."""

    def __init__(self, model: nn.Module, steps: int) -> None:
        self.steps = steps
        for _, module in encoder_linears(model):
            prune.identity(module, "weight")

    def on_step_end(self, args, state, control, model=None, **kwargs):
        """Make the mask of the cubic schedule, uniform over layers."""
        if state.global_step % EVERY:
            return
        sparsity = 0.8 * (1 - (1 - state.global_step / self.steps) ** 3)
        with torch.no_grad():
            for _, module in encoder_linears(model):
                magnitude = module.weight_orig.abs()
                cut = magnitude.flatten().kthvalue(max(1, int(sparsity * magnitude.numel()))).values
                module.weight_mask.copy_(magnitude > cut)


class TorchAoSparsifier(TrainerCallback):
    """torch.ao.pruning's WeightNormSparsifier, a parametrization in each forward pass, stepped every 10 steps."""

    def __init__(self, model: nn.Module, steps: int) -> None:
        from torch.ao.pruning import CubicSL, WeightNormSparsifier

        self.sparsifier = WeightNormSparsifier(sparsity_level=0.8, sparse_block_shape=(1, 1), zeros_per_block=1)
        self.sparsifier.prepare(model, [{"tensor_fqn": f"{name}.weight"} for name, _ in encoder_linears(model)])
        self.schedule = CubicSL(self.sparsifier, init_sl=0.0, init_t=0, delta_t=1, total_t=max(1, steps // EVERY))

    def on_step_end(self, args, state, control, **kwargs):
        """Make the mask of the cubic schedule, uniform over layers."""
        if state.global_step % EVERY == 0:
            self.sparsifier.step()
            self.schedule.step()
