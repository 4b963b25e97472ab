"""What alice-plan does: choose, check and write the plans."""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from alice_nnunet.datasets.raw_dataset import dataset_name
from alice_nnunet.environment import nnunet_folder
from alice_nnunet.errors import UserError
from alice_nnunet.files import locked, require_writable, write_json_atomically
from alice_nnunet.finetuning.block import make_block, with_positions
from alice_nnunet.finetuning.channels import match_channels
from alice_nnunet.finetuning.compatibility import (
    check_channels,
    check_compatible,
    check_pretraining,
    spacing_differs,
)
from alice_nnunet.finetuning.nnunet_plans import configuration_of
from alice_nnunet.finetuning.pretrained import load_pretrained
from alice_nnunet.finetuning.recipes import RECIPES, changed_recipe
from alice_nnunet.model.encoders.registry import unit_of
from alice_nnunet.names import CONFIGURATION
from alice_nnunet.planning.checked_dataset import check_intensities
from alice_nnunet.planning.choices import choose
from alice_nnunet.planning.labeled_dataset import open_labeled_dataset
from alice_nnunet.planning.plans import matched_plans, matched_statistics
from alice_nnunet.planning.report import print_report
from alice_nnunet.planning.request import PlanRequest
from alice_nnunet.planning.sizes import check_patch
from alice_nnunet.planning.step_memory import training_memory

# Entries of a configuration that preprocessed cases depend on
OF_THE_DATA = ("spacing", "normalization_schemes", "use_mask_for_norm")


@contextmanager
def planning_in(dataset: str) -> Iterator[None]:
    """Keep other processes from planning a dataset, by nnU-Net's fingerprint or ours."""
    name = dataset_name(dataset)
    folder = nnunet_folder("nnUNet_preprocessed") / name

    if not (nnunet_folder("nnUNet_raw") / name).is_dir():
        yield  # whoever opens the dataset says that it is missing
        return

    require_writable(folder, "nnUNet_preprocessed")
    with locked(folder / "alice-plan.lock"):
        yield


def write_plans(request: PlanRequest) -> None:
    """Write plans for fine-tuning into nnUNet_preprocessed, and print what was chosen and why.

    Raises:
        UserError: the request, the weights or the dataset cannot be planned; nothing was written.
    """
    encoder = load_pretrained(request.weights)
    if encoder.unfinished:
        print(f"NOTE: {encoder.path} is of an unfinished pretraining ({encoder.unfinished})")
    check_pretraining(encoder)
    if encoder.name not in RECIPES:
        raise UserError(
            f"{encoder.path} holds the encoder {encoder.name!r}; recipes and networks exist for "
            f"{', '.join(RECIPES)}"
        )
    recipe = changed_recipe(
        RECIPES[encoder.name].recipe,
        request.epochs,
        request.iterations,
        request.learning_rate,
        request.settings,
    )

    if request.patch:
        check_patch(request.patch, unit_of(encoder.name, encoder.arguments))

    with planning_in(request.dataset):
        name = dataset_name(request.dataset)
        target = nnunet_folder("nnUNet_preprocessed") / name / f"{request.name}.json"
        check_target(target, encoder.sha256)
        dataset = open_labeled_dataset(request.dataset, request.processes, request.decisions)

        schemes = configuration_of(dataset.plans, CONFIGURATION)["normalization_schemes"]
        check_channels(encoder, dataset.plans, schemes)
        found = dataset.plans["foreground_intensity_properties_per_channel"]
        for channel in match_channels(encoder, schemes):
            if channel.window is not None:
                index = channel.index
                check_intensities(
                    dataset.name, found[str(index)], index, channel.window, request.decisions
                )
        statistics = matched_statistics(encoder, schemes, found)
        block = make_block(encoder, schemes, statistics, recipe, flip_axes=[])

        memory = partial(training_memory, block, len(schemes), dataset.outputs)
        choices = choose(request, encoder, dataset, memory)
        spacing = choices.spacing.value
        if spacing_differs(spacing, encoder.data["spacing"]):
            block = dataclasses.replace(block, accepted_spacing=tuple(spacing))
        block = with_positions(block, choices.patch.value, spacing)

        plans = matched_plans(dataset, request.name, block, statistics, choices)
        check_compatible(encoder, plans, plans["configurations"][CONFIGURATION])
        check_cases(target, plans)

        write_json_atomically(target, plans)
        print_report(plans, block, dataset, choices, target)


def check_target(target: Path, sha256: str) -> None:
    """Raise UserError if target holds plans that were not made from the weights with this hash."""
    if not target.is_file():
        return

    try:
        made_from = json.loads(target.read_text()).get("alice", {}).get("weights_sha256")
    except ValueError:
        made_from = None

    if made_from != sha256:
        source = "other weights" if made_from else "no weights of alice-pretrain"
        raise UserError(
            f"{target} exists and was made from {source}; it was not touched. Choose another name "
            f"with -n, or remove that file"
        )


def check_cases(target: Path, plans: dict) -> None:
    """Raise UserError if cases are preprocessed by the old plans in target and do not fit new ones.

    Args:
        target: file of the plans.
        plans: the new ones.
    """
    folder = target.parent / plans["configurations"][CONFIGURATION]["data_identifier"]
    if not target.is_file() or not any(folder.glob("*.pkl")):
        return

    old = json.loads(target.read_text())["configurations"][CONFIGURATION]
    new = plans["configurations"][CONFIGURATION]
    different = [
        f"{name} {old[name]} there, {new[name]} now"
        for name in OF_THE_DATA
        if old[name] != new[name]
    ]
    if different:
        raise UserError(
            f"{folder} holds cases that were preprocessed otherwise ({'; '.join(different)}); "
            f"nothing was changed. Choose another name with -n to keep both, or remove that folder"
        )
