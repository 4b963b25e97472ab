"""The trained embedding network of a dataset."""

from pathlib import Path

from alice_nnunet.checkpoint import load_checkpoint
from alice_nnunet.errors import UserError
from alice_nnunet.matcher.network import AnatomyNet

FINAL = "checkpoint_final.pth"


def load_network(folder: Path) -> tuple[AnatomyNet, dict]:
    """The network that alice-embed left in folder, and its config. Raises UserError where there is none."""
    path = Path(folder) / FINAL
    if not path.is_file():
        raise UserError(f"no trained embedding in {folder}; run alice-embed first")
    checkpoint = load_checkpoint(path)
    network = AnatomyNet(**checkpoint["config"]["network"])
    network.load_state_dict(checkpoint["network_weights"])
    return network.eval(), checkpoint["config"]
