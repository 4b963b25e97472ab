"""Tables of classes, MosMedData's folders, and splits by patient."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alice_nnunet.classification.cases import (
    Case,
    LabeledScans,
    mosmed_scans,
    read_table,
    with_table,
)
from alice_nnunet.classification.splits import fold_split, random_split
from alice_nnunet.errors import UserError

SCANS = {name: [Path(f"{name}_0000.nii.gz")] for name in ("a", "b", "c")}


def table(tmp_path: Path, text: str, encoding: str = "utf-8") -> Path:
    path = tmp_path / "labels.csv"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize(
    "text, encoding",
    [
        ("case,label\na,0\nb,1\nc,0\n", "utf-8"),
        ("case,label\r\na,0\r\nb,1\r\nc,0", "utf-8-sig"),
        ("case;label\na;0\nb;1\nc;0\n", "utf-8"),
        ("\n case , label \n\na,0\n , \nb, 1\n\n\nc,0\n\n", "utf-8-sig"),
        ("label\tother\tcase\n0\tx,y\ta\n1\t\tb\n0\t;;\tc\n", "utf-8"),
        ('Case,Label\n"a","0"\n"b","1"\nc,0\nc,0\n', "utf-8"),
    ],
)
def test_tables_of_every_form_are_read_the_same(tmp_path, text, encoding):
    found = with_table("X", SCANS, table(tmp_path, text, encoding), {})
    assert found.classes == ("0", "1")
    assert [(c.name, c.label, c.patient) for c in found.cases] == [
        ("a", 0, "a"),
        ("b", 1, "b"),
        ("c", 0, "c"),
    ]


@pytest.mark.parametrize(
    "text, message",
    [
        ("case,label\na,0\nb,1\nz,1\n", "1 cases that X does not have: z"),
        ("case,label\na,0\nb,0\n", "all 2 cases have the class '0'"),
        ("case,label\na,0\nb,1\na,1\n", "line 4: a is '1', and an earlier line says '0'"),
        (
            "case,label,patient\na,0,p\nb,1,p\na,0,q\n",
            "line 4: a is '0' of q, and an earlier line says '0' of p",
        ),
        ("case,label\na,0\nb,\n", "line 3: the case or its label is empty"),
        ("scan_name,label\na,0\n", "no column 'case'"),
        ("case,label\n\n", "is empty"),
        ("", "is empty"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        with_table("X", SCANS, table(tmp_path, text), {})


def test_a_missing_file_and_other_bytes_are_refused(tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        read_table(tmp_path / "none.csv")
    with pytest.raises(UserError, match="UTF-8"):
        read_table(table(tmp_path, "case,label\nä,1\n", "latin-1"))


def test_scans_without_a_line_are_named(tmp_path):
    found = with_table("X", SCANS, table(tmp_path, "case,label\na,10\nb,9\n"), {})
    assert found.classes == ("9", "10")
    assert found.notes == ("1 cases have no line in labels.csv: c",)


def mosmed(folder: Path, numbers: dict[str, int]) -> Path:
    study = 0
    for name, number in numbers.items():
        (folder / "studies" / name).mkdir(parents=True)
        for _ in range(number):
            study += 1
            (folder / "studies" / name / f"study_{study:04d}.nii.gz").touch()
    return folder / "studies"


def test_mosmeds_folders_are_ct0_against_the_rest(tmp_path):
    studies = mosmed(tmp_path / "COVID19_1110", {"CT-0": 2, "CT-1": 3, "CT-3": 1, "CT-4": 1})
    found = mosmed_scans(studies, None, 1)
    assert found.name == "COVID19_1110" and len(found.cases) == 7
    assert {c.name: c.label for c in found.cases} == {
        f"study_{n:04d}": int(n > 2) for n in range(1, 8)
    }
    assert any("CT-2 is missing or empty" in note for note in found.notes)

    with pytest.raises(UserError, match="no scan of CT-0"):
        mosmed_scans(mosmed(tmp_path / "other", {"CT-1": 3}), None, 1)


def labeled(patients: list[tuple[int, int]]) -> LabeledScans:
    """Scans of patients, each given as (class, number of scans)."""
    cases = []
    for patient, (label, number) in enumerate(patients):
        for scan in range(number):
            cases.append(Case(f"p{patient}s{scan}", (), label, f"p{patient}"))
    classes = tuple(str(label) for label in sorted({label for label, _ in patients}))
    return LabeledScans("X", classes, tuple(cases))


people = st.tuples(
    st.lists(st.integers(1, 3), min_size=5, max_size=60),
    st.lists(st.integers(1, 3), min_size=5, max_size=60),
)


@settings(max_examples=40, deadline=None)
@given(people, st.integers(0, 99), st.booleans())
def test_splits_keep_patients_together_and_classes_apart(numbers, seed, folds):
    scans = labeled([(label, n) for label in (0, 1) for n in numbers[label]])
    label_of = {case.name: case.label for case in scans.cases}

    def split(percent: int):
        if folds:
            return fold_split(scans, 5, seed % 5, percent)
        return random_split(scans, seed, percent)

    whole = split(100)
    parts = (whole.train, whole.validation, whole.test)
    assert sorted(name for part in parts for name in part) == sorted(label_of)
    patients = [{name.split("s")[0] for name in part} for part in parts]
    assert not patients[0] & patients[1] | patients[0] & patients[2] | patients[1] & patients[2]

    for part, share in zip(patients, (0.7, 0.1, 0.2)):
        for label in (0, 1):
            total = len(numbers[label])
            found = sum(label_of[f"{patient}s0"] == label for patient in part)
            assert found >= 1 and abs(found - share * total) <= 1.6

    assert split(100) == whole  # reproducible
    fifth = split(20)
    assert set(fifth.train) <= set(split(50).train) <= set(whole.train)
    assert (fifth.validation, fifth.test) == (whole.validation, whole.test)
    assert {label_of[name] for name in fifth.train} == {0, 1}


def test_folds_test_everybody_once_and_seeds_differ():
    scans = labeled([(label, 2) for label in (0, 1) for _ in range(20)])
    tested = [name for fold in range(10) for name in fold_split(scans, 10, fold, 100).test]
    assert sorted(tested) == sorted(case.name for case in scans.cases)
    assert len({random_split(scans, seed, 100).test for seed in range(10)}) == 10


def test_a_class_of_two_members_is_refused():
    scans = labeled([(0, 1)] * 9 + [(1, 3)] * 2)
    with pytest.raises(UserError, match="class '1' has 2 patients and needs at least 3"):
        random_split(scans, 0, 100)
    with pytest.raises(UserError, match="needs at least 5: 5 folds"):
        fold_split(scans, 5, 0, 100)


def test_numbers_of_patients_are_seventy_ten_twenty():
    scans = labeled([(0, 1)] * 254 + [(1, 1)] * 856)  # MosMedData
    split = random_split(scans, 0, 100)
    parts = [len(split.train), len(split.validation), len(split.test)]
    assert np.allclose(np.array(parts) / 1110, (0.7, 0.1, 0.2), atol=0.002)
