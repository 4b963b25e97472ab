"""Which labels are evaluated, with which tolerance and by which rules: FLARE 2022's organs, BTCV's, a file's, or a dataset's."""

import json
from dataclasses import dataclass
from pathlib import Path

from alice_nnunet.errors import UserError

NO_VALUE = float("nan")  # not averaged


@dataclass(frozen=True)
class Organ:
    """labels: one, or several that are a region together. tolerance: mm, of the normalised surface Dice.

    reference_slices_only: evaluated on the axial slices on which the reference has it, and nowhere else.
    """

    name: str
    labels: tuple[int, ...]
    tolerance: float
    reference_slices_only: bool = False


@dataclass(frozen=True)
class OrganSet:
    """both_empty: DSC and NSD of an organ that neither the reference nor the prediction has; NaN leaves it out of every mean.

    ignore: the reference's label for voxels that are left out, as in nnU-Net.
    """

    name: str
    organs: tuple[Organ, ...]
    both_empty: float = NO_VALUE
    ignore: int | None = None

    @property
    def labels(self) -> set[int]:
        """Every label that an organ has."""
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

One difference: their script cuts the aorta, the vena cava and the esophagus to [first, last) slice of the reference and so
loses the last one; here every slice on which the reference has the organ counts, and none between on which it has not.
benchmarks/evaluation.py measures what that makes out.
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
"""BTCV's organs. BTCV prescribes no tolerance (it ranks by DSC and by surface distances in mm): FLARE 2022's are taken, and for
the portal and splenic veins, which FLARE has not, that of the other vessels. All slices count."""

ORGAN_SETS = {organ_set.name: organ_set for organ_set in (FLARE22, BTCV)}


def find_organs(name_or_file: str) -> OrganSet:
    """One of ORGAN_SETS, or what a JSON file says. Raises UserError where it is neither, or the file is wrong."""
    if name_or_file in ORGAN_SETS:
        return ORGAN_SETS[name_or_file]
    path = Path(name_or_file)
    if not path.is_file():
        raise UserError(f"-organs: {name_or_file} is neither {' nor '.join(ORGAN_SETS)} nor a file")
    return organs_of_file(path)


def organs_of_file(path: Path) -> OrganSet:
    """An organ set in JSON, for example

        {"organs": {"liver": {"labels": 1, "tolerance_mm": 5},
                    "kidneys": {"labels": [2, 3], "tolerance_mm": 3, "reference_slices_only": true}},
         "both_empty": 1, "ignore": 4}

    Only "organs" with "labels" and "tolerance_mm" must be there; "both_empty": null, the default, leaves out what is in neither.
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
    return checked(
        path,
        OrganSet(
            path.stem,
            organs,
            NO_VALUE if both_empty is None else float(both_empty),
            content.get("ignore"),
        ),
    )


def organ_of_entry(path: Path, name: str, entry: object) -> Organ:
    """One organ of a JSON file. Raises UserError where something is missing, of the wrong kind, or unknown."""
    if not isinstance(entry, dict):
        raise UserError(
            f'{path}: {name} must be like {{"labels": 1, "tolerance_mm": 2}}, got {json.dumps(entry)}'
        )
    check_keys(path, f"{name}: ", entry, {"labels", "tolerance_mm", "reference_slices_only"})
    tolerance, slices_only = entry.get("tolerance_mm"), entry.get("reference_slices_only", False)
    if (
        isinstance(tolerance, bool)
        or not isinstance(tolerance, (int, float))
        or not 0 <= tolerance < float("inf")
    ):
        raise UserError(
            f'{path}: {name}: "tolerance_mm" must be a number of mm, 0 or more, got {json.dumps(tolerance)}'
        )
    if not isinstance(slices_only, bool):
        raise UserError(
            f'{path}: {name}: "reference_slices_only" must be true or false, got {json.dumps(slices_only)}'
        )
    return Organ(name, label_tuple(path, name, entry.get("labels")), float(tolerance), slices_only)


def organs_of_dataset(path: Path, tolerance: float, flare_tolerances: bool = False) -> OrganSet:
    """The labels, regions and ignore label of a dataset.json, as nnU-Net reads it: what is in neither image is left out.

    tolerance: mm, of every organ; with flare_tolerances, of those whose name FLARE22 has not.
    """
    content = load_json(path)
    labels = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(labels, dict) or not labels:
        raise UserError(
            f'{path}: "labels" must be like {{"background": 0, "liver": 1}}, got {json.dumps(labels)}'
        )
    known = (
        {words_of(organ.name): organ.tolerance for organ in FLARE22.organs}
        if flare_tolerances
        else {}
    )
    organs = tuple(
        Organ(name, label_tuple(path, name, value), known.get(words_of(name), tolerance))
        for name, value in labels.items()
        if name != "ignore" and value not in (0, [0])
    )
    return checked(
        path, OrganSet(path.parent.name or path.stem, organs, ignore=labels.get("ignore"))
    )


def words_of(name: str) -> frozenset[str]:
    """An organ's name in a form that is the same for kidney_right and Right Kidney, IVC and inferior vena cava."""
    words = name.lower().replace("_", " ").replace("-", " ").replace("oesophagus", "esophagus")
    words = {"ivc": "inferior vena cava", "postcava": "inferior vena cava"}.get(words, words)
    return frozenset(words.split()) - {"gland"}


def label_tuple(path: Path, name: str, value: object) -> tuple[int, ...]:
    """A label or a list of labels as a tuple. Raises UserError for anything else."""
    labels = value if isinstance(value, list) else [value]
    if not labels or any(
        isinstance(label, bool) or not isinstance(label, int) or label < 0 for label in labels
    ):
        raise UserError(
            f"{path}: the label of {name} must be a whole number, 0 or more, or a list of them, got {json.dumps(value)}"
        )
    return tuple(labels)


def checked(path: Path, organ_set: OrganSet) -> OrganSet:
    """organ_set, if its labels make sense together. Raises UserError otherwise."""
    if not organ_set.organs:
        raise UserError(f"{path} names no label but the background")
    ignore = organ_set.ignore
    if ignore is not None and (
        isinstance(ignore, bool) or not isinstance(ignore, int) or ignore in organ_set.labels | {0}
    ):
        raise UserError(
            f'{path}: "ignore" must be a whole number that no organ has, got {json.dumps(ignore)}'
        )
    if 0 in organ_set.labels:
        raise UserError(f"{path}: label 0 is the background and no part of an organ")
    return organ_set


def check_keys(path: Path, where: str, content: dict, known: set[str]) -> None:
    """Raise UserError where content has a key that is not known."""
    if unknown := sorted(content.keys() - known):
        raise UserError(
            f"{path}: {where}unknown entry {', '.join(unknown)}; there are {', '.join(sorted(known))}"
        )


def load_json(path: Path) -> object:
    """What a JSON file holds. Raises UserError where it cannot be read."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None
