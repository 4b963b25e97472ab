"""The work of alice-evaluate: score every case, print tables, write CSV, JSON and a box plot."""

import sys
from dataclasses import dataclass
from pathlib import Path

from alice_nnunet.errors import UserError
from alice_nnunet.evaluation.box_plot import box_plot
from alice_nnunet.evaluation.cases import (
    Cases,
    find_dataset_json,
    find_ending,
    first_few,
    pair_cases,
    shared_cases,
)
from alice_nnunet.evaluation.label_image import check_same_grid
from alice_nnunet.evaluation.organs import OrganSet, find_organs, organs_of_dataset
from alice_nnunet.evaluation.scores import Score, score_case
from alice_nnunet.evaluation.summary import Scores, as_dict, compare, summarise, write_csv
from alice_nnunet.evaluation.tables import comparison_table, summary_table
from alice_nnunet.files import locked_for_once, write_json_atomically
from alice_nnunet.pictures import save_figure
from alice_nnunet.workers import run_each, with_progress

# Names of the results, without an ending: of one folder of predictions, and of two.
EVALUATION = "alice_evaluation"
COMPARISON = "alice_comparison"


@dataclass(frozen=True)
class OrganChoice:
    """Which organs to evaluate.

    Attributes:
        organs: name or file of an organ set; None for the labels of dataset.json.
        dataset_json: the file; None for the one that find_dataset_json finds.
        tolerance: mm, of the NSD of labels of dataset.json.
        flare_tolerances: FLARE 2022's tolerance for labels of dataset.json named as its organs.
    """

    organs: str | None
    dataset_json: Path | None
    tolerance: float
    flare_tolerances: bool


def evaluate_folders(
    predicted: list[Path],
    reference: Path,
    choice: OrganChoice,
    output: Path,
    chill: bool,
    processes: int,
) -> None:
    """Evaluate one folder of predictions, or compare two.

    Args:
        predicted: the folders of predictions.
        reference: the folder of references.
        choice: which organs.
        output: folder of the results; made if it does not exist.
        chill: leave out cases that are not in every folder, instead of raising.
        processes: that score cases.

    Raises:
        UserError: an image or a file is missing or cannot be evaluated. Nothing is written then.
    """
    dataset_json = choice.dataset_json or find_dataset_json(predicted[0], reference)
    ending = find_ending(reference, dataset_json)
    organ_set = choose_organs(choice, dataset_json)

    cases = shared_cases(
        {str(folder): pair_cases(folder, reference, ending, chill) for folder in predicted}
    )
    left_out = tuple(sorted({case for of_folder in cases.values() for case in of_folder.left_out}))
    if left_out:
        print(
            f"{len(left_out)} cases are not in every folder and are left out: "
            f"{first_few(list(left_out))}",
            flush=True,
        )

    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"-o: cannot create the folder {output}: {error.strerror}") from None

    stem = output / (COMPARISON if len(cases) == 2 else EVALUATION)
    with locked_for_once(stem.with_suffix(".lock")):
        scores = score_folders(cases, organ_set, processes)
        print_tables(scores, organ_set)
        write_results(scores, organ_set, left_out, stem)


def choose_organs(choice: OrganChoice, dataset_json: Path | None) -> OrganSet:
    """The organ set of a choice.

    Raises:
        UserError: there is no such organ set or no dataset.json, or its file is invalid.
    """
    if choice.organs:
        return find_organs(choice.organs)
    if dataset_json is None:
        raise UserError(
            "there is no dataset.json in GT, beside it or in PRED that says which label is which "
            "organ: give -dataset_json or -organs"
        )
    print(f"labels of {dataset_json}", flush=True)
    return organs_of_dataset(dataset_json, choice.tolerance, choice.flare_tolerances)


def score_folders(
    cases: dict[str, Cases], organ_set: OrganSet, processes: int
) -> dict[str, Scores]:
    """The scores of every case of every folder.

    Raises:
        UserError: files cannot be compared. With several, all of them are listed on stderr.
    """
    jobs = {}
    for folder, of_folder in cases.items():
        for case, (predicted, reference) in of_folder.files.items():
            jobs[folder, case] = (predicted, reference, organ_set)

    # Headers first: a wrong grid shows up before hours of work on the other cases.
    wrong_grids = [grid_problem(predicted, reference) for predicted, reference, _ in jobs.values()]
    raise_problems([text for text in wrong_grids if text], len(jobs))

    scores = {}
    problems = []
    done = run_each(try_score, jobs, processes)
    for job, result in with_progress(done, "evaluating", len(jobs)):
        if isinstance(result, str):
            problems.append(result)
        else:
            scores[job] = result
    raise_problems(problems, len(jobs))

    return {
        folder: {case: scores[folder, case] for case in of_folder.files}
        for folder, of_folder in cases.items()
    }


def grid_problem(predicted: Path, reference: Path) -> str | None:
    """Why two files cannot be compared, None if they can; only their headers are read."""
    try:
        check_same_grid(predicted, reference)
    except UserError as error:
        return str(error)
    return None


def try_score(predicted: Path, reference: Path, organ_set: OrganSet) -> list[Score] | str:
    """The scores of one case, or why there are none."""
    try:
        return score_case(predicted, reference, organ_set)
    except UserError as error:
        return str(error)


def raise_problems(problems: list[str], jobs: int) -> None:
    """Raise UserError if there are problems; several are listed on stderr before."""
    if not problems:
        return

    what = problems[0]
    if len(problems) > 1:
        what = "they are listed above"
        for problem in problems:
            print(problem, file=sys.stderr)
    raise UserError(
        f"{len(problems)} of {jobs} predictions cannot be evaluated and nothing was written: {what}"
    )


def print_tables(scores: dict[str, Scores], organ_set: OrganSet) -> None:
    """A table for each folder of predictions and, of two, the table of their comparison."""
    for folder, of_folder in scores.items():
        title = f"{folder}: {len(of_folder)} cases, organs of {organ_set.name}"
        print("\n" + summary_table(title, summarise(of_folder), organ_set))

    if len(scores) == 2:
        first, second = scores
        comparison = compare(scores[first], scores[second])
        print("\n" + comparison_table(f"{first} less {second}", comparison))


def write_results(
    scores: dict[str, Scores], organ_set: OrganSet, left_out: tuple[str, ...], stem: Path
) -> None:
    """Write CSV, JSON and PNG. stem: their path without an ending."""
    write_csv(stem.with_suffix(".csv"), scores)
    write_json_atomically(stem.with_suffix(".json"), as_dict(organ_set, scores, left_out))
    save_figure(box_plot(scores), stem.with_suffix(".png"))
    print(f"\nwritten: {stem}.csv, .json and .png", flush=True)
