"""Who is trained on, who chooses the checkpoint, and who is tested: by patient, by class."""

from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import StratifiedKFold

from alice_nnunet.classification.cases import LabeledScans, patients_by_class
from alice_nnunet.errors import UserError

TEST_SHARE = 0.2  # of the patients of each class (Alice, B.1)
VALIDATION_SHARE = 0.1
FEWEST_PATIENTS = 3  # of a class: one in each part


@dataclass(frozen=True)
class Split:
    """Names of cases; no patient is in two parts."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


def random_split(scans: LabeledScans, seed: int, percent: int) -> Split:
    """70 % of the patients of each class for training, 10 % for validation, 20 % for testing.

    Every part has at least one patient of each class.

    Args:
        scans: to split.
        seed: of the draw.
        percent: of the patients for training that are kept. Those of a smaller share are among
            those of a larger one; validation and test are the same for all.

    Raises:
        UserError: a class has fewer than three patients.
    """
    by_class = patients_by_class(scans.cases)
    require_patients(scans, by_class, FEWEST_PATIENTS, "training, validation and test need one")
    rng = np.random.default_rng(seed)

    train: list[str] = []
    validation: list[str] = []
    test: list[str] = []
    for patients in by_class.values():
        order = [patients[i] for i in rng.permutation(len(patients))]
        tested = share(len(order), TEST_SHARE)
        validated = share(len(order), VALIDATION_SHARE)
        test += order[:tested]
        validation += order[tested : tested + validated]
        train += kept(order[tested + validated :], percent)
    return cases_of(scans, train, validation, test)


def fold_split(scans: LabeledScans, folds: int, fold: int, percent: int) -> Split:
    """One fold of a cross-validation for testing, an eighth of the others for validation.

    Args:
        scans: to split.
        folds: number of folds.
        fold: 0 to folds - 1.
        percent: as in random_split.

    Raises:
        UserError: a class has fewer patients than folds, or than three.
    """
    by_class = patients_by_class(scans.cases)
    fewest = max(folds, FEWEST_PATIENTS)
    require_patients(scans, by_class, fewest, f"{folds} folds need one in each")
    patients = [patient for of_class in by_class.values() for patient in of_class]
    labels = [label for label, of_class in by_class.items() for _ in of_class]

    halves = list(StratifiedKFold(folds, shuffle=True, random_state=0).split(patients, labels))
    test = [patients[i] for i in halves[fold][1]]
    rng = np.random.default_rng(fold)

    train: list[str] = []
    validation: list[str] = []
    for of_class in by_class.values():
        others = [patient for patient in of_class if patient not in test]
        order = [others[i] for i in rng.permutation(len(others))]
        validated = share(len(order), VALIDATION_SHARE / (1 - TEST_SHARE))
        validation += order[:validated]
        train += kept(order[validated:], percent)
    return cases_of(scans, train, validation, test)


def share(number: int, part: float) -> int:
    """A part of a number, rounded, at least 1."""
    return max(1, round(number * part))


def kept(patients: list[str], percent: int) -> list[str]:
    """The first patients, at least one."""
    return patients[: share(len(patients), percent / 100)]


def require_patients(
    scans: LabeledScans, by_class: dict[int, list[str]], fewest: int, reason: str
) -> None:
    """Raise UserError if a class has too few patients, or none that it is the most frequent of."""
    for label, name in enumerate(scans.classes):
        found = len(by_class.get(label, []))
        if found < fewest:
            raise UserError(
                f"the class {name!r} has {found} patients and needs at least {fewest}: {reason} "
                f"of each class. Add scans of it, or leave it out of the labels"
            )


def cases_of(
    scans: LabeledScans, train: list[str], validation: list[str], test: list[str]
) -> Split:
    """The cases of these patients, in the order of the data set."""

    def names(patients: list[str]) -> tuple[str, ...]:
        wanted = set(patients)
        return tuple(case.name for case in scans.cases if case.patient in wanted)

    return Split(names(train), names(validation), names(test))
