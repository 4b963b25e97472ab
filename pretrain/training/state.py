"""What a pretraining consists of between two steps, and how it is saved and taken up again."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from alice_nnunet.checkpoint import load_checkpoint, save_checkpoint
from alice_nnunet.model.alice import Alice
from alice_nnunet.model.transformer import Block, compile_blocks, recompute_blocks
from alice_nnunet.model.encoders.registry import build_encoder
from alice_nnunet.pretrain.training.config import PretrainConfig
from alice_nnunet.pretrain.runtime.distributed import parallel
from alice_nnunet.ranks import world


@dataclass
class State:
    """Model, optimizer, the number of steps done, and what was logged. Every random number comes from (seed, step).

    network: what a step calls, the model itself or the model with its gradients averaged over processes. nonfinite: how many
    of the last steps in a row were skipped.
    """

    model: Alice
    network: nn.Module
    optimizer: torch.optim.AdamW
    step: int = 0
    nonfinite: int = 0
    history: dict[str, list[float]] = field(default_factory=dict)


def build_state(config: PretrainConfig, device: torch.device) -> State:
    """A run before its first step. Weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        encoder = build_encoder(config.encoder, config.encoder_arguments)
        model = Alice(encoder, config.encoder_arguments["in_channels"], config.method).to(device)
    if config.checkpoint_blocks:
        for module in (model.encoder, model.decoder):
            recompute_blocks(module)
    if config.compile == "on" or (
        config.compile == "auto" and device.type == "cuda" and config.encoder == "vit"
    ):
        compile_blocks(model, Block)
    return State(model, parallel(model), build_optimizer(model, config))


def build_optimizer(model: Alice, config: PretrainConfig) -> torch.optim.AdamW:
    """AdamW for what is trained, fused into one kernel where torch has that."""
    decayed, others = (
        [],
        [],
    )  # no decay of biases (also those of window attention, which are tables) and norms, as in MAE and Swin
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (decayed if parameter.ndim > 1 and not name.endswith(".bias") else others).append(
                parameter
            )
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    on_cuda = next(model.parameters()).is_cuda
    return torch.optim.AdamW(
        groups, config.lr, config.betas, fused=on_cuda or torch.__version__ >= (2, 4)
    )


def save_state(
    path: Path, state: State, config: PretrainConfig, data: dict, adaptation_plan: dict
) -> None:
    """Write the run to path. network_weights is the online encoder, what fine-tuning takes; model is everything."""
    save_checkpoint(
        path,
        {
            "network_weights": state.model.encoder.state_dict(),
            "model": state.model.state_dict(),  # online and target encoder, decoder, phi, psi, both CASA, predictors
            "optimizer": state.optimizer.state_dict(),
            "step": state.step,
            "nonfinite": state.nonfinite,
            "random_states": {
                "seed": config.seed,
                "step": state.step,
            },  # each step draws from generators seeded by these
            "processes": world(),  # each had config.batch_size pairs
            "history": state.history,
            "config": config.as_dict(),
            "data": data,
            "nnssl_adaptation_plan": adaptation_plan,
        },
    )


def load_state(path: Path, config: PretrainConfig, device: torch.device) -> State:
    """The run saved in path. Raises UserError if the file cannot be read."""
    saved, state = load_checkpoint(path, device), build_state(config, device)
    state.model.load_state_dict(saved["model"])
    for group in saved["optimizer"]["param_groups"]:
        group["fused"] = state.optimizer.defaults[
            "fused"
        ]  # that of this machine, wherever the run was before
    state.optimizer.load_state_dict(saved["optimizer"])
    state.step, state.history, state.nonfinite = (
        saved["step"],
        saved["history"],
        saved.get("nonfinite", 0),
    )
    return state
