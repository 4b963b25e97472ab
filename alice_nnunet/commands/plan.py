"""alice-plan: nnU-Net plans that match a pretraining, so that fine-tuning shows its encoder what it knows."""

import json
import re
from functools import partial
from pathlib import Path

import numpy as np
from nnunetv2.configuration import default_num_processes

from alice_nnunet.checkpoint import load_pretraining
from alice_nnunet.finetuning.compatibility import (
    check_channels,
    check_compatible,
    check_pretraining,
    millimetres,
)
from alice_nnunet.errors import CommandParser, UserError, command
from alice_nnunet.files import write_json_atomically
from alice_nnunet.finetuning.network import NETWORKS
from alice_nnunet.planning.step_memory import training_memory
from alice_nnunet.model.encoders.registry import unit_of
from alice_nnunet.planning.plans import (
    CONFIGURATION,
    GB,
    choose_batch,
    choose_patch,
    configuration_of,
    fit_memory,
    matched_plans,
    sizes_at,
)
from alice_nnunet.planning.labeled_dataset import LabeledDataset, open_labeled_dataset
from alice_nnunet.settings import given_settings
from alice_nnunet.finetuning.recipes import RECIPES, check_recipe, setting_names, training_recipe
from alice_nnunet.sharing.weights import find_weights, weights_sha256

BATCH = 2  # for presets that do not fill a GPU; the recipe's is for the paper's
RESERVE = 1.0  # GB of a GPU for the CUDA context and cuDNN's workspaces
OF_THE_DATA = (
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
)  # what preprocessed cases depend on


def parser() -> CommandParser:
    p = CommandParser(
        "alice-plan",
        description="Write nnU-Net plans for fine-tuning from a pretraining checkpoint. "
        "The last line printed is the name of the plans.",
    )
    p.add_argument(
        "-d",
        required=True,
        metavar="ID",
        help="ID or DatasetXXX_NAME of a labeled dataset in nnUNet_raw",
    )
    p.add_argument(
        "-weights",
        required=True,
        metavar="CKPT",
        help="checkpoint of alice-pretrain, folder of alice-export, or Hugging Face repository, owner/name or owner/name@revision",
    )
    p.add_argument(
        "-n", default="AlicePlans", metavar="NAME", help="name of the plans (default: AlicePlans)"
    )
    p.add_argument(
        "-spacing",
        nargs="+",
        default=["pretrained"],
        metavar="S",
        help="pretrained (default), dataset for nnU-Net's choice, or three numbers in mm (z y x); for BTCV the paper has 2 0.76 0.76",
    )
    p.add_argument(
        "-patch",
        type=int,
        nargs=3,
        metavar=("Z", "Y", "X"),
        help="patch size in voxels, multiples of the encoder's unit",
    )
    p.add_argument("-batch", type=int, metavar="N", help="batch size")
    p.add_argument(
        "-gpu_memory",
        type=float,
        metavar="GB",
        help="fit batch and patch to a GPU with so much memory (default: do not)",
    )
    p.add_argument(
        "-epochs", type=int, metavar="N", help="length of a training; the warm-up keeps its share"
    )
    p.add_argument("-iterations", type=int, metavar="N", help="iterations of an epoch")
    p.add_argument(
        "-lr",
        type=float,
        metavar="X",
        help="learning rate at the end of the warm-up (default: the recipe's)",
    )
    p.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help=f"anything else in the recipe: {', '.join(setting_names(RECIPES['vit']))}",
    )
    p.add_argument(
        "-np",
        type=int,
        default=default_num_processes,
        metavar="N",
        help="processes (default: %(default)s)",
    )
    return p


