"""Before a training: which alice block it follows, and whether it may write its results."""

import json
import os
import time
from pathlib import Path

from alice_nnunet.errors import UserError
from alice_nnunet.finetuning.block import (
    AliceBlock,
    block_from_entries,
    block_of_plans,
    input_values,
    make_block,
    with_positions,
)
from alice_nnunet.finetuning.compatibility import check_compatible, flips_of_cases
from alice_nnunet.finetuning.nnunet_plans import dataset_number, how_to_replan
from alice_nnunet.finetuning.pretrained import PretrainedEncoder, differences, load_pretrained
from alice_nnunet.finetuning.recipes import RECIPES
from alice_nnunet.sharing.weights import find_weights, weights_sha256

VARIABLE = "alice_weights"  # names the weights for plans that do not

# Entries of a block that a trained network and its optimizer's state depend on
OF_THE_NETWORK = (
    "encoder",
    "encoder_arguments",
    "network_arguments",
    "weights_sha256",
    "input",
)
OF_THE_OPTIMIZER = ("optimizer", "layer_decay", "frozen_epochs")


def find_block(
    plans: dict, configuration: dict, results: Path, preprocessed: Path
) -> tuple[AliceBlock, list[str]]:
    """The block that a training follows, and lines for the log.

    It is the plans' own, else the one that an earlier training saved in its results folder, else
    one for the weights in the environment variable alice_weights.

    Args:
        plans: nnU-Net's, complete.
        configuration: one of the plans, with what it inherits.
        results: folder that holds the folds of the training.
        preprocessed: folder of the configuration's cases.

    Raises:
        UserError: there is none, or the plans were changed so that the block does not fit them.
    """
    if "alice" in plans:
        block = block_of_plans(plans)
        lines = check_own_block(block, plans, configuration)
    elif saved := saved_block(results):
        block = saved
        lines = []
    else:
        block, lines = block_from_variable(plans, configuration, preprocessed)

    expected = input_values(
        block.origin,
        configuration["normalization_schemes"],
        plans["foreground_intensity_properties_per_channel"],
        block.input["flip_axes"],
    )
    if expected != block.input:
        raise UserError(
            f"the intensity statistics in {plans['plans_name']} are not those that its alice block "
            f"was made for: the plans were changed since. "
            f"{how_to_replan(plans, block.origin.path)}"
        )
    return block, lines


def check_own_block(block: AliceBlock, plans: dict, configuration: dict) -> list[str]:
    """Check plans against the block that they contain, and return lines for the log."""
    lines = check_compatible(block.origin, plans, configuration)

    reader = plans["image_reader_writer"]
    planned = block.origin.data["reader"]
    if reader != planned:
        raise UserError(
            f"{plans['plans_name']} read images with {reader}, and were made for {planned}: the "
            f"plans were changed since. {how_to_replan(plans, block.origin.path)}"
        )

    if os.environ.get(VARIABLE):
        lines.append(
            f"{VARIABLE} is not used: {plans['plans_name']} name their own weights, "
            f"{block.origin.path}"
        )
    return lines


def saved_block(results: Path) -> AliceBlock | None:
    """The block in the plans that an earlier training saved, or None.

    Raises:
        UserError: these plans cannot be read.
    """
    path = Path(results) / "plans.json"

    for _ in range(10):
        if not path.is_file():
            return None
        try:
            entries = json.loads(path.read_text()).get("alice")
        except ValueError:
            time.sleep(0.2)  # another fold that starts now may be writing them
        else:
            return block_from_entries(entries) if entries else None

    raise UserError(f"{path} is not valid JSON; remove or rename {results}")


