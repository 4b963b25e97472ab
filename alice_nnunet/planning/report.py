"""The report of alice-plan: what was chosen and why, and the next commands."""

from pathlib import Path

from alice_nnunet.finetuning.block import AliceBlock
from alice_nnunet.finetuning.recipes import Recipe
from alice_nnunet.memory import GB
from alice_nnunet.names import CONFIGURATION
from alice_nnunet.planning.choices import PlanChoices
from alice_nnunet.planning.labeled_dataset import LabeledDataset
from alice_nnunet.planning.request import CUDA_GB, WORKSPACES
from alice_nnunet.text import millimetres, voxels

FOLDS = 5  # of nnU-Net's cross-validation
SPLITS = "splits_final.json"  # folds that the user made


def print_report(
    plans: dict, block: AliceBlock, dataset: LabeledDataset, choices: PlanChoices, target: Path
) -> None:
    """Print it; the last line is the name of the plans.

    Args:
        plans: as written.
        block: the alice block in them.
        dataset: that they are for.
        choices: with their reasons.
        target: file of the plans.
    """
    name = plans["plans_name"]
    median_spacing = plans["original_median_spacing_after_transp"]
    data = block.origin.data

    print(
        f"{dataset.name}: {len(dataset.images)} labeled cases, median spacing "
        f"{millimetres(median_spacing)} (z, y, x)"
    )
    print_line("weights", block.origin.path)
    print_line(
        "",
        f"{block.origin.name}, pretrained on {data['number_of_cases']} volumes of "
        f"{data['dataset']}, sha256 {block.origin.sha256}",
    )

    print_line("spacing", f"{millimetres(choices.spacing.value)}: {choices.spacing.reason}")
    if block.accepted_spacing is not None:
        print_line(
            "",
            "differs from the pretraining's by more than 5 %: accepted, as -spacing asks for it; "
            "expect less from the pretraining",
        )
    print_line(
        "orientation",
        f"{data['orientation']}, the pretraining's, whatever the files have: reader "
        f"{data['reader']}",
    )

    schemes = plans["configurations"][CONFIGURATION]["normalization_schemes"]
    for index, scheme in enumerate(schemes):
        statistics = plans["foreground_intensity_properties_per_channel"][str(index)]
        print_line(f"channel {index}", channel_text(block, index, scheme, statistics))

    print_line("patch", f"{voxels(choices.patch.value)}: {choices.patch.reason}")
    print_line("batch", f"{choices.batch.value}: {choices.batch.reason}")
    print_line(
        "memory",
        f"{choices.memory.value / GB:.3g} GB for the tensors of a training step in mixed precision "
        f"(estimate), up to {WORKSPACES:.0%} more for workspaces, and about {CUDA_GB:g} GB for "
        f"CUDA; {choices.memory.reason}",
    )
    print_recipe(block.recipe)

    number = dataset.number
    print(f'Wrote {target}. Next, after eval "$(alice-env)", which makes the trainer known:')
    print(f"  nnUNetv2_preprocess -d {number} -plans_name {name} -c {CONFIGURATION}")
    fold = "0"
    if len(dataset.images) < FOLDS and not (dataset.preprocessed / SPLITS).is_file():
        fold = "all"
        print_few(len(dataset.images))
    print(f"  nnUNetv2_train {number} {CONFIGURATION} {fold} -tr AliceTrainer -p {name}")
    print(name, flush=True)


def print_few(cases: int) -> None:
    """Say why the next command trains on all cases."""
    print(
        f"  ({cases} cases are too few for the {FOLDS} folds of nnU-Net's cross-validation: fold "
        f"'all' trains on every case and validates on the same)"
    )


def print_line(title: str, text: str) -> None:
    print(f"  {title:12} {text}")


def channel_text(block: AliceBlock, index: int, scheme: str, statistics: dict) -> str:
    """How a channel is shown to the encoder. scheme, statistics: of the plans."""
    if block.input["low"][index] is None:
        text = scheme
    else:
        low = statistics["percentile_00_5"]
        high = statistics["percentile_99_5"]
        text = f"CT clipped to {low:g}..{high:g} HU and mapped to 0..1"

    if index in block.other_channels:
        return f"{text}, not seen by the pretraining: its weights in the first layer start as zeros"
    return f"{text}, as in the pretraining"


def print_recipe(recipe: Recipe) -> None:
    """Print what a training will do."""
    print_line(
        "recipe",
        f"{recipe.optimizer}, learning rate {recipe.learning_rate:g}, weight decay "
        f"{recipe.weight_decay:g}, {recipe.schedule}; epochs {recipe.epochs}, "
        f"{recipe.warmup_epochs} of them warm-up; iterations in each {recipe.iterations_per_epoch}",
    )

    used = [f"{name} {p:g}" for name, p in recipe.augmentation.items() if p > 0]
    print_line("augmentation", f"{', '.join(used) or 'none'} (probabilities)")

    encoder = []
    if recipe.layer_decay < 1:
        encoder.append(
            f"each layer {recipe.layer_decay:g} times the learning rate of the one above it"
        )
    if recipe.frozen_epochs > 0:
        encoder.append(f"unchanged for the first {recipe.frozen_epochs} epochs")
    if encoder:
        print_line("encoder", ", ".join(encoder))

    if recipe.seed is not None:
        print_line("seed", str(recipe.seed))
