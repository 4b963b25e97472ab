"""Whether plans show the network what its encoder was pretrained on: orientation, axes, spacing, intensities."""

import os
import pickle
from pathlib import Path

import numpy as np
from nibabel.orientations import io_orientation, ornt2axcodes

from alice_nnunet.errors import UserError

SPACING_TOLERANCE = 0.05  # of the pretraining's, along each axis
SUPPORTED = {
    "orientation": "RAS",
    "axis_order": "zyx",
    "reader": "NibabelIOWithReorient",
    "transpose_forward": [0, 1, 2],
}


def check_pretraining(data: dict, path: str) -> None:
    """Raise UserError if the data of a pretraining checkpoint are described in a way that nnU-Net's plans cannot match."""
    wrong = [
        f"{key} {data.get(key)!r} instead of {wanted!r}"
        for key, wanted in SUPPORTED.items()
        if data.get(key) != wanted
    ]
    if wrong:
        raise UserError(
            f"{path} was pretrained with {', '.join(wrong)}, which no plans can reproduce here; "
            f"pretrain again with alice-pretrain"
        )


def pretraining_channel(data: dict, index: int, channels: int, path: str) -> dict:
    """The pretraining's channel that channel index of the fine-tuning stands for: its own, or the only one.

    data: of the checkpoint. channels: of the fine-tuning. Raises UserError for N channels that fit neither rule.
    """
    pretrained = data["channels"]
    if len(pretrained) not in (1, channels):
        raise UserError(
            f"{path} was pretrained on {len(pretrained)} channels and this dataset has {channels}; "
            f"only weights of 1 channel, or of {channels}, can start it"
        )
    return pretrained[index if len(pretrained) == channels else 0]


def other_channels(data: dict, schemes: list[str], path: str) -> list[int]:
    """The channels that nnU-Net normalises otherwise than the pretraining's which they stand for.

    data: of the checkpoint in path. schemes: of all channels, nnU-Net's class names.
    """
    return [
        index
        for index, scheme in enumerate(schemes)
        if scheme != pretraining_channel(data, index, len(schemes), path)["scheme"]
    ]


def check_channels(data: dict, plans: dict, schemes: list[str], path: str) -> list[str]:
    """Compare the kinds of a pretraining's images, CT or others, with those of a dataset.

    Some of several channels may be of another kind, a PET beside a CT, where plans say that this was accepted, or with
    alice_accept_channels=1 in the environment. Returns lines for the log; raises UserError that says what to do.
    """
    others = other_channels(data, schemes, path)
    if not others:
        return []
    index, wanted = others[0], pretraining_channel(data, others[0], len(schemes), path)["scheme"]
    text = (
        f"channel {index} of {plans['dataset_name']} is normalised by {schemes[index]} and {path} was pretrained with {wanted}; "
        f"if it is a CT, name it CT in channel_names of dataset.json and run nnUNetv2_plan_experiment -d {dataset_number(plans)}, else "
    )
    if len(others) == len(schemes):
        raise UserError(f"{text}use weights pretrained on such images")
    accepted = plans.get("alice", {}).get("other_channels") == others
    if not accepted and os.environ.get("alice_accept_channels") != "1":
        raise UserError(
            f"{text}say that it is none by alice_accept_channels=1 in the environment: nnU-Net's normalisation is kept for it, "
            f"and the encoder's first layer starts with zeros for it"
        )
    return [
        f"Channels that the pretraining did not see: {', '.join(map(str, others))}; their weights in the first layer start as zeros"
    ]


def axes_of(properties: dict) -> np.ndarray:
    """Orientation of a preprocessed case's array, from what nnU-Net's reader stored in its .pkl.

    Returns (3, 2) as nibabel.io_orientation: for array axes x, y, z (the reverse of z, y, x) the closest axis of
    R, A, S and 1 or -1 for along or against it. Raises UserError for a reader that stores no direction.
    """
    if stored := properties.get("nibabel_stuff"):
        return io_orientation(stored.get("reoriented_affine", stored["original_affine"]))
    if "sitk_stuff" in properties and len(properties["sitk_stuff"]["direction"]) == 9:
        direction = np.reshape(properties["sitk_stuff"]["direction"], (3, 3))
        return io_orientation(
            np.block([[np.diag([-1, -1, 1]) @ direction, np.zeros((3, 1))], [0, 0, 0, 1]])
        )
    raise UserError("nnU-Net's reader stored no direction with this dataset's cases")


