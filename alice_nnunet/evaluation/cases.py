"""The cases of a folder of references and of folders of predictions."""

from dataclasses import dataclass
from pathlib import Path

from alice_nnunet.errors import UserError
from alice_nnunet.evaluation.organs import load_json

FILE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".gipl")  # that label_image.py reads
LISTED = 10  # names that a message lists at most


@dataclass(frozen=True)
class Cases:
    """The cases of a folder of predictions.

    Attributes:
        files: case -> (prediction, reference).
        left_out: cases that only some of the folders have.
    """

    files: dict[str, tuple[Path, Path]]
    left_out: tuple[str, ...]


def find_dataset_json(predicted: Path, reference: Path) -> Path | None:
    """The dataset.json of the references or predictions, None if there is none.

    It may be in the folder of references, beside that folder, or among the predictions, where
    nnUNetv2_predict puts it.
    """
    for folder in (reference, reference.resolve().parent, predicted):
        path = folder / "dataset.json"
        if path.is_file():
            return path
    return None


def find_ending(reference: Path, dataset_json: Path | None) -> str:
    """The file ending of label images, from dataset.json or else from the references.

    Raises:
        UserError: dataset.json has no valid entry, or the references have no or several endings.
    """
    if dataset_json:
        content = load_json(dataset_json)
        ending = content.get("file_ending") if isinstance(content, dict) else None
        if not isinstance(ending, str) or not ending:
            raise UserError(f'{dataset_json}: "file_ending" must be like ".nii.gz", got {ending!r}')
        return ending

    endings = set()
    for path in folder_files(reference):
        endings |= {ending for ending in FILE_ENDINGS if path.name.endswith(ending)}
    if len(endings) == 1:
        return endings.pop()

    if endings:
        found = f"files that end in {' and in '.join(sorted(endings))}"
    else:
        found = "no file that ends in " + ", ".join(FILE_ENDINGS)
    raise UserError(
        f"{reference} has {found}. Put one kind of label images there, or give -dataset_json with "
        "the file_ending"
    )


def pair_cases(predicted: Path, reference: Path, ending: str, chill: bool = False) -> Cases:
    """The cases that both folders have, paired by file name.

    Args:
        predicted: folder of predictions.
        reference: folder of references.
        ending: file ending of label images.
        chill: leave out cases that only one folder has, instead of raising.

    Raises:
        UserError: only one of the folders has a case, or they have none in common.
    """
    predictions = cases_of(predicted, ending)
    references = cases_of(reference, ending)
    if not references:
        raise UserError(f"{reference} has no references: no file ends in {ending}")

    both = sorted(references & predictions)
    if not both:
        found = first_few([path.name for path in folder_files(predicted)]) or "no file"
        raise UserError(
            f"{predicted} has no prediction for any of the {len(references)} references in "
            f"{reference}: names must be the same, like {min(references)}{ending}; it has {found}"
        )

    missing = sorted(references - predictions)
    extra = sorted(predictions - references)
    problems = []
    if missing:
        problems.append(
            f"{len(missing)} of {len(references)} references have no prediction in {predicted}: "
            f"{first_few(missing)}"
        )
    if extra:
        problems.append(
            f"{len(extra)} predictions have no reference in {reference}: {first_few(extra)}"
        )
    if problems and not chill:
        raise UserError(
            f"{'; '.join(problems)}. To evaluate only the {len(both)} cases that are in both "
            "folders, add --chill"
        )

    files = {case: (predicted / (case + ending), reference / (case + ending)) for case in both}
    return Cases(files, tuple(missing + extra))


def shared_cases(cases: dict[str, Cases]) -> dict[str, Cases]:
    """The same cases for every folder of predictions: those that all of them have.

    Raises:
        UserError: the folders have no case in common.
    """
    shared = set.intersection(*(set(of_folder.files) for of_folder in cases.values()))
    if not shared:
        raise UserError(f"{' and '.join(cases)} have no case in common")

    restricted = {}
    for folder, of_folder in cases.items():
        files = {case: files for case, files in of_folder.files.items() if case in shared}
        left_out = set(of_folder.left_out) | set(of_folder.files) - shared
        restricted[folder] = Cases(files, tuple(left_out))
    return restricted


def cases_of(folder: Path, ending: str) -> set[str]:
    """The names, without ending, of the files with that ending."""
    names = [path.name for path in folder_files(folder)]
    return {name.removesuffix(ending) for name in names if name.endswith(ending)}


def folder_files(folder: Path) -> list[Path]:
    """The files of a folder without hidden ones, sorted.

    Raises:
        UserError: the folder cannot be read.
    """
    try:
        return sorted(
            path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")
        )
    except OSError as error:
        raise UserError(f"{folder} is not a readable folder: {error.strerror}") from None


def first_few(names: list[str]) -> str:
    """The names as text, only the first LISTED of them and how many more there are."""
    listed = ", ".join(names[:LISTED])
    more = len(names) - LISTED
    return f"{listed} and {more} more" if more > 0 else listed
