import json
import math

import pytest

from alice_nnunet.errors import UserError
from alice_nnunet.evaluation.organs import BTCV, FLARE22, Organ, find_organs, organs_of_dataset


def written(tmp_path, content, name="organs.json"):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_flare_2022_as_it_was_announced():
    tolerances = {o.name: o.tolerance for o in FLARE22.organs}
    assert list(tolerances.items()) == [
        ("liver", 5),
        ("right kidney", 3),
        ("spleen", 3),
        ("pancreas", 5),
        ("aorta", 2),
        ("inferior vena cava", 2),
        ("right adrenal gland", 2),
        ("left adrenal gland", 2),
        ("gallbladder", 2),
        ("esophagus", 3),
        ("stomach", 5),
        ("duodenum", 7),
        ("left kidney", 3),
    ]
    assert [o.labels for o in FLARE22.organs] == [(i,) for i in range(1, 14)]
    assert {o.name for o in FLARE22.organs if o.reference_slices_only} == {
        "aorta",
        "inferior vena cava",
        "esophagus",
    }
    assert FLARE22.both_empty == 1 and find_organs("flare22") is FLARE22


def test_btcv_takes_flares_tolerances_and_all_slices():
    flare = {o.name: o.tolerance for o in FLARE22.organs}
    assert {o.name for o in BTCV.organs} - set(flare) == {"portal and splenic veins"}
    assert all(
        o.tolerance == flare.get(o.name, 2) and not o.reference_slices_only for o in BTCV.organs
    )
    assert [o.labels for o in BTCV.organs] == [(i,) for i in range(1, 14)] and math.isnan(
        BTCV.both_empty
    )


def test_a_file(tmp_path):
    path = written(
        tmp_path,
        {
            "organs": {
                "liver": {"labels": 1, "tolerance_mm": 5},
                "kidneys": {"labels": [2, 3], "tolerance_mm": 2.5, "reference_slices_only": True},
            },
            "both_empty": 1,
            "ignore": 4,
        },
    )
    organs = find_organs(str(path))
    assert organs.organs == (Organ("liver", (1,), 5.0), Organ("kidneys", (2, 3), 2.5, True))
    assert organs.both_empty == 1 and organs.ignore == 4 and organs.labels == {1, 2, 3}


@pytest.mark.parametrize(
    "content, said",
    [
        ("{", "cannot be read as JSON"),
        ([], '"organs"'),
        ({"organs": {}}, '"organs"'),
        ({"organs": {"liver": 1}}, "liver must be like"),
        ({"organs": {"liver": {"labels": 1}}}, '"tolerance_mm"'),
        ({"organs": {"liver": {"labels": 1, "tolerance_mm": -1}}}, '"tolerance_mm"'),
        (
            {"organs": {"liver": {"labels": 1, "tolerance_mm": 2, "tolerence": 3}}},
            "unknown entry tolerence",
        ),
        ({"organs": {"liver": {"labels": 1.5, "tolerance_mm": 2}}}, "whole number"),
        ({"organs": {"liver": {"labels": [], "tolerance_mm": 2}}}, "whole number"),
        ({"organs": {"liver": {"labels": [0, 1], "tolerance_mm": 2}}}, "label 0"),
        ({"organs": {"liver": {"labels": 1, "tolerance_mm": 2}}, "both_empty": 2}, '"both_empty"'),
        ({"organs": {"liver": {"labels": 1, "tolerance_mm": 2}}, "ignore": 1}, '"ignore"'),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, content, said):
    path = written(tmp_path, content)
    with pytest.raises(UserError, match=said) as refused:
        find_organs(str(path))
    assert str(path) in str(refused.value)


def test_no_such_set():
    with pytest.raises(UserError, match="neither flare22 nor btcv nor a file"):
        find_organs("flare21")


def test_a_dataset_with_regions_and_ignore(tmp_path):
    path = written(
        tmp_path,
        {
            "labels": {
                "background": 0,
                "whole": [1, 2],
                "IVC": 2,
                "adrenal_gland_left": 3,
                "kidney_right": 4,
                "ignore": 5,
            }
        },
    )
    plain, flare = organs_of_dataset(path, 1.5), organs_of_dataset(path, 1.5, flare_tolerances=True)
    assert plain.ignore == 5 and math.isnan(plain.both_empty)
    assert [o.labels for o in plain.organs] == [(1, 2), (2,), (3,), (4,)]
    assert all(o.tolerance == 1.5 and not o.reference_slices_only for o in plain.organs)
    assert [o.tolerance for o in flare.organs] == [1.5, 2, 2, 3]


@pytest.mark.parametrize(
    "labels, said",
    [
        (None, '"labels"'),
        ({"background": 0}, "no label but the background"),
        ({"liver": "1"}, "whole number"),
    ],
)
def test_a_dataset_without_labels_is_refused(tmp_path, labels, said):
    with pytest.raises(UserError, match=said):
        organs_of_dataset(written(tmp_path, {"labels": labels}), 2.0)
