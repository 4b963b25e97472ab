"""Whether plans show an encoder what it knows: orientation, axes, spacing, kinds of images."""

import os
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from nibabel.orientations import io_orientation, ornt2axcodes

from alice_nnunet.errors import UserError
from alice_nnunet.finetuning.channels import match_channels
from alice_nnunet.finetuning.nnunet_plans import dataset_number, how_to_replan
from alice_nnunet.finetuning.pretrained import EncoderOrigin
from alice_nnunet.text import millimetres

ACCEPT_SPACING = "alice_accept_spacing"  # environment variables, 1 for yes
ACCEPT_CHANNELS = "alice_accept_channels"

SPACING_TOLERANCE = 0.05  # share of the pretraining's spacing, along each axis
SUPPORTED = {
    "orientation": "RAS",
    "axis_order": "zyx",
    "reader": "NibabelIOWithReorient",
    "transpose_forward": [0, 1, 2],
}


def check_compatible(origin: EncoderOrigin, plans: dict, configuration: dict) -> list[str]:
    """Compare what an encoder was pretrained on with what plans will show it.

    Not compared: the window of a CT channel, which the input map adapts, and the orientation of
    files whose reader keeps it, see flips_of_cases. Another spacing is accepted only if the plans
    say so (alice-plan -spacing) or with alice_accept_spacing=1 in the environment.

    Args:
        origin: of the encoder.
        plans: nnU-Net's, complete.
        configuration: one of the plans, with what it inherits.

    Returns:
        Lines for the log.

    Raises:
        UserError: shows both sides and how to replan.
    """
    check_pretraining(origin)
    lines = check_channels(origin, plans, configuration["normalization_schemes"])
    wrong = []

    transpose = list(plans["transpose_forward"])
    if transpose != origin.data["transpose_forward"]:
        wrong.append(f"transpose_forward {transpose} and {origin.data['transpose_forward']}")

    spacing = configuration["spacing"]
    pretrained = origin.data["spacing"]
    if spacing_differs(spacing, pretrained):
        pair = f"spacing (z, y, x) {millimetres(spacing)} and {millimetres(pretrained)}"

        if plans.get("alice", {}).get("accepted_spacing") == list(spacing):
            lines.append(f"{pair}: plans and pretraining differ, accepted by alice-plan -spacing")
        elif os.environ.get(ACCEPT_SPACING) == "1":
            lines.append(f"{pair}: plans and pretraining differ, accepted by {ACCEPT_SPACING}=1")
        else:
            wrong.append(
                f"{pair} (to use this spacing deliberately: alice-plan -spacing, or for stock "
                f"plans {ACCEPT_SPACING}=1 in the environment)"
            )

    if wrong:
        raise UserError(
            f"{plans['plans_name']} and the pretraining in {origin.path} differ: "
            f"{'; '.join(wrong)}. {how_to_replan(plans, origin.path)}"
        )
    return lines


def check_pretraining(origin: EncoderOrigin) -> None:
    """Raise UserError if the images of a pretraining were such that no plans can match them."""
    wrong = [
        f"{key} {origin.data.get(key)!r} instead of {wanted!r}"
        for key, wanted in SUPPORTED.items()
        if origin.data.get(key) != wanted
    ]
    if wrong:
        raise UserError(
            f"{origin.path} was pretrained with {', '.join(wrong)}, which no plans can reproduce "
            f"here; pretrain again with alice-pretrain"
        )