@command("alice-plan")
def main(argv: list[str] | None) -> None:
    arguments = parser().parse_args(argv)
    check_arguments(arguments)
    path = find_weights(arguments.weights)
    checkpoint, sha256 = load_pretraining(path), weights_sha256(path)
    recipe = checked_recipe(checkpoint, path)
    training = training_recipe(
        recipe,
        arguments.epochs,
        arguments.iterations,
        arguments.lr,
        given_settings(None, arguments.set, setting_names(recipe), ()),
    )
    check_recipe(training)
    dataset = open_labeled_dataset(arguments.d, arguments.np)
    target = dataset.preprocessed / f"{arguments.n}.json"
    check_target(target, sha256)
    check_channels(
        checkpoint["data"],
        dataset.plans,
        configuration_of(dataset.plans, CONFIGURATION)["normalization_schemes"],
        path,
    )
    spacing, reasons = choose_spacing(arguments.spacing, checkpoint["data"]["spacing"], dataset)
    patch, batch = choose_sizes(checkpoint, dataset, spacing, arguments, reasons)
    plans = matched_plans(
        dataset.plans,
        arguments.n,
        checkpoint,
        path,
        sha256,
        training,
        spacing,
        patch,
        batch,
        dataset.sizes,
        dataset.spacings,
    )
    fit(plans, dataset, arguments, reasons)
    check_compatible(checkpoint["data"], plans, plans["configurations"][CONFIGURATION], path)
    check_cases(target, plans)
    write_json_atomically(target, plans)
    tell(plans, dataset, reasons, target)


def check_arguments(arguments) -> None:
    """Raise UserError for numbers and names that make no sense."""
    for name in ("epochs", "iterations", "batch", "np"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"-{name} must be at least 1, got {value}")
    if arguments.lr is not None and not 0 < arguments.lr < 1:
        raise UserError(f"-lr must be between 0 and 1, got {arguments.lr}")
    if arguments.gpu_memory is not None and arguments.gpu_memory <= RESERVE:
        raise UserError(
            f"-gpu_memory must be more than {RESERVE:g} GB, which CUDA takes for itself, got {arguments.gpu_memory:g}"
        )
    if not re.fullmatch(r"(?!.*__)\w[\w.-]*", arguments.n):
        raise UserError(
            f"-n must be a file name of letters, digits, '_', '-' and '.', without '__', got {arguments.n!r}"
        )


def checked_recipe(checkpoint: dict, path: str) -> dict:
    """The recipe of the checkpoint's encoder. Raises UserError for weights that cannot be fine-tuned here."""
    check_pretraining(checkpoint["data"], path)
    encoder = checkpoint["config"]["encoder"]
    if encoder not in RECIPES or encoder not in NETWORKS:
        raise UserError(
            f"{path} holds the encoder {encoder!r}; recipes and networks exist for {', '.join(RECIPES)}"
        )
    return RECIPES[encoder]


def check_target(target: Path, sha256: str) -> None:
    """Raise UserError if target holds plans that were not made from the weights with this SHA-256."""
    if not target.is_file():
        return
    try:
        made_from = json.loads(target.read_text()).get("alice", {}).get("weights_sha256")
    except ValueError:
        made_from = None
    if made_from != sha256:
        source = "other weights" if made_from else "no weights of alice-pretrain"
        raise UserError(
            f"{target} exists and was made from {source}; it was not touched. Choose another name with -n, or "
            f"remove that file"
        )


def check_cases(target: Path, plans: dict) -> None:
    """Raise UserError if cases are preprocessed by the plans in target and these ones would have them otherwise."""
    folder = target.parent / plans["configurations"][CONFIGURATION]["data_identifier"]
    if not target.is_file() or not any(folder.glob("*.pkl")):
        return
    before = json.loads(target.read_text())
    old, new = (
        {name: made["configurations"][CONFIGURATION][name] for name in OF_THE_DATA}
        for made in (before, plans)
    )
    different = [
        f"{name} {old[name]} there, {new[name]} now"
        for name in OF_THE_DATA
        if old[name] != new[name]
    ]
    if different:
        raise UserError(
            f"{folder} holds cases that were preprocessed otherwise ({'; '.join(different)}); nothing was changed. Choose "
            f"another name with -n to keep both, or remove that folder"
        )


