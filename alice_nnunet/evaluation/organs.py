"""Which labels are evaluated, with which tolerance and by which rules.

An organ set is FLARE 2022's, BTCV's, that of a JSON file, or the labels of a dataset.json.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alice_nnunet.errors import UserError

NO_VALUE = float("nan")  # left out of every mean


@dataclass(frozen=True)
class Organ:
    """One organ or region.

    Attributes:
        name: of the organ.
        labels: its label, or several that together are a region.
        tolerance: mm, of the normalised surface Dice.
        reference_slices_only: whether only the axial slices count on which the reference has it.
    """

    name: str
    labels: tuple[int, ...]
    tolerance: float
    reference_slices_only: bool = False


@dataclass(frozen=True)
class OrganSet:
    """The organs of an evaluation.

    Attributes:
        name: of the set.
        organs: in the order of the tables.
        both_empty: DSC and NSD of an organ that is in neither reference nor prediction; NaN leaves
            it out of every mean.
        ignore: label in the reference of voxels that do not count, as in nnU-Net.
    """

    name: str
    organs: tuple[Organ, ...]
    both_empty: float = NO_VALUE
    ignore: int | None = None

    @property
    def labels(self) -> set[int]:
        """All labels of all organs."""
        return {label for organ in self.organs for label in organ.labels}


FLARE22 = OrganSet(
    "flare22",
    (
        Organ("liver", (1,), 5.0),
        Organ("right kidney", (2,), 3.0),
        Organ("spleen", (3,), 3.0),
        Organ("pancreas", (4,), 5.0),
        Organ("aorta", (5,), 2.0, reference_slices_only=True),
        Organ("inferior vena cava", (6,), 2.0, reference_slices_only=True),
        Organ("right adrenal gland", (7,), 2.0),
        Organ("left adrenal gland", (8,), 2.0),
        Organ("gallbladder", (9,), 2.0),
        Organ("esophagus", (10,), 3.0, reference_slices_only=True),
        Organ("stomach", (11,), 5.0),
        Organ("duodenum", (12,), 7.0),
        Organ("left kidney", (13,), 3.0),
    ),
    both_empty=1.0,
)
"""FLARE 2022's organs, tolerances and rules (FLARE22_DSC_NSD_Eval.py of github.com/JunMa11/FLARE).

One difference: for the aorta, the vena cava and the esophagus their script takes the slices
[first, last) of the reference and so loses the last one. Here every slice on which the reference
has the organ counts, and none between on which it has not. benchmarks/evaluation.py measures the
effect.
"""

BTCV = OrganSet(
    "btcv",
    (
        Organ("spleen", (1,), 3.0),
        Organ("right kidney", (2,), 3.0),
        Organ("left kidney", (3,), 3.0),
        Organ("gallbladder", (4,), 2.0),
        Organ("esophagus", (5,), 3.0),
        Organ("liver", (6,), 5.0),
        Organ("stomach", (7,), 5.0),
        Organ("aorta", (8,), 2.0),
        Organ("inferior vena cava", (9,), 2.0),
        Organ("portal and splenic veins", (10,), 2.0),
        Organ("pancreas", (11,), 5.0),
        Organ("right adrenal gland", (12,), 2.0),
        Organ("left adrenal gland", (13,), 2.0),
    ),
)
"""BTCV's organs, on all slices.

