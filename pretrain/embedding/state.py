"""What a training of the embedding consists of between two steps, and how it is saved."""

from dataclasses import dataclass
from pathlib import Path

import torch

from alice_nnunet.checkpoint import load_checkpoint, save_checkpoint
from alice_nnunet.matcher.context import ContextNet
from alice_nnunet.matcher.network import SamNet
from alice_nnunet.matcher.weights import build_network
from alice_nnunet.pretrain.embedding.config import EmbedConfig
from alice_nnunet.pretrain.runtime.steps import TrainingState


@dataclass(kw_only=True)
class State(TrainingState):
    """The state of a training of the embedding network."""

    network: SamNet | ContextNet


def build_state(config: EmbedConfig, device: torch.device) -> State:
    """A training before its first step. Weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = build_network(config.features, config.network).to(device)

    optimizer = torch.optim.AdamW(network.parameters(), config.lr, weight_decay=config.weight_decay)
    return State(network=network, optimizer=optimizer, device=device)


def save_state(path: Path, state: State, config: EmbedConfig, data: dict) -> None:
    """Write the training to path. data: description of the data."""
    checkpoint = {
        "network_weights": state.network.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "step": state.step,
        "nonfinite": state.nonfinite,
        "random_states": {"seed": config.seed, "step": state.step},
        "history": state.history,
        "config": config.as_dict(),
        "data": data,
    }

    save_checkpoint(path, checkpoint)


def load_state(path: Path, config: EmbedConfig, device: torch.device) -> State:
    """Build the training saved in path. Raises UserError if the file cannot be read."""
    saved = load_checkpoint(path, device)
    state = build_state(config, device)
    state.network.load_state_dict(saved["network_weights"])
    state.optimizer.load_state_dict(saved["optimizer"])

    state.step = saved["step"]
    state.nonfinite = saved.get("nonfinite", 0)  # not in the first versions' checkpoints
    state.history = saved["history"]
    return state