def block_from_variable(
    plans: dict, configuration: dict, preprocessed: Path
) -> tuple[AliceBlock, list[str]]:
    """The block for nnU-Net's own plans and the weights in alice_weights, and lines for the log.

    Args:
        plans: nnU-Net's, complete.
        configuration: one of the plans, with what it inherits.
        preprocessed: folder of its cases, whose orientation says which axes to flip.

    Raises:
        UserError: the variable is not set or names no pretraining, or the plans do not match it.
    """
    if not os.environ.get(VARIABLE):
        raise UserError(
            f"the plans {plans['plans_name']} name no pretrained weights. Either plan for them "
            f"(alice-plan -d ID -weights CKPT, nnUNetv2_preprocess, then train with "
            f"-p AlicePlans), or keep these plans and name the checkpoint in the environment: "
            f"{VARIABLE}=CKPT nnUNetv2_train ..."
        )

    encoder = load_pretrained(os.environ[VARIABLE])
    lines = check_compatible(encoder, plans, configuration)

    flips: list[int] = []
    if plans["image_reader_writer"] != encoder.data["reader"]:
        flips = flips_of_cases(preprocessed, how_to_replan(plans, encoder.path))
        names = ["zyx"[axis] for axis in flips]
        lines.append(f"Axes flipped on the way into the network and back: {names or 'none'}")

    block = make_block(
        encoder,
        configuration["normalization_schemes"],
        plans["foreground_intensity_properties_per_channel"],
        RECIPES.get(encoder.name, RECIPES["vit"]).recipe,
        flips,
    )
    return with_positions(block, configuration["patch_size"], configuration["spacing"]), lines


def check_preprocessed(folder: Path, plans: dict, configuration: str) -> None:
    """Raise UserError if a folder of preprocessed cases is missing or empty."""
    if not any(Path(folder).glob("*.pkl")):
        raise UserError(
            f"no preprocessed cases in {folder}; first run nnUNetv2_preprocess -d "
            f"{dataset_number(plans['dataset_name'])} -plans_name {plans['plans_name']} "
            f"-c {configuration}"
        )


def check_same_run(block: AliceBlock, results: Path, going_on: bool) -> None:
    """Raise UserError if a results folder holds trainings of another block.

    Args:
        block: that this training follows.
        results: folder that holds the folds.
        going_on: with --c and --val. The recipe may have changed, for instance to more epochs, but
            neither the network nor what the optimizer's state depends on.
    """
    saved = saved_block(results)
    if saved is None:
        return

    there = compared_entries(saved)
    now = compared_entries(block)
    names = (*OF_THE_NETWORK, *OF_THE_OPTIMIZER) if going_on else now
    different = [
        f"{name} {there[name]} there, {now[name]} now" for name in names if there[name] != now[name]
    ]

    if different:
        raise UserError(
            f"{results} holds a training of other plans: {'; '.join(different)}. Nothing was "
            f"changed there. To keep both, plan under another name (alice-plan ... -n OTHERNAME); "
            f"to start over, remove or rename that folder"
        )


def compared_entries(block: AliceBlock) -> dict:
    """The recipe and what the network depends on, by name."""
    entries = block.as_entries()
    return {**entries["recipe"], **{name: entries[name] for name in OF_THE_NETWORK}}


def check_variable(block: AliceBlock, plans: dict) -> None:
    """Raise UserError if alice_weights names other weights than the plans do."""
    if not os.environ.get(VARIABLE):
        return

    path = find_weights(os.environ[VARIABLE])
    if weights_sha256(path) == block.origin.sha256:
        return

    different = differences(block.origin, load_pretrained(path))
    reason = "; ".join(different) or "other weights of the same encoder and data"
    raise UserError(
        f"{VARIABLE} names {path} and the plans {plans['plans_name']} were made for "
        f"{block.origin.path}: {reason}. To train with the plans' own weights, unset {VARIABLE}; "
        f"for the others, make plans: alice-plan -d {dataset_number(plans['dataset_name'])} "
        f"-weights {path} -n OTHERNAME, then nnUNetv2_preprocess and train with -p OTHERNAME"
    )


def starting_weights(block: AliceBlock) -> PretrainedEncoder:
    """Load the encoder that a block names.

    Raises:
        UserError: the file is gone, is not the one that was planned with, or comes from another
            pretraining than the block says, as in plans that were changed by hand.
    """
    planned = block.origin
    if not Path(planned.path).exists():
        raise UserError(
            f"the plans start from the weights in {planned.path}, and that file is gone; put it "
            f"back, or plan again with alice-plan (prediction and --val do not need it)"
        )

    found = weights_sha256(planned.path)
    if found != planned.sha256:
        raise UserError(
            f"{planned.path} is not the file that was planned with: its sha256 is {found}, the "
            f"plans say {planned.sha256}; plan again with alice-plan, under another name (-n) to "
            f"keep both"
        )

    encoder = load_pretrained(planned.path)
    different = differences(planned, encoder)
    if different:
        raise UserError(
            f"the plans were made for another pretraining than that of {planned.path}: "
            f"{'; '.join(different)}; plan again with alice-plan, under another name (-n) to keep "
            f"both"
        )
    return encoder