BTCV prescribes no tolerance (it ranks by DSC and by surface distances in mm), so FLARE 2022's are
used; the portal and splenic veins, which FLARE does not have, get that of the other vessels.
"""

ORGAN_SETS = {organ_set.name: organ_set for organ_set in (FLARE22, BTCV)}
SYNONYMS = {"ivc": "inferior vena cava", "postcava": "inferior vena cava"}


def find_organs(name_or_file: str) -> OrganSet:
    """One of ORGAN_SETS by its name, or the set in a JSON file.

    Raises:
        UserError: it is neither, or the file is invalid.
    """
    if name_or_file in ORGAN_SETS:
        return ORGAN_SETS[name_or_file]
    path = Path(name_or_file)
    if not path.is_file():
        raise UserError(f"-organs: {name_or_file} is neither {' nor '.join(ORGAN_SETS)} nor a file")
    return organs_of_file(path)


def organs_of_file(path: Path) -> OrganSet:
    """Read an organ set from JSON.

    For example:

        {"organs": {"liver": {"labels": 1, "tolerance_mm": 5},
                    "kidneys": {"labels": [2, 3], "tolerance_mm": 3,
                                "reference_slices_only": true}},
         "both_empty": 1, "ignore": 4}

    Only "organs" with "labels" and "tolerance_mm" are required. "both_empty": null, the default,
    leaves out organs that are in neither image.

    Raises:
        UserError: an entry is missing, unknown or of the wrong kind.
    """
    content = load_json(path)
    entries = content.get("organs") if isinstance(content, dict) else None
    if not isinstance(entries, dict) or not entries:
        raise UserError(
            f'{path} must hold {{"organs": {{"NAME": {{"labels": 1, "tolerance_mm": 2}}, ...}}}}'
        )
    check_keys(path, "", content, {"organs", "both_empty", "ignore"})
    organs = tuple(organ_of_entry(path, name, entry) for name, entry in entries.items())

    both_empty = content.get("both_empty")
    if both_empty not in (None, 0, 1):
        raise UserError(f'{path}: "both_empty" must be 1, 0 or null, got {json.dumps(both_empty)}')

    value = NO_VALUE if both_empty is None else float(both_empty)
    organ_set = OrganSet(path.stem, organs, value, content.get("ignore"))
    check_labels_differ(path, organ_set)
    return organ_set


def organ_of_entry(path: Path, name: str, entry: Any) -> Organ:
    """One organ of a JSON file.

    Raises:
        UserError: an entry is missing, unknown or of the wrong kind.
    """
    if not isinstance(entry, dict):
        raise UserError(
            f'{path}: {name} must be like {{"labels": 1, "tolerance_mm": 2}}, '
            f"got {json.dumps(entry)}"
        )
    check_keys(path, f"{name}: ", entry, {"labels", "tolerance_mm", "reference_slices_only"})

    tolerance: Any = entry.get("tolerance_mm")
    is_number = isinstance(tolerance, (int, float)) and not isinstance(tolerance, bool)
    if not is_number or not 0 <= tolerance < float("inf"):
        raise UserError(
            f'{path}: {name}: "tolerance_mm" must be a number of mm, 0 or more, '
            f"got {json.dumps(tolerance)}"
        )

    slices_only = entry.get("reference_slices_only", False)
    if not isinstance(slices_only, bool):
        raise UserError(
            f'{path}: {name}: "reference_slices_only" must be true or false, '
            f"got {json.dumps(slices_only)}"
        )
    return Organ(name, label_tuple(path, name, entry.get("labels")), float(tolerance), slices_only)


def organs_of_dataset(path: Path, tolerance: float, flare_tolerances: bool = False) -> OrganSet:
    """The labels, regions and ignore label of a dataset.json, as nnU-Net reads them.

    An organ that is in neither image is left out.

    Args:
        path: the dataset.json.
        tolerance: mm, of every organ; with flare_tolerances, of those that FLARE22 does not have.
        flare_tolerances: take FLARE 2022's tolerance for organs of the same name.

    Raises:
        UserError: the file has no valid labels.
    """
    content = load_json(path)
    labels = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(labels, dict) or not labels:
        raise UserError(
            f'{path}: "labels" must be like {{"background": 0, "liver": 1}}, '
            f"got {json.dumps(labels)}"
        )

    tolerances = {}
    if flare_tolerances:
        tolerances = {words_of(organ.name): organ.tolerance for organ in FLARE22.organs}
    organs = tuple(
        Organ(name, label_tuple(path, name, value), tolerances.get(words_of(name), tolerance))
        for name, value in labels.items()
        if name != "ignore" and value not in (0, [0])
    )

    organ_set = OrganSet(path.parent.name or path.stem, organs, ignore=labels.get("ignore"))
    check_labels_differ(path, organ_set)
    return organ_set


def words_of(name: str) -> frozenset[str]:
    """The words of an organ's name, equal for spellings of the same organ.

    kidney_right is Right Kidney, IVC is inferior vena cava.
    """
    words = name.lower().replace("_", " ").replace("-", " ").replace("oesophagus", "esophagus")
    return frozenset(SYNONYMS.get(words, words).split()) - {"gland"}


def label_tuple(path: Path, name: str, value: Any) -> tuple[int, ...]:
    """A label or a list of labels as a tuple.

    Raises:
        UserError: it is something else.
    """
    labels = value if isinstance(value, list) else [value]
    if not labels or not all(is_integer(label) and label >= 0 for label in labels):
        raise UserError(
            f"{path}: the label of {name} must be a whole number, 0 or more, or a list of them, "
            f"got {json.dumps(value)}"
        )
    return tuple(labels)


def check_labels_differ(path: Path, organ_set: OrganSet) -> None:
    """Check that organs, background and ignored voxels have different labels.

    Raises:
        UserError: they do not, or there is no organ.
    """
    if not organ_set.organs:
        raise UserError(f"{path} names no label but the background")

    ignore = organ_set.ignore
    if ignore is not None and (not is_integer(ignore) or ignore in organ_set.labels | {0}):
        raise UserError(
            f'{path}: "ignore" must be a whole number that no organ has, got {json.dumps(ignore)}'
        )
    if 0 in organ_set.labels:
        raise UserError(f"{path}: label 0 is the background and cannot be part of an organ")


def is_integer(value: object) -> bool:
    """Whether a value from JSON is a whole number; true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_keys(path: Path, where: str, content: dict, known: set[str]) -> None:
    """Raise UserError where content has an unknown entry."""
    unknown = sorted(content.keys() - known)
    if unknown:
        raise UserError(
            f"{path}: {where}unknown entry {', '.join(unknown)}; "
            f"possible are {', '.join(sorted(known))}"
        )


def load_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None
