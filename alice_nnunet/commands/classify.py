"""alice-classify: train classifiers on a pretrained encoder, and predict with them."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from alice_nnunet.checks.options import add_decision_options, given_decisions
from alice_nnunet.classification.recipe import read_recipe
from alice_nnunet.errors import CommandParser, UserError, command
from alice_nnunet.settings.options import (
    add_device_option,
    add_processes_option,
    add_set_option,
    positive_int,
)

SEEDS = 10  # of the paper


def parser() -> CommandParser:
    parser = CommandParser(
        "alice-classify",
        description="Classify whole scans with a pretrained encoder and one linear layer (Alice, "
        "supplement B). `train` repeats training and test over random splits by patient and "
        "writes the table of AUCs with plots; `predict` gives probabilities of new scans.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    add_train_options(commands.add_parser("train", description="Train and test classifiers."))
    add_predict_options(
        commands.add_parser("predict", description="Write the probabilities of new scans.")
    )
    return parser


def add_train_options(parser: ArgumentParser) -> None:
    """The options of alice-classify train."""
    parser.add_argument(
        "dataset",
        metavar="DATASET",
        help="ID or name in nnUNet_raw (with -labels), or a folder in MosMedData's layout",
    )
    parser.add_argument(
        "-weights",
        required=True,
        metavar="W",
        help="checkpoint of alice-pretrain, folder of alice-export or Hugging Face repository",
    )
    parser.add_argument(
        "-o", type=Path, required=True, metavar="FOLDER", help="folder of runs, tables and plots"
    )
    parser.add_argument(
        "-labels",
        type=Path,
        metavar="FILE",
        help="CSV with the columns case and label, and patient if several scans show one person",
    )
    parser.add_argument(
        "--scratch",
        action="store_true",
        help="take the architecture of the weights and random values",
    )
    parser.add_argument(
        "-seeds",
        type=positive_int,
        default=SEEDS,
        metavar="N",
        help="random splits: 70 %% training, 10 %% validation, 20 %% test (default: %(default)s)",
    )
    parser.add_argument(
        "-folds",
        type=positive_int,
        default=0,
        metavar="K",
        help="cross-validation with K folds in place of random splits",
    )
    parser.add_argument(
        "-percent",
        type=positive_int,
        nargs="+",
        default=[100],
        metavar="P",
        help="percent of the labels for training, such as 20 50 100 (default: 100)",
    )
    parser.add_argument(
        "-against",
        type=Path,
        metavar="OTHER",
        help="folder of other runs, compared pairwise (Wilcoxon signed-rank p)",
    )
    parser.add_argument(
        "--c",
        action="store_true",
        help="go on with the runs in -o; start there if there are none",
    )
    parser.add_argument(
        "-cache",
        type=Path,
        metavar="FOLDER",
        help="of prepared volumes (default: AliceClassify of the dataset in nnUNet_preprocessed)",
    )
    add_set_option(parser, "change settings, e.g. --set frozen=true class_weights=balanced")
    add_device_option(parser)
    add_processes_option(parser, "that preprocess")
    add_decision_options(parser)


def add_predict_options(parser: ArgumentParser) -> None:
    """The options of alice-classify predict."""
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="folder of alice-classify train, or of one run"
    )
    parser.add_argument("scans", type=Path, metavar="IN", help="folder of scans, or one scan")
    parser.add_argument("output", type=Path, metavar="OUT", help="CSV file of the probabilities")
    parser.add_argument(
        "-percent",
        type=positive_int,
        metavar="P",
        help="take the runs with P percent of the labels (default: the largest)",
    )
    add_device_option(parser)
    add_decision_options(parser)


@command("alice-classify")
def main(argv: list[str] | None = None) -> None:
    arguments = parser().parse_args(argv)
    if arguments.command == "train":
        train(arguments)
    else:
        predict(arguments)


def train(arguments: Namespace) -> None:
    check_arguments(arguments)
    recipe = read_recipe(arguments.assignments)

    from alice_nnunet.classification.experiment import Request, run_experiment

    run_experiment(
        Request(
            dataset=arguments.dataset,
            labels=arguments.labels,
            weights=arguments.weights,
            scratch=arguments.scratch,
            output=arguments.o,
            cache=arguments.cache,
            seeds=arguments.seeds,
            folds=arguments.folds,
            percents=tuple(sorted(set(arguments.percent))),
            recipe=recipe,
            resume=arguments.c,
            against=arguments.against,
            device=arguments.device,
            processes=arguments.np,
            decisions=given_decisions(arguments),
        )
    )


def predict(arguments: Namespace) -> None:
    if arguments.output.is_dir():
        raise UserError(f"{arguments.output} is a folder: give the name of a CSV file")

    from alice_nnunet.classification.prediction import Request, predict_scans

    predict_scans(
        Request(
            model=arguments.model,
            scans=arguments.scans,
            output=arguments.output,
            percent=arguments.percent,
            device=arguments.device,
            decisions=given_decisions(arguments),
        )
    )


def check_arguments(arguments: Namespace) -> None:
    """Raise UserError for values that are wrong whatever the data are."""
    if max(arguments.percent) > 100:
        raise UserError(f"-percent must be 1 to 100, got {max(arguments.percent)}")
    if arguments.folds == 1:
        raise UserError("-folds must be at least 2")
    if arguments.against and arguments.against.resolve() == arguments.o.resolve():
        raise UserError(f"-against: {arguments.against} is -o itself")
    if arguments.against and not arguments.against.is_dir():
        raise UserError(f"-against: there is no folder {arguments.against}")