def check_channels(origin: EncoderOrigin, plans: dict, schemes: list[str]) -> list[str]:
    """Compare the kinds of images of a pretraining, CT or others, with those of a dataset.

    Some of several channels may be of another kind, such as a PET beside a CT, if the plans say
    that this was accepted, or with alice_accept_channels=1 in the environment.

    Args:
        origin: of the encoder.
        plans: nnU-Net's, complete.
        schemes: nnU-Net's normalization of each channel.

    Returns:
        Lines for the log.

    Raises:
        UserError: says what to do.
    """
    unseen = [channel for channel in match_channels(origin, schemes) if not channel.seen]
    if not unseen:
        return []

    first = unseen[0]
    number = dataset_number(plans["dataset_name"])
    problem = (
        f"channel {first.index} of {plans['dataset_name']} is normalised by {first.scheme} and "
        f"{origin.path} was pretrained with {first.pretrained_scheme}; if it is a CT, name it CT "
        f"in channel_names of dataset.json and run nnUNetv2_plan_experiment -d {number}"
    )
    if len(unseen) == len(schemes):
        raise UserError(f"{problem}, else use weights pretrained on such images")

    indices = [channel.index for channel in unseen]
    accepted = plans.get("alice", {}).get("other_channels") == indices
    if not accepted and os.environ.get(ACCEPT_CHANNELS) != "1":
        raise UserError(
            f"{problem}, else accept it with {ACCEPT_CHANNELS}=1 in the environment: nnU-Net's "
            f"normalisation is kept for it, and the encoder's first layer starts with zeros for it"
        )
    return [
        f"Channels that the pretraining did not see: {', '.join(map(str, indices))}; "
        f"their weights in the first layer start as zeros"
    ]


def spacing_differs(spacing: Sequence[float], pretrained: Sequence[float]) -> bool:
    """Whether two spacings in mm differ by more than the tolerance along an axis."""
    return any(abs(s / p - 1) > SPACING_TOLERANCE for s, p in zip(spacing, pretrained))


def flips_of_cases(folder: Path, remedy: str) -> list[int]:
    """The axes along which all preprocessed cases run against the pretraining's RAS.

    Args:
        folder: nnU-Net's preprocessed cases.
        remedy: last sentence of the message where their orientation cannot be used.

    Returns:
        Some of 0, 1, 2 for z, y, x.

    Raises:
        UserError: there are no cases, their orientations differ, or their axes are permuted.
    """
    files = sorted(Path(folder).glob("*.pkl"))
    if not files:
        raise UserError(f"no preprocessed cases in {folder}; run nnUNetv2_preprocess first")

    # orientation as in LPS -> first case that has it, and its axes
    found: dict[str, tuple[str, np.ndarray]] = {}
    for file in files:
        axes = axes_of(pickle.loads(file.read_bytes()))
        found.setdefault("".join(ornt2axcodes(axes)), (file.stem, axes))

    described = ", ".join(f"{codes} ({case})" for codes, (case, _) in found.items())
    if len(found) > 1:
        raise UserError(
            f"the cases are stored in different orientations, {described}, and the reader of these "
            f"plans keeps them; the pretraining saw RAS. {remedy}"
        )

    ((_, axes),) = found.values()
    if axes[:, 0].tolist() != [0, 1, 2]:
        raise UserError(
            f"the cases are stored as {described}, with axes in another order than the "
            f"pretraining's RAS. {remedy}"
        )
    return [2 - axis for axis in (2, 1, 0) if axes[axis, 1] < 0]


def axes_of(properties: dict) -> np.ndarray:
    """Orientation of a preprocessed case's array, from what nnU-Net's reader stored in its .pkl.

    Returns:
        (3, 2) as nibabel.io_orientation: for the array axes x, y, z (the reverse of z, y, x) the
        closest axis of R, A, S, and 1 or -1 for along or against it.

    Raises:
        UserError: the reader stored no direction.
    """
    stored = properties.get("nibabel_stuff")
    if stored:
        return io_orientation(stored.get("reoriented_affine", stored["original_affine"]))

    direction = properties.get("sitk_stuff", {}).get("direction", ())
    if len(direction) == 9:
        # SimpleITK's world axes are L, P, S
        rotation = np.diag([-1, -1, 1]) @ np.reshape(direction, (3, 3))
        affine = np.eye(4)
        affine[:3, :3] = rotation
        return io_orientation(affine)

    raise UserError("nnU-Net's reader stored no direction with this dataset's cases")
