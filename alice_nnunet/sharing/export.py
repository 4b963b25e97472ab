"""What alice-export does: check a checkpoint and write its encoder as a folder to share."""

from pathlib import Path
from typing import Any

import torch

from alice_nnunet.checkpoint import finished_checkpoint, load_pretraining, unfinished
from alice_nnunet.errors import UserError
from alice_nnunet.files import new_folder, require_new
from alice_nnunet.model.encoders.registry import build_encoder
from alice_nnunet.networks.published.encoder import published_encoder
from alice_nnunet.sharing.exported import CARD, save_tensors, write_exported
from alice_nnunet.sharing.model_card import model_card
from alice_nnunet.sharing.nnssl_schema import check_adaptation_plan


def export_encoder(path: Path, out: Path, licence: str | None) -> None:
    """Write the encoder of a checkpoint into a new folder and print what was written.

    Args:
        path: checkpoint of alice-pretrain, or its results folder.
        out: folder that does not exist yet.
        licence: of the weights, as the Hugging Face hub names it; None if none is stated.

    Raises:
        UserError: the checkpoint is not what it describes, or out exists.
    """
    require_new(out)
    if path.is_dir():
        path = finished_checkpoint(path)
    checkpoint = load_pretraining(path)
    check_weights(checkpoint, path)
    plan = adaptation_plan_of(checkpoint)
    check_adaptation_plan(plan, checkpoint["network_weights"], path)

    config = checkpoint["config"]
    weights = checkpoint["network_weights"]
    published, reason = published_encoder(config["encoder"], config["encoder_arguments"], weights)

    with new_folder(out) as folder:
        content = write_exported(folder, checkpoint, plan)
        if published:
            save_tensors(folder / published.file, published.weights)
        card = model_card(content, published, reason, licence)
        (folder / CARD).write_text(card, encoding="utf-8")

    print(
        f"Wrote {out}: {config['encoder']}, {len(weights)} tensors, step {content['step']}, "
        f"sha256 {content['weights_sha256']}"
    )
    print(f"  names of other libraries: {published.file if published else reason}")
    if unfinished(checkpoint):
        print(f"  NOTE: the pretraining is unfinished ({unfinished(checkpoint)})")
    if not licence:
        print("  no licence is stated; state one with -license NAME")
    print(f"Fine-tune from it with alice-plan -d ID -weights {out}")


def check_weights(checkpoint: dict, path: Path) -> None:
    """Raise UserError if the tensors are not those of the encoder that the config describes."""
    config = checkpoint["config"]
    weights = checkpoint["network_weights"]
    with torch.device("meta"):
        expected = build_encoder(config["encoder"], config["encoder_arguments"]).state_dict()

    wrong = sorted(expected.keys() ^ weights.keys())
    if not wrong:
        wrong = [name for name in expected if expected[name].shape != weights[name].shape]

    if wrong:
        raise UserError(
            f"the tensors in {path} are not those of the {config['encoder']} that its config "
            f"describes: {', '.join(wrong)}"
        )


def adaptation_plan_of(checkpoint: dict) -> Any:
    """The checkpoint's adaptation_plan, in early checkpoints without its arch_kwargs.

    Those held the encoder's arguments there, where nnssl expects null for networks not its own.
    """
    plan = checkpoint["adaptation_plan"]
    architecture = plan.get("architecture_plans") if isinstance(plan, dict) else None
    arguments = checkpoint["config"]["encoder_arguments"]

    if not isinstance(architecture, dict) or architecture.get("arch_kwargs") != arguments:
        return plan

    print(
        "The checkpoint's adaptation_plan contains the encoder's arguments as arch_kwargs, "
        "where nnssl expects those of its own networks: exported as null. They are in config.json."
    )
    return {**plan, "architecture_plans": {**architecture, "arch_kwargs": None}}
