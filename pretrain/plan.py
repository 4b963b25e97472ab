"""alice-plan: nnU-Net plans that match a pretraining, so that fine-tuning shows its encoder what it knows."""

import json
import re
from pathlib import Path

import numpy as np
from nnunetv2.configuration import default_num_processes

from alice_nnunet.checkpoint import load_pretraining
from alice_nnunet.compatibility import check_channels, check_compatible, check_pretraining, millimetres
from alice_nnunet.errors import CommandParser, UserError, command
from alice_nnunet.files import write_json_atomically
from alice_nnunet.finetune import NETWORKS
from alice_nnunet.model.encoders import unit_of
from alice_nnunet.plans import CONFIGURATION, choose_batch, choose_patch, configuration_of, matched_plans, sizes_at
from alice_nnunet.pretrain.labeled_dataset import LabeledDataset, open_labeled_dataset
from alice_nnunet.recipes import RECIPES, check_recipe, training_recipe
from alice_nnunet.weights import find_weights, weights_sha256

BATCH = 2  # for presets that do not fill a GPU; the recipe's is for the paper's


def parser() -> CommandParser:
    p = CommandParser("alice-plan", description="Write nnU-Net plans for fine-tuning from a pretraining checkpoint. "
                      "The last line printed is the name of the plans.")
    p.add_argument("-d", required=True, metavar="ID", help="ID or DatasetXXX_NAME of a labeled dataset in nnUNet_raw")
    p.add_argument("-weights", required=True, metavar="CKPT",
                   help="checkpoint of alice-pretrain, folder of alice-export, or Hugging Face repository, owner/name or owner/name@revision")
    p.add_argument("-n", default="AlicePlans", metavar="NAME", help="name of the plans (default: AlicePlans)")
    p.add_argument("-epochs", type=int, metavar="N", help="length of a training; the warm-up keeps its share")
    p.add_argument("-iterations", type=int, metavar="N", help="iterations of an epoch")
    p.add_argument("-lr", type=float, metavar="X", help="learning rate at the end of the warm-up (default: the recipe's)")
    p.add_argument("-patch", type=int, nargs=3, metavar=("Z", "Y", "X"), help="patch size in voxels, multiples of the encoder's unit")
    p.add_argument("-batch", type=int, metavar="N", help="batch size")
    p.add_argument("-np", type=int, default=default_num_processes, metavar="N", help="processes (default: %(default)s)")
    return p


@command("alice-plan")
def main(argv: list[str] | None) -> None:
    arguments = parser().parse_args(argv)
    check_arguments(arguments)
    path = find_weights(arguments.weights)
    checkpoint, sha256 = load_pretraining(path), weights_sha256(path)
    recipe = checked_recipe(checkpoint, path)
    dataset = open_labeled_dataset(arguments.d, arguments.np)
    target = dataset.preprocessed / f"{arguments.n}.json"
    check_target(target, sha256)
    check_channels(checkpoint["data"], dataset.plans, configuration_of(dataset.plans, CONFIGURATION)["normalization_schemes"], path)
    patch, batch, reasons = choose(checkpoint, dataset, arguments)
    plans = matched_plans(dataset.plans, arguments.n, checkpoint, path, sha256, training_recipe(
        recipe, arguments.epochs, arguments.iterations, arguments.lr), patch, batch, dataset.sizes, dataset.spacings)
    check_compatible(checkpoint["data"], plans, plans["configurations"][CONFIGURATION], path)
    check_recipe(plans["alice"]["recipe"])
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
    if not re.fullmatch(r"(?!.*__)\w[\w.-]*", arguments.n):
        raise UserError(f"-n must be a file name of letters, digits, '_', '-' and '.', without '__', got {arguments.n!r}")


def checked_recipe(checkpoint: dict, path: str) -> dict:
    """The recipe of the checkpoint's encoder. Raises UserError for weights that cannot be fine-tuned here."""
    check_pretraining(checkpoint["data"], path)
    encoder = checkpoint["config"]["encoder"]
    if encoder not in RECIPES or encoder not in NETWORKS:
        raise UserError(f"{path} holds the encoder {encoder!r}; recipes and networks exist for {', '.join(RECIPES)}")
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
        raise UserError(f"{target} exists and was made from {source}; it was not touched. Choose another name with -n, or "
                        f"remove that file")


