"""Which alice block a training follows, and whether it may write where it is about to."""

import json
import os
import time
from pathlib import Path

from alice_nnunet.checkpoint import load_pretraining
from alice_nnunet.finetuning.compatibility import (
    check_compatible,
    dataset_number,
    flips_of_cases,
    replan,
)
from alice_nnunet.errors import UserError
from alice_nnunet.finetuning.network import alice_block, input_values
from alice_nnunet.finetuning.recipes import RECIPES, check_recipe, full_recipe, training_recipe
from alice_nnunet.sharing.weights import find_weights, weights_sha256

VARIABLE = "alice_weights"
OF_THE_NETWORK = (
    "encoder",
    "encoder_arguments",
    "network_arguments",
    "weights_sha256",
    "input",
)  # what a trained model depends on
OF_THE_OPTIMIZER = ("optimizer", "layer_decay", "frozen_epochs")


def block_of_plans(plans: dict) -> dict:
    """The alice block of plans. Raises UserError if they have none."""
    if "alice" not in plans:
        raise UserError(
            f"the plans {plans.get('plans_name')} carry no alice block, so the network cannot be built; "
            f"train with AliceTrainer, or plan with alice-plan"
        )
    return plans["alice"]


def saved_block(results: Path) -> dict | None:
    """The alice block in the plans that an earlier training saved in its results folder, or None.

    Raises UserError if these plans cannot be read.
    """
    plans = Path(results) / "plans.json"
    for _ in range(10):
        if not plans.is_file():
            return None
        try:
            return json.loads(plans.read_text()).get("alice")
        except ValueError:
            time.sleep(0.2)  # another fold that starts now may be writing them
    raise UserError(f"{plans} is no valid JSON; remove or rename {results}")


def block_from_variable(
    plans: dict, configuration: dict, preprocessed: Path
) -> tuple[dict, list[str]]:
    """The block for nnU-Net's own plans and the checkpoint named by alice_weights, and lines for the log.

    preprocessed: folder of the configuration's preprocessed cases, whose directions tell which axes to flip.
    Raises UserError if the variable is not set, names no checkpoint of a pretraining, or the plans cannot be matched.
    """
    if not os.environ.get(VARIABLE):
        raise UserError(
            f"the plans {plans['plans_name']} name no pretrained weights. Either plan for them (alice-plan -d "
            f"ID -weights CKPT, nnUNetv2_preprocess, then train with -p AlicePlans), or keep these plans "
            f"and name the checkpoint in the environment: {VARIABLE}=CKPT nnUNetv2_train ..."
        )
    path = find_weights(os.environ[VARIABLE])
    checkpoint = load_pretraining(path)
    data, recipe = checkpoint["data"], RECIPES.get(checkpoint["config"]["encoder"], RECIPES["vit"])
    lines, flips = check_compatible(data, plans, configuration, path), []
    if plans["image_reader_writer"] != data["reader"]:
        flips = flips_of_cases(preprocessed, replan(plans, path))
        lines.append(
            f"Axes flipped on the way into the network and back: {['zyx'[axis] for axis in flips] or 'none'}"
        )
    return alice_block(
        checkpoint, path, weights_sha256(path), plans, configuration, training_recipe(recipe), flips
    ), lines


def find_block(
    plans: dict, configuration: dict, results: Path, preprocessed: Path
) -> tuple[dict, list[str]]:
    """The block of a run, and lines for the log: the plans' own, else the one saved in results, else alice_weights'.

    Raises UserError if there is none, or if the plans were changed so that the block no longer fits them.
    """
    if "alice" in plans:
        block = plans["alice"]
        lines = check_compatible(block["pretraining"], plans, configuration, block["weights"])
        if (reader := plans["image_reader_writer"]) != (planned := block["pretraining"]["reader"]):
            raise UserError(
                f"{plans['plans_name']} read images with {reader}, and were made for {planned}: the plans were "
                f"changed since. {replan(plans, block['weights'])}"
            )
        if os.environ.get(VARIABLE):
            lines.append(
                f"{VARIABLE} is not used: {plans['plans_name']} name their own weights, {block['weights']}"
            )
    elif saved := saved_block(results):
        block, lines = saved, []
    else:
        block, lines = block_from_variable(plans, configuration, preprocessed)
    check_recipe(block["recipe"])
    expected = input_values(
        block["pretraining"], plans, configuration, block["input"]["flip_axes"], block["weights"]
    )
    if expected != block["input"]:
        raise UserError(
            f"the intensity statistics in {plans['plans_name']} are not those that its alice block was made "
            f"for: the plans were changed since. {replan(plans, block['weights'])}"
        )
    return block, lines


