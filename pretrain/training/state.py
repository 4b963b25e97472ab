"""What a pretraining consists of between two steps, and how it is saved and taken up again."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from alice_nnunet.checkpoint import load_checkpoint, save_checkpoint
from alice_nnunet.model.encoders.registry import build_encoder
from alice_nnunet.model.pretraining.method import PretrainingMethod
from alice_nnunet.model.pretraining.registry import build_method
from alice_nnunet.model.transformer import Block, compile_blocks, recompute_blocks
from alice_nnunet.pretrain.runtime.distributed import parallel
from alice_nnunet.pretrain.runtime.steps import TrainingState
from alice_nnunet.pretrain.training.config import PretrainConfig
from alice_nnunet.ranks import world


@dataclass(kw_only=True)
class State(TrainingState):
    """The state of a pretraining.

    Attributes:
        model: The method: encoder, what it is trained with, and what follows it.
        network: What a step calls: the model, its gradients averaged over several processes.
    """

    model: PretrainingMethod
    network: nn.Module


def build_state(config: PretrainConfig, device: torch.device) -> State:
    """A run before its first step. Weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        encoder = build_encoder(config.encoder, config.encoder_arguments)
        in_channels = config.encoder_arguments["in_channels"]
        model = build_method(config.method_name, encoder, in_channels, config.method).to(device)

    if config.checkpoint_blocks:
        for network in model.recomputed():
            recompute_blocks(network)
        model.separately = True  # less memory, too

    compiles = device.type == "cuda" and config.encoder == "vit"  # where it pays
    if config.compile == "on" or (config.compile == "auto" and compiles):
        compile_blocks(model, Block)

    return State(
        model=model,
        network=parallel(model, device),
        optimizer=build_optimizer(model, config),
        device=device,
    )


def build_optimizer(model: PretrainingMethod, config: PretrainConfig) -> torch.optim.AdamW:
    """AdamW for what is trained, fused into one kernel.

    As in MAE and Swin, biases (window attention's tables too), norms, positions and mask tokens do
    not decay. The order of the parameters is part of a checkpoint.
    """
    decayed: list[Tensor] = []
    others: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim > 1 and not name.endswith(".bias")
        if name.endswith(model.not_decayed) and not config.decay_positions:
            decays = False
        (decayed if decays else others).append(parameter)

    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, config.lr, config.betas, fused=True)


def save_state(
    path: Path, state: State, config: PretrainConfig, data: dict, adaptation_plan: dict
) -> None:
    """Write the run to path.

    Args:
        path: File of the checkpoint.
        state: The run. Each step draws from generators seeded by (seed, step), so these two are
            all that must be kept of random numbers.
        config: Its settings. Each of the processes had config.batch_size pairs.
        data: Description of the data.
        adaptation_plan: What fine-tuning by other tools needs, in nnssl's schema.
    """
    checkpoint = {
        "network_weights": state.model.encoder.state_dict(),  # what fine-tuning takes
        "model": state.model.state_dict(),  # everything: targets, decoder, heads
        "optimizer": state.optimizer.state_dict(),
        "step": state.step,
        "nonfinite": state.nonfinite,
        "random_states": {"seed": config.seed, "step": state.step},
        "processes": world(),
        "history": state.history,
        "config": config.as_dict(),
        "data": data,
        # Not named nnssl_adaptation_plan: by this name nnU-Net's commands for checkpoints of nnssl
        # take any file, and where none of its tensors fits their network, they go on without.
        "adaptation_plan": adaptation_plan,
    }

    save_checkpoint(path, checkpoint)


def load_state(path: Path, config: PretrainConfig, device: torch.device) -> State:
    """Build the run saved in path. Raises UserError if the file cannot be read."""
    saved = load_checkpoint(path, device)
    state = build_state(config, device)
    state.model.load_state_dict(saved["model"])

    # Runs that began with an older torch on a CPU have an optimizer that was not fused.
    for group in saved["optimizer"]["param_groups"]:
        group["fused"] = True
    state.optimizer.load_state_dict(saved["optimizer"])

    state.step = saved["step"]
    state.nonfinite = saved.get("nonfinite", 0)  # not in the first versions' checkpoints
    state.history = saved["history"]
    return state
