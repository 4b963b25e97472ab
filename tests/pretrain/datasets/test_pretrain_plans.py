import json

import nibabel
import numpy as np
import pytest
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import (
    ExperimentPlanner,
)
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from alice_nnunet.datasets.raw_dataset import open_raw_dataset
from alice_nnunet.errors import UserError
from alice_nnunet.names import CONFIGURATION, PRETRAIN_PLANS
from alice_nnunet.pretrain.datasets.pretrain_plans import (
    PATCH_SIZE,
    SPACING,
    data_description,
    load_plans,
    make_plans,
    plans_sha256,
)

LPS = np.diag([-2.0, -2.0, 5.0, 1.0])


def volume(shape, filled: float = 1.0) -> nibabel.Nifti1Image:
    """Ones in the first share filled of the volume along x, zeros behind."""
    voxels = np.zeros(shape, np.int16)
    voxels[: round(filled * shape[0])] = 1
    return nibabel.Nifti1Image(voxels, LPS)


@pytest.fixture
def plans(raw_dataset) -> dict:
    raw_dataset(
        {
            "a": volume((20, 30, 10)),
            "b": volume((22, 30, 14)),
            "c": volume((24, 30, 15)),
            "d": b"broken",
        }
    )
    return make_plans(open_raw_dataset(22), SPACING, PATCH_SIZE)


def test_nnunet_reads_the_plans(plans):
    plans = json.loads(json.dumps(plans))
    manager = PlansManager(plans)
    configuration = manager.get_configuration(CONFIGURATION)
    assert manager.plans_name == PRETRAIN_PLANS and manager.dataset_name == "Dataset022_Test"
    assert manager.image_reader_writer_class.__name__ == "NibabelIOWithReorient"
    assert configuration.preprocessor_class.__name__ == "DefaultPreprocessor"
    assert configuration.spacing == [1.5, 0.76, 0.76] and configuration.patch_size == [64, 192, 192]
    assert configuration.resampling_fn_data.func.__name__ == "resample_data_or_seg_to_shape"
    assert (
        configuration.resampling_fn_data.keywords == ExperimentPlanner.determine_resampling(None)[1]
    )
    assert configuration.resampling_fn_probabilities.keywords["order"] == 1
    assert configuration.normalization_schemes == [
        "CTNormalization"
    ] and configuration.use_mask_for_norm == [False]


def test_medians_come_from_the_readable_headers(plans):
    assert plans["original_median_spacing_after_transp"] == [5, 2, 2]
    assert plans["original_median_shape_after_transp"] == [14, 30, 22]
    assert plans["configurations"][CONFIGURATION]["median_image_size_in_voxels"] == [47, 79, 58]


def test_the_window_is_the_papers(plans):
    statistics = plans["foreground_intensity_properties_per_channel"]["0"]
    assert (statistics["percentile_00_5"], statistics["percentile_99_5"]) == (-125, 255)
    assert (statistics["mean"], statistics["std"]) == (-125, 380)


@pytest.mark.parametrize(
    "filled, channels, expected",
    [
        (0.5, ("MR",), [True]),
        (0.9, ("MR",), [False]),
        (0.5, ("CT", "MR"), [False, True]),
        (0.5, ("noNorm",), [False]),
    ],
)
def test_normalization_inside_the_nonzero_region_by_nnunets_rule(
    raw_dataset, filled, channels, expected
):
    raw_dataset({case: [volume((20, 20, 20), filled)] * len(channels) for case in "abc"}, channels)

    plans = make_plans(open_raw_dataset(22), SPACING, PATCH_SIZE)

    assert plans["configurations"][CONFIGURATION]["use_mask_for_norm"] == expected


def test_only_what_changes_a_case_changes_the_hash(plans):
    def changed(key, value):
        copy = json.loads(json.dumps(plans))
        copy["configurations"][CONFIGURATION][key] = value
        return plans_sha256(copy)

    assert changed("patch_size", [32, 32, 32]) == changed("batch_size", 1) == plans_sha256(plans)

    different = {
        plans_sha256(plans),
        changed("spacing", [2, 1, 1]),
        changed("use_mask_for_norm", [True]),
        changed("resampling_fn_data_kwargs", {"order": 1}),
    }
    assert len(different) == 4


def test_description_of_the_data(plans):
    description = data_description(plans, ["b", "a"])

    assert description == data_description(plans, ["a", "b"])
    assert description == json.loads(json.dumps(description))
    assert description["channels"] == [
        {"name": "CT", "scheme": "CTNormalization", "window": [-125.0, 255.0]}
    ]
    assert (description["orientation"], description["axis_order"]) == ("RAS", "zyx")
    assert description["spacing"] == list(SPACING)
    assert (description["number_of_cases"], description["dataset"]) == (2, "Dataset022_Test")

    others = data_description(plans, ["a", "c"])
    assert description["case_list_sha256"] != others["case_list_sha256"]


@pytest.mark.parametrize(
    "where, value, message",
    [
        (
            ("configurations", CONFIGURATION, "spacing"),
            [1, 1],
            "spacing must be three positive numbers",
        ),
        (
            ("configurations", CONFIGURATION, "patch_size"),
            [64, 0, 64],
            "patch_size must be three positive numbers",
        ),
        (
            ("configurations", CONFIGURATION, "use_mask_for_norm"),
            [],
            "one entry for each of the channels",
        ),
        (("image_reader_writer",), "SimpleITKIO", "must be NibabelIOWithReorient"),
        (("transpose_forward",), [1, 0, 2], "one orientation for all"),
        (("channel_names",), ["MR"], r"dataset.json names \['CT'\]"),
        (("configurations",), {}, "KeyError"),
        (("foreground_intensity_properties_per_channel", "0", "std"), 100.0, "width of the window"),
    ],
)
def test_plans_that_cannot_be_followed(plans, tmp_path, where, value, message):
    path = tmp_path / "plans.json"
    path.write_text(json.dumps(plans))
    assert load_plans(path, {"channel_names": {"0": "CT"}}) == plans
    inner = plans
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    path.write_text(json.dumps(plans))
    with pytest.raises(UserError, match=message):
        load_plans(path, {"channel_names": {"0": "CT"}})


def test_plans_that_are_no_json(tmp_path):
    (tmp_path / "plans.json").write_text("{")
    with pytest.raises(UserError, match="cannot be used"):
        load_plans(tmp_path / "plans.json", {"channel_names": {"0": "CT"}})
