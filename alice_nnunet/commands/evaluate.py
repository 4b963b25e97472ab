"""alice-evaluate: DSC and NSD of predictions, and a paired comparison of two sets of them."""

from argparse import Namespace
from pathlib import Path

from alice_nnunet.errors import CommandParser, UserError, command
from alice_nnunet.evaluation.organs import ORGAN_SETS, find_organs
from alice_nnunet.settings.options import default_processes

TOLERANCE = 2.0  # mm
EXAMPLE = (
    '{"organs": {"liver": {"labels": 1, "tolerance_mm": 5}, '
    '"kidneys": {"labels": [2, 3], "tolerance_mm": 3}}}'
)


def parser() -> CommandParser:
    p = CommandParser(
        "alice-evaluate",
        description="Compute DSC and NSD (normalised surface Dice) per organ and over organs, with "
        "their spread over cases. Prints tables and writes CSV, JSON and a box plot.",
    )

    p.add_argument(
        "predicted", type=Path, metavar="PRED", help="folder of predictions, CASE.nii.gz"
    )
    p.add_argument(
        "reference",
        type=Path,
        metavar="GT",
        help="folder of references with the same names, such as labelsTr",
    )

    p.add_argument(
        "-organs",
        metavar="SET",
        help=f"{', '.join(ORGAN_SETS)} or a JSON file such as {EXAMPLE} (default: the labels of "
        "dataset.json)",
    )
    p.add_argument(
        "-dataset_json",
        type=Path,
        metavar="FILE",
        help="dataset.json with labels and file ending (default: the one in GT, beside GT or in "
        "PRED)",
    )
    p.add_argument(
        "-tolerance",
        type=float,
        metavar="MM",
        help=f"tolerance of NSD in mm for the labels of dataset.json (default: {TOLERANCE:g})",
    )
    p.add_argument(
        "--flare_tolerances",
        action="store_true",
        help="use FLARE 2022's tolerance for labels of dataset.json named as its organs",
    )

    p.add_argument(
        "-against",
        type=Path,
        metavar="OTHER",
        help="second folder of predictions, compared pairwise with PRED (Wilcoxon signed-rank p)",
    )
    p.add_argument("-o", type=Path, metavar="FOLDER", help="folder of the results (default: PRED)")
    p.add_argument(
        "-np",
        type=int,
        default=default_processes(),
        metavar="N",
        help="number of processes (default: %(default)s)",
    )
    p.add_argument(
        "--chill",
        action="store_true",
        help="evaluate only the cases that all folders have, as nnUNetv2_evaluate_folder does",
    )
    return p


@command("alice-evaluate")
def main(argv: list[str] | None = None) -> None:
    arguments = parser().parse_args(argv)
    check_arguments(arguments)

    from alice_nnunet.evaluation.run import OrganChoice, evaluate_folders

    choice = OrganChoice(
        organs=arguments.organs,
        dataset_json=arguments.dataset_json,
        tolerance=TOLERANCE if arguments.tolerance is None else arguments.tolerance,
        flare_tolerances=arguments.flare_tolerances,
    )
    against = [arguments.against] if arguments.against else []
    evaluate_folders(
        predicted=[arguments.predicted, *against],
        reference=arguments.reference,
        choice=choice,
        output=arguments.o or arguments.predicted,
        chill=arguments.chill,
        processes=arguments.np,
    )


def check_arguments(arguments: Namespace) -> None:
    """Check everything that can be known before an image is read.

    Raises:
        UserError: options contradict each other, or a value is wrong.
    """
    against = arguments.against
    if against and against.resolve() == arguments.predicted.resolve():
        raise UserError(f"-against: {against} is PRED itself")
    if arguments.np < 1:
        raise UserError(f"-np must be 1 or more, got {arguments.np}")
    if arguments.dataset_json and not arguments.dataset_json.is_file():
        raise UserError(f"-dataset_json: there is no file {arguments.dataset_json}")

    tolerance = arguments.tolerance
    if tolerance is not None and not 0 <= tolerance < float("inf"):
        raise UserError(f"-tolerance must be a number of mm, 0 or more, got {tolerance}")
    if arguments.organs:
        if tolerance is not None or arguments.flare_tolerances:
            raise UserError(
                "-tolerance and --flare_tolerances are for the labels of a dataset.json; "
                f"-organs {arguments.organs} has its own"
            )
        find_organs(arguments.organs)
