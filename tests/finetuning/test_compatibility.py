"""What of plans must match a pretraining, and what a mismatch says."""

import pickle

import numpy as np
import pytest

from alice_nnunet.errors import UserError
from alice_nnunet.finetuning.compatibility import check_compatible, flips_of_cases
from alice_nnunet.finetuning.pretrained import EncoderOrigin
from tests.helpers.finetuning import pretraining_data, stock_plans

LPS = np.diag([-1.0, -1, 1, 1])
RAS = np.eye(4)


def check(plans: dict, data: dict | None = None) -> list[str]:
    origin = EncoderOrigin("/c.pth", "ab" * 32, "vit", {}, data or pretraining_data())
    return check_compatible(origin, plans, plans["configurations"]["3d_fullres"])


def changed(**configuration) -> dict:
    plans = stock_plans()
    plans["configurations"]["3d_fullres"].update(configuration)
    return plans


def save_cases(folder, *properties: dict) -> None:
    for index, content in enumerate(properties):
        (folder / f"case{index}.pkl").write_bytes(pickle.dumps(content))


def nifti(affine: np.ndarray) -> dict:
    return {"nibabel_stuff": {"original_affine": affine}}


def itk(*direction: float) -> dict:
    return {"sitk_stuff": {"direction": direction, "spacing": (1, 1, 1), "origin": (0, 0, 0)}}


def test_stock_plans_within_five_percent_pass_whatever_their_window():
    assert check(stock_plans()) == []


def test_another_spacing_shows_both_and_how_to_replan():
    with pytest.raises(UserError) as caught:
        check(changed(spacing=[5.0, 0.8, 0.8]))

    text = str(caught.value)
    assert "\n" not in text
    for said in (
        "5 x 0.8 x 0.8 mm",
        "3 x 3 x 3 mm",
        "alice_accept_spacing=1",
        "alice-plan -d 7 -weights /c.pth",
        "nnUNetv2_preprocess -d 7",
    ):
        assert said in text


def test_another_spacing_can_be_accepted_deliberately(monkeypatch):
    monkeypatch.setenv("alice_accept_spacing", "1")
    (line,) = check(changed(spacing=[5.0, 0.8, 0.8]))
    assert "5 x 0.8 x 0.8 mm" in line and "accepted" in line


def test_another_spacing_that_alice_plan_was_asked_for_passes_and_no_other():
    plans = changed(spacing=[5.0, 0.8, 0.8])
    (line,) = check({**plans, "alice": {"accepted_spacing": [5.0, 0.8, 0.8]}})
    assert "accepted by alice-plan -spacing" in line
    with pytest.raises(UserError, match="differ: spacing"):
        check({**plans, "alice": {"accepted_spacing": [4.0, 0.8, 0.8]}})


def test_transposed_plans_are_refused():
    with pytest.raises(
        UserError, match=r"transpose_forward \[1, 0, 2\] and \[0, 1, 2\].*alice-plan"
    ):
        check(stock_plans(transpose_forward=[1, 0, 2]))


def test_another_normalisation_is_refused():
    with pytest.raises(UserError, match=r"ZScoreNormalization.*CTNormalization.*channel_names"):
        check(changed(normalization_schemes=["ZScoreNormalization"]))


def test_a_channel_of_another_kind_beside_a_ct_is_accepted_deliberately_only(monkeypatch):
    plans = changed(normalization_schemes=["CTNormalization", "ZScoreNormalization"])
    with pytest.raises(
        UserError, match=r"channel 1 .*nnUNetv2_plan_experiment -d 7.*alice_accept_channels=1"
    ) as caught:
        check(plans)
    assert "\n" not in str(caught.value)

    assert check({**plans, "alice": {"other_channels": [1]}}) != []  # planned so
    with pytest.raises(UserError):
        check({**plans, "alice": {"other_channels": [0]}})

    monkeypatch.setenv("alice_accept_channels", "1")
    (line,) = check(plans)
    assert "did not see: 1;" in line
    with pytest.raises(UserError, match="use weights pretrained on such images"):
        check(changed(normalization_schemes=["ZScoreNormalization"] * 2))


@pytest.mark.parametrize(
    "key, value",
    [
        ("orientation", "LPS"),
        ("axis_order", "xyz"),
        ("reader", "SimpleITKIO"),
        ("transpose_forward", [2, 1, 0]),
    ],
)
def test_a_pretraining_that_no_plans_can_match_is_refused(key, value):
    with pytest.raises(UserError, match=f"{key}.*pretrain again with alice-pretrain"):
        check(stock_plans(), pretraining_data(**{key: value}))


def test_several_channels_need_one_or_as_many_in_the_pretraining():
    two = changed(normalization_schemes=["CTNormalization"] * 2)
    assert check(two) == []
    (channel,) = pretraining_data()["channels"]
    with pytest.raises(UserError, match="3 channels and this dataset has 2"):
        check(two, pretraining_data(channels=[channel] * 3))


@pytest.mark.parametrize(
    "properties, flips",
    [
        (nifti(RAS), []),
        (nifti(LPS), [1, 2]),
        (nifti(np.diag([1.0, 1, -1, 1])), [0]),
        ({"nibabel_stuff": {"original_affine": LPS, "reoriented_affine": RAS}}, []),
        (itk(1, 0, 0, 0, 1, 0, 0, 0, 1), [1, 2]),
        (itk(-1, 0, 0, 0, -1, 0, 0, 0, 1), []),
        (itk(0.98, 0.2, 0, -0.2, 0.98, 0, 0, 0, -1), [0, 1, 2]),  # oblique, closest to LPI
    ],
)
def test_flips_from_the_stored_directions(tmp_path, properties, flips):
    save_cases(tmp_path, properties, properties)
    assert flips_of_cases(tmp_path, "Replan.") == flips


def test_mixed_and_permuted_directions_are_refused(tmp_path):
    save_cases(tmp_path, nifti(LPS), nifti(RAS))
    with pytest.raises(
        UserError, match=r"different orientations, LPS \(case0\), RAS \(case1\).*Replan\."
    ):
        flips_of_cases(tmp_path, "Replan.")
    (tmp_path / "case0.pkl").unlink()
    save_cases(tmp_path, nifti(np.eye(4)[[0, 2, 1, 3]]), nifti(np.eye(4)[[0, 2, 1, 3]]))
    with pytest.raises(UserError, match=r"RSA \(case0\), with axes in another order.*Replan\."):
        flips_of_cases(tmp_path, "Replan.")


def test_no_cases_and_no_direction_are_errors(tmp_path):
    with pytest.raises(UserError, match="nnUNetv2_preprocess"):
        flips_of_cases(tmp_path, "Replan.")
    save_cases(tmp_path, {"spacing": [1, 1, 1]})
    with pytest.raises(UserError, match="stored no direction"):
        flips_of_cases(tmp_path, "Replan.")