def check_preprocessed(folder: Path, plans: dict, configuration: str) -> None:
    """Raise UserError if folder, of a configuration's preprocessed cases, has none."""
    if not any(Path(folder).glob("*.pkl")):
        raise UserError(
            f"no preprocessed cases in {folder}; first run nnUNetv2_preprocess -d {dataset_number(plans)} "
            f"-plans_name {plans['plans_name']} -c {configuration}"
        )


def check_same_run(block: dict, results: Path, going_on: bool) -> None:
    """Raise UserError if results holds the trainings of another block, which a new one would mix with.

    going_on: --c and --val, where the recipe may have changed, for instance to more epochs, but never the network nor what
    the optimizer's state depends on.
    """
    saved = saved_block(results)
    if saved is None:
        return
    there, now = (
        {**full_recipe(made["recipe"]), **{key: made.get(key) for key in OF_THE_NETWORK}}
        for made in (saved, block)
    )
    keys = (*OF_THE_NETWORK, *OF_THE_OPTIMIZER) if going_on else now
    different = [
        f"{key} {there.get(key)} there, {now[key]} now"
        for key in keys
        if there.get(key) != now[key]
    ]
    if different:
        raise UserError(
            f"{results} holds a training of other plans: {'; '.join(different)}. Nothing was changed there. "
            f"To keep both, plan under another name (alice-plan ... -n OTHERNAME); to start over, remove or "
            f"rename that folder"
        )


def other_pretraining(block: dict, checkpoint: dict) -> list[str]:
    """What differs between the pretraining that a block was made for and a checkpoint's: encoder, window, orientation ..."""
    planned = {
        "encoder": block["encoder"],
        "encoder_arguments": block["encoder_arguments"],
        **block["pretraining"],
    }
    found = {**checkpoint["config"], **checkpoint["data"]}
    found = json.loads(
        json.dumps({key: found.get(key) for key in planned})
    )  # lists for tuples, as in plans
    if found["encoder"] != planned["encoder"]:
        planned.pop("encoder_arguments")
    return [
        f"{key} {found[key]} instead of {planned[key]}"
        for key in planned
        if found[key] != planned[key]
    ]


def check_variable(block: dict, plans: dict) -> None:
    """Raise UserError if alice_weights names other weights than those of the plans: which are meant?"""
    if (
        not os.environ.get(VARIABLE)
        or weights_sha256(path := find_weights(os.environ[VARIABLE])) == block["weights_sha256"]
    ):
        return
    different = other_pretraining(block, load_pretraining(path)) or [
        "other weights of the same encoder and data"
    ]
    raise UserError(
        f"{VARIABLE} names {path} and the plans {plans['plans_name']} were made for {block['weights']}: "
        f"{'; '.join(different)}. To train with the plans' own weights, unset {VARIABLE}; for the others, make plans: "
        f"alice-plan -d {dataset_number(plans)} -weights {path} -n OTHERNAME, then nnUNetv2_preprocess and train with -p OTHERNAME"
    )


def starting_weights(block: dict) -> dict:
    """The checkpoint that a block names. Raises UserError if the file is gone, is not the one that was planned with, or
    comes from another pretraining than the block says, as where plans were changed by hand."""
    path = block["weights"]
    if not os.path.exists(path):
        raise UserError(
            f"the plans start from the weights in {path}, and that file is gone; put it back, or plan again "
            f"with alice-plan (prediction and --val do not need it)"
        )
    if (found := weights_sha256(path)) != block["weights_sha256"]:
        raise UserError(
            f"{path} is not the file that was planned with: its sha256 is {found}, the plans say "
            f"{block['weights_sha256']}; plan again with alice-plan, under another name (-n) to keep both"
        )
    checkpoint = load_pretraining(path)
    if different := other_pretraining(block, checkpoint):
        raise UserError(
            f"the plans were made for another pretraining than that of {path}: {'; '.join(different)}; plan again with "
            f"alice-plan, under another name (-n) to keep both"
        )
    return checkpoint