def choose_spacing(
    given: list[str], pretrained: list[float], dataset: LabeledDataset
) -> tuple[list[float], dict[str, str]]:
    """The spacing (z, y, x) in mm that -spacing asks for, and {"spacing": the reason}."""
    if given == ["pretrained"]:
        return list(pretrained), {"spacing": "the pretraining's"}
    if given == ["dataset"]:
        if dataset.target_spacing is None:
            raise UserError(
                f"the cases of {dataset.name} are stored along different axes, so that nnU-Net's target spacing has none of "
                f"its own; give three numbers instead: -spacing Z Y X"
            )
        spacing, source = dataset.target_spacing, "nnU-Net's for this dataset"
    else:
        try:
            spacing, source = [float(s) for s in given], "as given"
        except ValueError:
            spacing = []
        if len(spacing) != 3 or min(spacing) <= 0:
            raise UserError(
                f"-spacing must be pretrained, dataset, or three numbers in mm (z y x), got {' '.join(given)}"
            )
    ratios = [s / p for s, p in zip(spacing, pretrained)]
    return list(spacing), {
        "spacing": f"{source}; the pretraining's was {millimetres(pretrained)}, so that organs have "
        f"{voxels(f'{1 / ratio:.2f}' for ratio in ratios)} times the voxels that the encoder knows them by"
    }


def choose_sizes(
    checkpoint: dict,
    dataset: LabeledDataset,
    spacing: list[float],
    arguments,
    reasons: dict[str, str],
) -> tuple[list[int], int]:
    """Patch size and batch size for any GPU; the reason for each goes into reasons."""
    config = checkpoint["config"]
    sizes, recipe = sizes_at(spacing, dataset.sizes, dataset.spacings), RECIPES[config["encoder"]]
    paper, median = config["preset"] == "paper", np.median(sizes, 0)
    largest = recipe["patch_size"] if paper else config["encoder_arguments"]["crop_size"]
    unit = unit_of(config["encoder"], config["encoder_arguments"])
    patch = choose_patch(arguments.patch, largest, median, unit)
    wanted = recipe["batch_size"] if paper else BATCH
    source = "the recipe's (Alice, Table 8)" if paper else f"the {config['preset']} preset's"
    reasons["patch"] = (
        "as given"
        if arguments.patch
        else (
            f"{source} {voxels(largest)}, each axis at most the median volume, {voxels(median)}, rounded up to the encoder's unit, "
            f"{voxels(unit)}"
        )
    )
    reasons["batch"] = (
        "as given"
        if arguments.batch
        else (
            f"{source} {wanted}, but no more than 5 % of the dataset's voxels in a batch, and no fewer than 2 patches"
        )
    )
    return patch, arguments.batch or choose_batch(
        wanted, patch, float(np.prod(median)) * len(sizes)
    )


def fit(plans: dict, dataset: LabeledDataset, arguments, reasons: dict[str, str]) -> None:
    """Reduce the batch and patch of plans to -gpu_memory, where it is given; what a step takes goes into reasons."""
    configuration, block = plans["configurations"][CONFIGURATION], plans["alice"]
    memory = partial(
        training_memory, block, len(configuration["normalization_schemes"]), dataset.outputs
    )
    patch, batch = configuration["patch_size"], configuration["batch_size"]
    limit = "no -gpu_memory is given, so patch and batch were not reduced to fit a GPU"
    if arguments.gpu_memory is not None:
        limit = f"-gpu_memory {arguments.gpu_memory:g}"
        median, unit = (
            configuration["median_image_size_in_voxels"],
            unit_of(block["encoder"], block["encoder_arguments"]),
        )
        fitted = fit_memory(
            patch,
            batch,
            np.array(median),
            unit,
            (arguments.gpu_memory - RESERVE) * GB,
            memory,
            (not arguments.patch, not arguments.batch),
        )
        for name, before, after in zip(
            ("patch", "batch"), (voxels(patch), str(batch)), (voxels(fitted[0]), str(fitted[1]))
        ):
            reasons[name] += f"; reduced from {before} to fit {limit}" if before != after else ""
        configuration["patch_size"], configuration["batch_size"] = patch, batch = fitted
    reasons["memory"] = (
        f"{memory(patch, batch) / GB:.3g} GB for the tensors of a training step in mixed precision, an estimate, and "
        f"about {RESERVE:g} GB for CUDA; {limit}"
    )


