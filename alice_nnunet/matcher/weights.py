"""The trained embedding network of a dataset."""

from pathlib import Path

from alice_nnunet.checkpoint import load_checkpoint
from alice_nnunet.errors import UserError
from alice_nnunet.matcher.context import ContextNet
from alice_nnunet.matcher.network import AnatomyNet
from alice_nnunet.names import FINAL


def build_network(features: str, network: dict) -> AnatomyNet | ContextNet:
    """The network of a config, not trained. features: sam or context."""
    return AnatomyNet(**network) if features == "sam" else ContextNet(network["channels"])


def load_network(folder: Path) -> tuple[AnatomyNet | ContextNet, dict]:
    """The network that alice-embed left in folder, and its config. Raises UserError where there is none."""
    path = Path(folder) / FINAL
    if not path.is_file():
        raise UserError(f"no trained embedding in {folder}; run alice-embed first")
    checkpoint = load_checkpoint(path)
    network = build_network(
        checkpoint["config"].get("features", "sam"), checkpoint["config"]["network"]
    )
    network.load_state_dict(checkpoint["network_weights"])
    return network.eval(), checkpoint["config"]
