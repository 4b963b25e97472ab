"""A pretrained encoder by itself, with the preparation that it needs."""

from pathlib import Path

from alice_nnunet.checks.findings import NO_DECISIONS, Decisions
from alice_nnunet.errors import UserError
from alice_nnunet.features.scans import Preparation
from alice_nnunet.finetuning.compatibility import check_pretraining
from alice_nnunet.finetuning.network import misfits, with_all_offsets
from alice_nnunet.finetuning.pretrained import EncoderOrigin, PretrainedEncoder, load_pretrained
from alice_nnunet.geometry import triple
from alice_nnunet.model.encoders.base import Encoder
from alice_nnunet.model.encoders.nnformer import NnFormer
from alice_nnunet.model.encoders.registry import build_encoder, unit_of
from alice_nnunet.model.encoders.swin import Swin

SCHEMES = ("CTNormalization", "ZScoreNormalization")  # that can be repeated for any scan


def load_encoder(
    given: str | Path, decisions: Decisions = NO_DECISIONS
) -> tuple[Encoder, Preparation]:
    """Load a pretrained encoder and the preprocessing that it needs.

        encoder, prepare = load_encoder("owner/name@v1")
        features = encoder.features(prepare("scan.nii.gz"))

    `features` gives volumes (1, channels, d, h, w), finest first; calling the encoder gives the
    tokens of the last stage, (1, N, E). An encoder has seen crops of `prepare.crop_size` voxels
    alone; `features` takes a scan as a whole, however large it is.

    Args:
        given: checkpoint or results folder of alice-pretrain, folder of alice-export, or Hugging
            Face repository (owner/name or owner/name@revision).
        decisions: of the user, where a scan's file leaves a choice.

    Returns:
        The encoder on the CPU, in evaluation mode, and its preparation.

    Raises:
        UserError: the weights are missing, cannot be read, do not fit their own description, or
            were pretrained on images that cannot be reproduced here.
    """
    pretrained = load_pretrained(given)
    preparation = preparation_of(pretrained, decisions)
    return build_pretrained(pretrained).eval(), preparation


def build_pretrained(pretrained: PretrainedEncoder) -> Encoder:
    """The encoder with its weights: every tensor, or UserError with those that do not fit."""
    encoder = build_encoder(pretrained.name, pretrained.arguments)
    weights = pretrained.weights
    if isinstance(encoder, (Swin, NnFormer)):
        weights = with_all_offsets(weights, encoder)

    wrong = misfits(weights, encoder.state_dict())
    if wrong:
        raise UserError(
            f"the weights in {pretrained.path} are not those of the {pretrained.name} that they "
            f"describe, nothing was loaded: {'; '.join(wrong)}. Export or copy them again"
        )
    encoder.load_state_dict(weights)
    return encoder


def preparation_of(origin: EncoderOrigin, decisions: Decisions = NO_DECISIONS) -> Preparation:
    """What the pretraining did to its scans. Raises UserError if that cannot be repeated here."""
    check_pretraining(origin)

    channels = origin.data["channels"]
    unknown = [channel["scheme"] for channel in channels if channel["scheme"] not in SCHEMES]
    if unknown:
        raise UserError(
            f"{origin.path} was pretrained on channels normalised by {', '.join(unknown)}; "
            f"features of a scan can be computed for {' and '.join(SCHEMES)}"
        )

    return Preparation(
        spacing=triple(float(s) for s in origin.data["spacing"]),
        windows=tuple(
            None if channel["window"] is None else (channel["window"][0], channel["window"][1])
            for channel in channels
        ),
        crop_size=triple(origin.arguments["crop_size"]),
        unit=unit_of(origin.name, origin.arguments),
        decisions=decisions,
    )