def tell(plans: dict, dataset: LabeledDataset, reasons: dict[str, str], target: Path) -> None:
    """Print what was chosen and why, the next commands, and last the plans' name."""
    configuration, block, name = (
        plans["configurations"][CONFIGURATION],
        plans["alice"],
        plans["plans_name"],
    )
    data, number = block["pretraining"], int(dataset.name[7:10])
    print(
        f"{dataset.name}: {len(dataset.images)} labeled cases, median spacing "
        f"{millimetres(plans['original_median_spacing_after_transp'])} (z, y, x)"
    )
    print(f"  weights      {block['weights']}")
    print(
        f"               {block['encoder']}, pretrained on {data['number_of_cases']} volumes of {data['dataset']}, "
        f"sha256 {block['weights_sha256']}"
    )
    print(f"  spacing      {millimetres(configuration['spacing'])}: {reasons['spacing']}")
    if "accepted_spacing" in block:
        print(
            "               off the pretraining's by more than 5 %: accepted, as -spacing asks for it; expect less from the pretraining"
        )
    print(
        f"  orientation  {data['orientation']}, the pretraining's, whatever the files have: reader {data['reader']}"
    )
    for index, (scheme, low) in enumerate(
        zip(configuration["normalization_schemes"], block["input"]["low"])
    ):
        statistics = plans["foreground_intensity_properties_per_channel"][str(index)]
        window = (
            f"CT clipped to {statistics['percentile_00_5']:g}..{statistics['percentile_99_5']:g} HU and mapped to 0..1"
            if low is not None
            else scheme
        )
        source = (
            "which did not see it: its weights in the first layer start as zeros"
            if index in block.get("other_channels", [])
            else "as in the pretraining"
        )
        print(f"  channel {index}    {window}, {source}")
    print(f"  patch        {voxels(configuration['patch_size'])}: {reasons['patch']}")
    print(f"  batch        {configuration['batch_size']}: {reasons['batch']}")
    print(f"  memory       {reasons['memory']}")
    for line in recipe_lines(block["recipe"]):
        print(line)
    print(f'Wrote {target}. Next, with the trainer made known by eval "$(alice-env)":')
    print(f"  nnUNetv2_preprocess -d {number} -plans_name {name} -c {CONFIGURATION}")
    print(f"  nnUNetv2_train {number} {CONFIGURATION} 0 -tr AliceTrainer -p {name}")
    print(name, flush=True)


def recipe_lines(recipe: dict) -> list[str]:
    """What a training will do, for people."""
    augmentation = (
        ", ".join(f"{name} {p:g}" for name, p in recipe["augmentation"].items() if p) or "none"
    )
    encoder = [
        f"each layer {recipe['layer_decay']:g} times the learning rate of the one above it"
    ] * (recipe["layer_decay"] < 1)
    encoder += [f"unchanged for the first {recipe['frozen_epochs']} epochs"] * (
        recipe["frozen_epochs"] > 0
    )
    lines = [
        f"  recipe       {recipe['optimizer']}, learning rate {recipe['learning_rate']:g}, weight decay "
        f"{recipe['weight_decay']:g}, {recipe['schedule']}; epochs {recipe['epochs']}, {recipe['warmup_epochs']} of them "
        f"warm-up; iterations in each {recipe['iterations_per_epoch']}",
        f"  augmentation {augmentation} (probabilities)",
    ]
    lines += [f"  encoder      {', '.join(encoder)}"] * bool(encoder)
    return lines + [f"  seed         {recipe['seed']}"] * (recipe["seed"] is not None)


def voxels(size) -> str:
    """96 x 96 x 96."""
    return " x ".join(n if isinstance(n, str) else f"{n:g}" for n in size)