def choose(checkpoint: dict, dataset: LabeledDataset, arguments) -> tuple[list[int], int, dict[str, str]]:
    """Patch size, batch size, and the reason for each."""
    config, spacing = checkpoint["config"], checkpoint["data"]["spacing"]
    sizes, recipe = sizes_at(spacing, dataset.sizes, dataset.spacings), RECIPES[config["encoder"]]
    paper, median = config["preset"] == "paper", np.median(sizes, 0)
    crop = config["encoder_arguments"]["crop_size"]
    unit = unit_of(config["encoder"], config["encoder_arguments"])
    patch = choose_patch(arguments.patch, recipe["patch_size"] if paper else crop, median, unit)
    wanted = recipe["batch_size"] if paper else BATCH
    batch = arguments.batch or choose_batch(wanted, patch, float(np.prod(median)) * len(sizes))
    source = "the recipe's (Alice, Table 8)" if paper else f"the {config['preset']} preset's"
    return patch, batch, {
        "patch": "as given" if arguments.patch else
                 f"{source} {voxels(recipe['patch_size'] if paper else crop)}, each axis at most the median volume, "
                 f"{voxels(median)}, rounded up to the encoder's unit, {voxels(unit)}",
        "batch": "as given" if arguments.batch else
                 f"{source} {wanted}, but no more than 5 % of the dataset's voxels in a batch, and no fewer than 2 patches",
    }


def tell(plans: dict, dataset: LabeledDataset, reasons: dict[str, str], target: Path) -> None:
    """Print what was chosen and why, the next commands, and last the plans' name."""
    configuration, block, name = plans["configurations"][CONFIGURATION], plans["alice"], plans["plans_name"]
    recipe, data, number = block["recipe"], block["pretraining"], int(dataset.name[7:10])
    print(f"{dataset.name}: {len(dataset.images)} labeled cases, median spacing "
          f"{millimetres(plans['original_median_spacing_after_transp'])} (z, y, x)")
    print(f"  weights      {block['weights']}")
    print(f"               {block['encoder']}, pretrained on {data['number_of_cases']} volumes of {data['dataset']}, "
          f"sha256 {block['weights_sha256']}")
    print(f"  spacing      {millimetres(configuration['spacing'])}, the pretraining's")
    print(f"  orientation  {data['orientation']}, the pretraining's, whatever the files have: reader {data['reader']}")
    for index, (scheme, low) in enumerate(zip(configuration["normalization_schemes"], block["input"]["low"])):
        statistics = plans["foreground_intensity_properties_per_channel"][str(index)]
        window = (f"CT clipped to {statistics['percentile_00_5']:g}..{statistics['percentile_99_5']:g} HU and mapped to 0..1"
                  if low is not None else scheme)
        seen = index not in block.get("other_channels", [])
        print(f"  channel {index}    {window}, {'as in the pretraining' if seen else 'which did not see it: its weights in the first layer start as zeros'}")
    print(f"  patch        {voxels(configuration['patch_size'])}: {reasons['patch']}")
    print(f"  batch        {configuration['batch_size']}: {reasons['batch']}")
    print(f"  recipe       {recipe['optimizer']}, learning rate {recipe['learning_rate']:g}, weight decay "
          f"{recipe['weight_decay']:g}, {recipe['schedule']}; epochs {recipe['epochs']}, {recipe['warmup_epochs']} of them "
          f"warm-up; iterations in each {recipe['iterations_per_epoch']}")
    print(f"Wrote {target}. Next, with the trainer made known by eval \"$(alice-env)\":")
    print(f"  nnUNetv2_preprocess -d {number} -plans_name {name} -c {CONFIGURATION}")
    print(f"  nnUNetv2_train {number} {CONFIGURATION} 0 -tr AliceTrainer -p {name}")
    print(name, flush=True)


def voxels(size) -> str:
    """96 x 96 x 96."""
    return " x ".join(f"{n:g}" for n in size)
