"""Scans with their classes: nnU-Net's raw images with a CSV file, or MosMedData's folders."""

import csv
import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from alice_nnunet.datasets.raw_dataset import first_few, open_raw_dataset
from alice_nnunet.errors import UserError
from alice_nnunet.features.folder import find_scans

CASE_COLUMNS = ("case", "name", "id", "study", "study_id", "scan", "image")
LABEL_COLUMNS = ("label", "class", "category", "target")
PATIENT_COLUMNS = ("patient", "patient_id", "subject", "subject_id")
DELIMITERS = ",;\t"

STUDIES = "studies"  # of MosMedData
NEGATIVE = "CT-0"  # its folder of scans without findings
MOSMED_FOLDERS = ("CT-0", "CT-1", "CT-2", "CT-3", "CT-4")
MOSMED_CLASSES = ("CT-0", "CT-1 to CT-4")


@dataclass(frozen=True)
class Case:
    """A scan with its class.

    Attributes:
        name: of the scan.
        files: one for each channel.
        label: index of the class.
        patient: whom the scan shows; the scan's own name where nothing else is known.
    """

    name: str
    files: tuple[Path, ...]
    label: int
    patient: str


@dataclass(frozen=True)
class LabeledScans:
    """All scans of a data set that have a class.

    Attributes:
        name: of the data set.
        classes: names, in the order of the labels; the second of two is the positive one.
        cases: sorted by name.
        notes: what was passed over, one line each.
    """

    name: str
    classes: tuple[str, ...]
    cases: tuple[Case, ...]
    notes: tuple[str, ...] = ()


def open_labeled_scans(dataset: str, labels: Path | None, channels: int) -> LabeledScans:
    """Find the scans of a data set and their classes.

    Args:
        dataset: ID or name in nnUNet_raw, or a folder with MosMedData's `studies`.
        labels: CSV file of a dataset in nnUNet_raw; of MosMedData None, or a CSV in place of the
            names of its folders.
        channels: of each scan.

    Raises:
        UserError: there is no such data set, or its classes cannot be used.
    """
    folder = Path(dataset)
    if (folder / STUDIES).is_dir() or folder.name == STUDIES:
        studies = folder if folder.name == STUDIES else folder / STUDIES
        return mosmed_scans(studies, labels, channels)
    if folder.is_dir() and len(folder.parts) > 1:
        raise UserError(
            f"{folder} has no folder {STUDIES} with {', '.join(MOSMED_FOLDERS)}: give a data set "
            f"in MosMedData's layout, or the ID of one in nnUNet_raw"
        )

    if labels is None:
        raise UserError("the scans of a dataset in nnUNet_raw need classes: -labels FILE.csv")
    raw = open_raw_dataset(dataset)
    if len(raw.dataset_json["channel_names"]) != channels:
        raise UserError(
            f"{raw.name} has {len(raw.dataset_json['channel_names'])} channels and the encoder "
            f"takes {channels}"
        )
    return with_table(raw.name, raw.cases, labels, raw.rejected)


def mosmed_scans(studies: Path, labels: Path | None, channels: int) -> LabeledScans:
    """The scans in MosMedData's published layout: CT-0 against CT-1 to CT-4 (Alice, B.1).

    Every study is of another person.
    """
    found: dict[str, list[Path]] = {}
    label_of: dict[str, int] = {}
    notes = []
    for name in MOSMED_FOLDERS:
        folder = studies / name
        if not folder.is_dir() or not any(folder.iterdir()):
            notes.append(f"{folder} is missing or empty")
            continue

        scans, failed = find_scans(folder, channels)
        notes += [f"{folder.name}/{scan}: {reason}" for scan, reason in failed.items()]
        for scan, files in scans.items():
            if scan in found:
                raise UserError(f"{scan} is in {found[scan][0].parent} and in {folder}: remove one")
            found[scan] = files
            label_of[scan] = int(name != NEGATIVE)

    name = studies.resolve().parent.name
    if labels is not None:
        return with_table(name, found, labels, {})
    for label, text in enumerate(MOSMED_CLASSES):
        if label not in label_of.values():
            raise UserError(f"there is no scan of {text} in {studies}: two classes are needed")

    cases = [Case(n, tuple(found[n]), label_of[n], n) for n in sorted(found)]
    return LabeledScans(name, MOSMED_CLASSES, tuple(cases), tuple(notes))


@dataclass(frozen=True)
class Row:
    """A line of a table: a scan, the name of its class, and whom it shows."""

    case: str
    label: str
    patient: str

    @property
    def described(self) -> str:
        """The class, and whom the scan shows where that is not the scan's own name."""
        return repr(self.label) + ("" if self.patient == self.case else f" of {self.patient}")


