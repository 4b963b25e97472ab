"""The cases of a folder of references and of a folder of predictions."""

from dataclasses import dataclass
from pathlib import Path

from alice_nnunet.errors import UserError
from alice_nnunet.evaluation.organs import load_json

FILE_ENDINGS = (
    ".nii.gz",
    ".nii",
    ".nrrd",
    ".mha",
    ".mhd",
    ".gipl",
)  # what label_image.py reads; longer ones first
LISTED = 10


@dataclass(frozen=True)
class Cases:
    """files: case -> (prediction, reference). left_out: cases that only one of the folders has."""

    files: dict[str, tuple[Path, Path]]
    left_out: tuple[str, ...]


def find_dataset_json(predicted: Path, reference: Path) -> Path | None:
    """dataset.json in the folder of references, beside it, or among the predictions, where nnUNetv2_predict puts it."""
    places = [
        folder / "dataset.json" for folder in (reference, reference.resolve().parent, predicted)
    ]
    return next((path for path in places if path.is_file()), None)


def find_ending(reference: Path, dataset_json: Path | None) -> str:
    """How the names of label images end: as dataset.json says, or else as the references do.

    Raises UserError where that is not clear.
    """
    if dataset_json:
        content = load_json(dataset_json)
        ending = content.get("file_ending") if isinstance(content, dict) else None
        if not isinstance(ending, str) or not ending:
            raise UserError(f'{dataset_json}: "file_ending" must be like ".nii.gz", got {ending!r}')
        return ending
    names = [path.name for path in folder_files(reference)]
    endings = {next((e for e in FILE_ENDINGS if name.endswith(e)), None) for name in names} - {None}
    if len(endings) != 1:
        found = (
            f"files that end in {' and in '.join(sorted(endings))}"
            if endings
            else "no file that ends in " + ", ".join(FILE_ENDINGS)
        )
        raise UserError(
            f"{reference} has {found}; put one kind of label images there, or give -dataset_json with the file_ending"
        )
    return endings.pop()


def pair_cases(predicted: Path, reference: Path, ending: str, chill: bool = False) -> Cases:
    """The cases of both folders by name.

    Raises UserError where one folder has a case that the other has not, unless chill, and where they share none.
    """
    ours, theirs = (cases_of(folder, ending) for folder in (predicted, reference))
    if not theirs:
        raise UserError(f"{reference} has no reference: no file ends in {ending}")
    missing, extra, both = sorted(theirs - ours), sorted(ours - theirs), sorted(ours & theirs)
    if not both:
        raise UserError(
            f"{predicted} has no prediction for any of the {len(theirs)} references in {reference}: names must be the same, "
            f"like {sorted(theirs)[0]}{ending}; it has {some([path.name for path in folder_files(predicted)]) or 'no file'}"
        )
    if (missing or extra) and not chill:
        problems = (
            [
                f"{len(missing)} of {len(theirs)} references have no prediction in {predicted}: {some(missing)}"
            ]
            if missing
            else []
        )
        problems += (
            [f"{len(extra)} predictions have no reference in {reference}: {some(extra)}"]
            if extra
            else []
        )
        raise UserError(
            f"{'; '.join(problems)}. --chill evaluates the {len(both)} cases that are in both"
        )
    return Cases(
        {case: (predicted / (case + ending), reference / (case + ending)) for case in both},
        tuple(missing + extra),
    )


def cases_of(folder: Path, ending: str) -> set[str]:
    """The names, without their ending, of the files that end so."""
    return {
        path.name.removesuffix(ending)
        for path in folder_files(folder)
        if path.name.endswith(ending)
    }


def folder_files(folder: Path) -> list[Path]:
    """The files of a folder, sorted, hidden ones left out. Raises UserError where it is no folder."""
    try:
        return sorted(
            path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")
        )
    except OSError as error:
        raise UserError(f"{folder} is no folder that can be read: {error.strerror}") from None


def some(names: list[str]) -> str:
    """The first few of many."""
    return ", ".join(names[:LISTED]) + (
        f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    )
