"""alice-evaluate: DSC and NSD of predictions against references, and two sets of predictions against each other."""

import sys
from pathlib import Path

from tqdm import tqdm

from alice_nnunet.errors import CommandParser, UserError, command
from alice_nnunet.evaluation.box_plot import box_plot
from alice_nnunet.evaluation.cases import Cases, find_dataset_json, find_ending, pair_cases, some
from alice_nnunet.evaluation.label_image import check_same_grid
from alice_nnunet.evaluation.organs import ORGAN_SETS, OrganSet, find_organs, organs_of_dataset
from alice_nnunet.evaluation.scores import Score, score_case
from alice_nnunet.evaluation.summary import Scores, as_dict, compare, summarise, write_csv
from alice_nnunet.evaluation.tables import comparison_table, summary_table
from alice_nnunet.files import write_json_atomically
from alice_nnunet.pictures import save_figure
from alice_nnunet.options import default_processes
from alice_nnunet.workers import run_each

TOLERANCE = 2.0  # mm
EXAMPLE = '{"organs": {"liver": {"labels": 1, "tolerance_mm": 5}, "kidneys": {"labels": [2, 3], "tolerance_mm": 3}}}'


def parser() -> CommandParser:
    p = CommandParser(
        "alice-evaluate",
        description="DSC and NSD (normalised surface Dice) per organ and over organs, with their spread: "
        "on screen, as CSV, JSON and box plot.",
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
        help=f"{', '.join(ORGAN_SETS)} or a JSON file such as {EXAMPLE}; default: the labels "
        "of dataset.json",
    )
    p.add_argument(
        "-dataset_json",
        type=Path,
        metavar="FILE",
        help="default: the one in GT, beside it, or in PRED",
    )
    p.add_argument(
        "-tolerance",
        type=float,
        metavar="MM",
        help=f"of NSD, for the labels of a dataset.json; default: {TOLERANCE:g}",
    )
    p.add_argument(
        "--flare_tolerances",
        action="store_true",
        help="FLARE 2022's tolerance for labels of dataset.json named as its organs",
    )
    p.add_argument(
        "-against",
        type=Path,
        metavar="OTHER",
        help="a second folder of predictions: paired comparison, Wilcoxon signed-rank p",
    )
    p.add_argument("-o", type=Path, metavar="FOLDER", help="where the files go; default: PRED")
    p.add_argument(
        "-np",
        type=int,
        default=default_processes(),
        metavar="N",
        help="processes; default: %(default)s",
    )
    p.add_argument(
        "--chill",
        action="store_true",
        help="as in nnUNetv2_evaluate_folder: go on with the cases that all folders have",
    )
    return p


@command("alice-evaluate")
def main(argv: list[str] | None = None) -> None:
    arguments = parser().parse_args(argv)
    folders = [arguments.predicted] + ([arguments.against] if arguments.against else [])
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError(f"-against: {arguments.against} is PRED itself")
    if arguments.np < 1:
        raise UserError(f"-np must be 1 or more, got {arguments.np}")
    if arguments.dataset_json and not arguments.dataset_json.is_file():
        raise UserError(f"-dataset_json: there is no file {arguments.dataset_json}")
    dataset_json = arguments.dataset_json or find_dataset_json(
        arguments.predicted, arguments.reference
    )
    ending = find_ending(arguments.reference, dataset_json)
    organ_set = choose_organs(
        arguments.organs, dataset_json, arguments.tolerance, arguments.flare_tolerances
    )
    cases = common_cases(
        {
            str(folder): pair_cases(folder, arguments.reference, ending, arguments.chill)
            for folder in folders
        }
    )
    left_out = tuple(sorted({case for of_folder in cases.values() for case in of_folder.left_out}))
    if left_out:
        print(
            f"{len(left_out)} cases are not in every folder and left out: {some(list(left_out))}",
            flush=True,
        )
    output = arguments.o or arguments.predicted
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"-o: {output} cannot be made: {error.strerror}") from None
    report(evaluate(cases, organ_set, arguments.np), organ_set, left_out, output)


