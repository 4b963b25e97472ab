"""alice-export: the pretrained encoder as a folder to share, with a model card and published names."""

from pathlib import Path

import torch

from alice_nnunet.checkpoint import load_pretraining
from alice_nnunet.errors import CommandParser, UserError, command
from alice_nnunet.sharing.exported import CARD, save_tensors, write_exported
from alice_nnunet.files import new_folder
from alice_nnunet.model.encoders.registry import build_encoder
from alice_nnunet.sharing.model_card import model_card
from alice_nnunet.networks.published.encoder import published_encoder
from alice_nnunet.sharing.nnssl_schema import check_adaptation_plan


@command("alice-export")
def main(argv: list[str] | None) -> None:
    parser = CommandParser(
        "alice-export",
        description="Write the encoder of a pretraining checkpoint as a folder to share: safetensors, "
        "description, model card, nnssl's adaptation plan, and MONAI's or nnFormer's names. alice-plan -weights takes it.",
    )
    parser.add_argument("checkpoint", metavar="CKPT", help="checkpoint of alice-pretrain")
    parser.add_argument("out", metavar="OUT", type=Path, help="new folder")
    parser.add_argument(
        "-license",
        metavar="NAME",
        help="licence of the weights as the Hugging Face hub names it, such as cc-by-4.0",
    )
    arguments = parser.parse_args(argv)
    if Path(arguments.checkpoint).is_dir():
        raise UserError(
            f"{arguments.checkpoint} is a folder; name a checkpoint of alice-pretrain, such as checkpoint_final.pth in it"
        )
    checkpoint = load_pretraining(arguments.checkpoint)
    check_weights(checkpoint, arguments.checkpoint)
    plan = plan_of(checkpoint)
    check_adaptation_plan(plan, checkpoint["network_weights"], arguments.checkpoint)
    out = arguments.out.resolve()
    with new_folder(out) as folder:
        content, published, reason = write(folder, checkpoint, plan, arguments.license)
    print(
        f"Wrote {out}: {content['config']['encoder']}, {len(checkpoint['network_weights'])} tensors, step {content['step']}, "
        f"sha256 {content['weights_sha256']}"
    )
    print(f"  names of other libraries: {published.file if published else reason}")
    if not arguments.license:
        print("  no licence is stated; -license NAME states one")
    print(f"Fine-tune from it with alice-plan -d ID -weights {out}")


def check_weights(checkpoint: dict, path: str) -> None:
    """Raise UserError where the checkpoint's tensors are not those of the encoder that it describes."""
    config, weights = checkpoint["config"], checkpoint["network_weights"]
    with torch.device("meta"):
        expected = build_encoder(config["encoder"], config["encoder_arguments"]).state_dict()
    wrong = sorted(expected.keys() ^ weights.keys()) or [
        name for name in expected if expected[name].shape != weights[name].shape
    ]
    if wrong:
        raise UserError(
            f"the tensors in {path} are not those of the {config['encoder']} that its config describes: {', '.join(wrong)}"
        )


def plan_of(checkpoint: dict) -> object:
    """The checkpoint's nnssl_adaptation_plan. Early checkpoints have the encoder's arguments where nnssl wants null."""
    plan = checkpoint["nnssl_adaptation_plan"]
    architecture = plan.get("architecture_plans") if isinstance(plan, dict) else None
    if (
        isinstance(architecture, dict)
        and architecture.get("arch_kwargs") == checkpoint["config"]["encoder_arguments"]
    ):
        print(
            "The checkpoint's nnssl_adaptation_plan has the encoder's arguments as arch_kwargs, where nnssl expects those of its own "
            "networks: exported as null. They are in config.json."
        )
        return {**plan, "architecture_plans": {**architecture, "arch_kwargs": None}}
    return plan


def write(folder: Path, checkpoint: dict, plan: dict, licence: str | None) -> tuple:
    """Fill folder. Returns config.json's content, and what published_encoder gives."""
    config = checkpoint["config"]
    content = write_exported(folder, checkpoint, plan)
    published, reason = published_encoder(
        config["encoder"], config["encoder_arguments"], checkpoint["network_weights"]
    )
    if published:
        save_tensors(folder / published.file, published.weights)
    (folder / CARD).write_text(model_card(content, published, reason, licence), encoding="utf-8")
    return content, published, reason