def with_table(
    name: str, scans: dict[str, list[Path]], table: Path, rejected: dict[str, str]
) -> LabeledScans:
    """Scans with the classes of a table. Scans without a line are passed over, with a note.

    Raises:
        UserError: a line names no scan, or there are fewer than two classes.
    """
    rows = read_table(table)
    unknown = [row.case for row in rows if row.case not in scans]
    if unknown:
        reasons = [f"{case} ({rejected[case]})" if case in rejected else case for case in unknown]
        raise UserError(
            f"{table} names {len(unknown)} cases that {name} does not have: {first_few(reasons)}. "
            f"Remove the lines, or add the images"
        )

    classes = sorted({row.label for row in rows}, key=by_number)
    if len(classes) < 2:
        raise UserError(
            f"{table}: all {len(rows)} cases have the class {classes[0]!r}; two or more classes "
            f"are needed"
        )

    named = {row.case for row in rows}
    without = sorted(set(scans) - named)
    notes = []
    if without:
        notes.append(f"{len(without)} cases have no line in {table.name}: {first_few(without)}")

    cases = []
    for row in sorted(rows, key=lambda row: row.case):
        files = tuple(scans[row.case])
        cases.append(Case(row.case, files, classes.index(row.label), row.patient))
    return LabeledScans(name, tuple(classes), tuple(cases), tuple(notes))


def by_number(label: str) -> tuple[float, str]:
    """A key that sorts classes by number where they are numbers, else by name."""
    try:
        return float(label), label
    except ValueError:
        return float("inf"), label


def read_table(path: Path) -> list[Row]:
    """Read a CSV file with the columns case and label, and patient where it is known.

    Commas, semicolons or tabs; a byte order mark, quotes, empty lines and spaces around values do
    not matter. A line that comes twice counts once.

    Raises:
        UserError: the file cannot be read, columns or values are missing, or one case has two
            classes or patients.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"-labels: there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"-labels: {path} cannot be read as text in UTF-8 ({error})") from None

    lines = list(csv.reader(io.StringIO(text), delimiter=delimiter_of(text)))
    numbered = [
        (number, [cell.strip() for cell in cells])
        for number, cells in enumerate(lines, 1)
        if any(cell.strip() for cell in cells)
    ]
    if len(numbered) < 2:
        raise UserError(f"{path} is empty: it needs a line `case,label` and a line for each scan")

    head = [cell.lower() for cell in numbered[0][1]]
    case_column = column(head, CASE_COLUMNS, path, "case")
    label_column = column(head, LABEL_COLUMNS, path, "label")
    patient_column = next((head.index(n) for n in PATIENT_COLUMNS if n in head), None)

    rows: dict[str, Row] = {}
    for number, cells in numbered[1:]:
        cells = [*cells, *[""] * (len(head) - len(cells))]
        case = cells[case_column]
        label = cells[label_column]
        if not case or not label:
            raise UserError(f"{path}, line {number}: the case or its label is empty")

        patient = case if patient_column is None else cells[patient_column] or case
        row = Row(case, label, patient)
        if rows.setdefault(case, row) != row:
            raise UserError(
                f"{path}, line {number}: {case} is {row.described}, and an earlier line says "
                f"{rows[case].described}: keep one of them"
            )
    return list(rows.values())


def delimiter_of(text: str) -> str:
    """What separates the columns: of the first line that is not empty, the most frequent."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    return max(DELIMITERS, key=first.count)


def column(head: list[str], names: tuple[str, ...], path: Path, meaning: str) -> int:
    """The number of the column of one of these names. Raises UserError if there is none."""
    found = [name for name in names if name in head]
    if not found:
        raise UserError(
            f"{path} has no column {meaning!r}: its first line is {', '.join(head)}; expected "
            f"`case,label` or `case,label,patient`"
        )
    return head.index(found[0])


def patients_by_class(cases: tuple[Case, ...]) -> dict[int, list[str]]:
    """Patients of each class, sorted. A patient of several classes counts for the most frequent."""
    labels: dict[str, Counter] = {}
    for case in cases:
        labels.setdefault(case.patient, Counter())[case.label] += 1

    by_class: dict[int, list[str]] = {label: [] for label in sorted({c.label for c in cases})}
    for patient in sorted(labels):
        most = max(labels[patient].items(), key=lambda item: (item[1], -item[0]))
        by_class[most[0]].append(patient)
    return by_class