def choose_organs(
    name: str | None, dataset_json: Path | None, tolerance: float | None, flare_tolerances: bool
) -> OrganSet:
    """The organ set that the options ask for. Raises UserError where they contradict each other."""
    if name:
        if tolerance is not None or flare_tolerances:
            raise UserError(
                f"-tolerance and --flare_tolerances are for the labels of a dataset.json; -organs {name} has its own"
            )
        return find_organs(name)
    if dataset_json is None:
        raise UserError(
            "which labels are which organs? No dataset.json is in GT, beside it or in PRED: give -dataset_json or -organs"
        )
    if tolerance is not None and not 0 <= tolerance < float("inf"):
        raise UserError(f"-tolerance must be a number of mm, 0 or more, got {tolerance}")
    print(f"labels of {dataset_json}", flush=True)
    return organs_of_dataset(
        dataset_json, TOLERANCE if tolerance is None else tolerance, flare_tolerances
    )


def common_cases(cases: dict[str, Cases]) -> dict[str, Cases]:
    """The same cases for every folder of predictions. Raises UserError where there are none."""
    shared = set.intersection(*(set(of_folder.files) for of_folder in cases.values()))
    if not shared:
        raise UserError(f"{' and '.join(cases)} have no case in common")
    return {
        folder: Cases(
            {case: files for case, files in of_folder.files.items() if case in shared},
            tuple(set(of_folder.left_out) | set(of_folder.files) - shared),
        )
        for folder, of_folder in cases.items()
    }


def evaluate(cases: dict[str, Cases], organ_set: OrganSet, processes: int) -> dict[str, Scores]:
    """The scores of every case of every folder. Raises UserError that lists all files that cannot be compared."""
    jobs = {
        (folder, case): (*files, organ_set)
        for folder, of_folder in cases.items()
        for case, files in of_folder.files.items()
    }
    wrong = [
        problem
        for predicted, reference, _ in jobs.values()
        if (problem := grid_problem(predicted, reference))
    ]
    refuse(wrong, len(jobs))
    scores, wrong = {}, []
    for job, result in tqdm(
        run_each(try_score, jobs, processes), "evaluating", len(jobs), unit="case", disable=None
    ):
        if isinstance(result, str):
            wrong.append(result)
        scores[job] = result
    refuse(wrong, len(jobs))
    return {
        folder: {case: scores[folder, case] for case in of_folder.files}
        for folder, of_folder in cases.items()
    }


def grid_problem(predicted: Path, reference: Path) -> str | None:
    """Why two files cannot be compared; only their headers are read."""
    try:
        check_same_grid(predicted, reference)
    except UserError as error:
        return str(error)


def try_score(predicted: Path, reference: Path, organ_set: OrganSet) -> list[Score] | str:
    """The scores of one case, or why there are none."""
    try:
        return score_case(predicted, reference, organ_set)
    except UserError as error:
        return str(error)


def refuse(problems: list[str], jobs: int) -> None:
    """Raise UserError where there are problems; with several, list them all on stderr before."""
    for problem in problems if len(problems) > 1 else []:
        print(problem, file=sys.stderr)
    if problems:
        first = "they are listed above" if len(problems) > 1 else problems[0]
        raise UserError(
            f"{len(problems)} of {jobs} predictions cannot be evaluated and nothing was written: {first}"
        )


def report(
    scores: dict[str, Scores], organ_set: OrganSet, left_out: tuple[str, ...], folder: Path
) -> None:
    """Tables on screen; CSV, JSON and PNG in folder."""
    for predicted, of_folder in scores.items():
        print(
            "\n"
            + summary_table(
                f"{predicted}: {len(of_folder)} cases, organs of {organ_set.name}",
                summarise(of_folder),
                organ_set,
            )
        )
    if len(scores) == 2:
        first, second = scores
        print("\n" + comparison_table(f"{first} less {second}", compare(*scores.values())))
    stem = folder / ("alice_comparison" if len(scores) == 2 else "alice_evaluation")
    write_csv(stem.with_suffix(".csv"), scores)
    write_json_atomically(stem.with_suffix(".json"), as_dict(organ_set, scores, left_out))
    save_figure(box_plot(scores), stem.with_suffix(".png"))
    print(f"\nwritten: {stem}.csv, .json and .png", flush=True)
