"""What can be done to all transformer blocks of a model at once: forget and recompute what lies inside, or compile them."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Recomputable(nn.Module):
    """A block. Where recompute is set it keeps only its inputs for backward, and computes what lies between again there."""

    recompute = False

    def __call__(self, *inputs):
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(
                super().__call__, *inputs, use_reentrant=False, preserve_rng_state=False
            )  # no block draws numbers
        return super().__call__(*inputs)


def recompute_blocks(model: nn.Module) -> None:
    """Let every block in model recompute."""
    for module in model.modules():
        if isinstance(module, Recomputable):
            module.recompute = True


def compile_blocks(model: nn.Module, kind: type[nn.Module], backend: str = "inductor") -> None:
    """torch.compile every block of this kind in model, in place: names of weights stay. Blocks of one shape share the code."""
    for module in model.modules():
        if isinstance(module, kind):
            module.compile(backend=backend, dynamic=False)