def flips_of_cases(folder: Path, remedy: str) -> list[int]:
    """Axes (0, 1, 2 for z, y, x) along which every case of a folder of nnU-Net's preprocessed data runs against RAS.

    Raises UserError if there are no cases, and, ending in remedy, if they are not all alike or their axes are permuted.
    """
    files = sorted(Path(folder).glob("*.pkl"))
    if not files:
        raise UserError(f"no preprocessed cases in {folder}; run nnUNetv2_preprocess first")
    seen = {}
    for file in files:
        axes = axes_of(pickle.loads(file.read_bytes()))
        seen.setdefault("".join(ornt2axcodes(axes)), (file.stem, axes))
    described = ", ".join(f"{codes} ({case})" for codes, (case, _) in seen.items())
    if len(seen) > 1:
        raise UserError(
            f"the cases are stored in different orientations, {described}, and the reader of these plans "
            f"keeps them; the pretraining saw RAS. {remedy}"
        )
    ((_, axes),) = seen.values()
    if axes[:, 0].tolist() != [0, 1, 2]:
        raise UserError(
            f"the cases are stored as {described}, with axes in another order than the pretraining's RAS. "
            f"{remedy}"
        )
    return [2 - axis for axis in (2, 1, 0) if axes[axis, 1] < 0]


def dataset_number(plans: dict) -> int:
    """The ID in DatasetXXX_NAME."""
    return int(plans["dataset_name"][7:10])


def replan(plans: dict, path: str) -> str:
    """The sentence that tells how to get plans which match the checkpoint in path."""
    dataset = dataset_number(plans)
    return (
        f"Replan: alice-plan -d {dataset} -weights {path}, then nnUNetv2_preprocess -d {dataset} "
        f"-plans_name AlicePlans -c 3d_fullres, and train with -p AlicePlans"
    )


def spacing_differs(spacing: list[float], pretrained: list[float]) -> bool:
    """Whether one of the axes is off by more than the tolerance."""
    return any(abs(s / p - 1) > SPACING_TOLERANCE for s, p in zip(spacing, pretrained))


def check_compatible(data: dict, plans: dict, configuration: dict, path: str) -> list[str]:
    """Compare what a pretraining saw with what plans will show.

    data: of the checkpoint in path. plans: nnU-Net's, the whole; configuration: one of them, inheritance resolved.
    The window of a CT channel may differ: the input map sees to it. The orientation of a reader that keeps
    the files' own is flips_of_cases' business; that of channels of another kind check_channels'. Another spacing passes
    only where the plans say that it was asked for (alice-plan -spacing), or with alice_accept_spacing=1 in the environment.
    Returns lines for the log; raises UserError that shows both sides and how to replan.
    """
    check_pretraining(data, path)
    lines, wrong = check_channels(data, plans, configuration["normalization_schemes"], path), []
    if list(plans["transpose_forward"]) != data["transpose_forward"]:
        wrong.append(
            f"transpose_forward {plans['transpose_forward']} and {data['transpose_forward']}"
        )
    spacing, pretrained = configuration["spacing"], data["spacing"]
    if spacing_differs(spacing, pretrained):
        pair = f"spacing (z, y, x) {millimetres(spacing)} and {millimetres(pretrained)}"
        if plans.get("alice", {}).get("accepted_spacing") == list(spacing):
            lines.append(f"{pair}: plans and pretraining differ, accepted by alice-plan -spacing")
        elif os.environ.get("alice_accept_spacing") == "1":
            lines.append(
                f"{pair}: plans and pretraining differ, accepted by alice_accept_spacing=1"
            )
        else:
            wrong.append(
                f"{pair} (alice-plan -spacing, or for stock plans alice_accept_spacing=1 in the environment, "
                f"goes on with this one deliberately)"
            )
    if wrong:
        raise UserError(
            f"{plans['plans_name']} and the pretraining in {path} differ: {'; '.join(wrong)}. "
            f"{replan(plans, path)}"
        )
    return lines


def millimetres(spacing: list[float]) -> str:
    """1.5 x 0.76 x 0.76 mm."""
    return " x ".join(f"{s:.3g}" for s in spacing) + " mm"
