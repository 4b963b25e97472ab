"""The trained embedding network of a dataset."""

from pathlib import Path

from alice_nnunet.checkpoint import load_checkpoint
from alice_nnunet.errors import UserError
from alice_nnunet.matcher.context import ContextNet
from alice_nnunet.matcher.network import SamNet
from alice_nnunet.names import FINAL


def build_network(features: str, network: dict) -> SamNet | ContextNet:
    """A network before its training.

    Args:
        features: "sam" or "context".
        network: arguments of SamNet; ContextNet takes channels alone.
    """
    return SamNet(**network) if features == "sam" else ContextNet(network["channels"])


def load_network(folder: Path) -> tuple[SamNet | ContextNet, dict]:
    """The network that alice-embed left in folder, and its config.

    Raises:
        UserError: there is none, or its file cannot be read.
    """
    path = Path(folder) / FINAL
    if not path.is_file():
        raise UserError(f"{folder} has no trained embedding network: run alice-embed first")

    checkpoint = load_checkpoint(path)
    config = checkpoint["config"]
    network = build_network(config.get("features", "sam"), config["network"])
    network.load_state_dict(checkpoint["network_weights"])
    return network.eval(), config
