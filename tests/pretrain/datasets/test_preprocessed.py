"""Volumes, their matcher and a run are of one preset, or it is said which is which."""

import json
import shutil

import nibabel
import numpy as np
import pytest

from alice_nnunet.data.volumes import case_names
from alice_nnunet.errors import UserError
from alice_nnunet.pretrain.commands.embed import main as alice_embed
from alice_nnunet.pretrain.commands.preprocess import main as alice_preprocess
from alice_nnunet.pretrain.commands.pretrain import main as alice_pretrain
from alice_nnunet.pretrain.datasets.preprocessed import check_preset, preprocessed_volumes
from alice_nnunet.pretrain.embedding.job import check_spacing

PLANS = "preprocessed/Dataset022_Test/AlicePretrainPlans.json"


@pytest.fixture
def preprocess(raw_dataset, nnunet_folders):
    """A function that preprocesses a small box and returns the plans' file."""
    voxels = np.full((24, 24, 24), -1000, np.int16)
    voxels[4:20, 4:20, 4:20] = 40
    raw_dataset({"a": nibabel.Nifti1Image(voxels, np.diag([3.0, 3.0, 3.0, 1.0]))})

    def call(*words: str):
        alice_preprocess(["-d", "22", "-np", "1", *words])
        return nnunet_folders / PLANS

    return call


def refusal(capsys, command, *words: str) -> str:
    """The one line with which a command ends."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        command(["-d", "22", "-device", "cpu", "-np", "1", *words])
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1
    return error


def test_a_preset_does_not_follow_the_volumes_of_another(preprocess, capsys):
    preprocess("-preset", "tiny")
    assert "1 cases good, 0 failed, 3 x 3 x 3 mm" in capsys.readouterr().out

    for command in (alice_pretrain, alice_embed):
        for words in ([], ["--dry-run"]):
            error = refusal(capsys, command, "-preset", "paper", *words)
            assert "is preprocessed for preset tiny (3 x 3 x 3 mm)" in error
            assert "preset paper needs 1.5 x 0.76 x 0.76 mm. Use -preset tiny, or" in error
            assert "alice-preprocess -d Dataset022_Test -preset paper --overwrite" in error
            assert "alice-embed -d Dataset022_Test -preset paper --overwrite" in error


def test_alice_preprocess_goes_by_one_name_too(preprocess, capsys):
    plans = preprocess("-preset", "tiny")
    content = json.loads(plans.read_text())
    assert content["preset"] == "tiny"
    assert content["configurations"]["3d_fullres"]["patch_size"] == [32, 64, 64]

    with pytest.raises(SystemExit):
        preprocess("-preset", "paper")
    assert "[1.5, 0.76, 0.76] was requested" in capsys.readouterr().err

    content = json.loads(preprocess("-preset", "paper", "--overwrite").read_text())
    assert content["preset"] == "paper"
    preprocess("-preset", "small")  # the same spacing: other crops of the same volumes
    check_preset(plans, "Dataset022_Test", "small")


def test_a_spacing_of_ones_own_fits_every_preset(preprocess):
    plans = preprocess("-spacing", "3", "3", "3")
    for preset in ("tiny", "paper"):
        check_preset(plans, "Dataset022_Test", preset)


def test_plans_of_earlier_versions_tell_by_their_spacing(preprocess):
    plans = preprocess("-preset", "tiny")
    content = json.loads(plans.read_text())
    del content["preset"]
    plans.write_text(json.dumps(content))

    check_preset(plans, "Dataset022_Test", "tiny")
    with pytest.raises(UserError, match="for preset tiny"):
        check_preset(plans, "Dataset022_Test", "paper")

    content["configurations"]["3d_fullres"]["spacing"] = [2, 2, 2]
    plans.write_text(json.dumps(content))
    check_preset(plans, "Dataset022_Test", "paper")


def test_a_matcher_of_other_volumes_is_refused(preprocess, tmp_path):
    plans = json.loads(preprocess("-preset", "tiny").read_text())
    trained = {"config": {"preset": "tiny"}, "data": {"spacing": [3, 3, 3]}}
    check_spacing(trained, plans, tmp_path, "tiny")

    trained["data"]["spacing"] = [1.5, 0.76, 0.76]
    with pytest.raises(UserError, match=r"now they have 3 x 3 x 3 mm.*-preset tiny --overwrite"):
        check_spacing(trained, plans, tmp_path, "tiny")


def test_what_is_missing_is_said_before_any_scan_is_read(
    preprocess, nnunet_folders, monkeypatch, capsys
):
    monkeypatch.delenv("nnUNet_results")
    error = refusal(capsys, alice_pretrain, "-preset", "tiny")
    assert "nnUNet_results is not set" in error
    assert not (nnunet_folders / "preprocessed" / "Dataset022_Test").exists()

    monkeypatch.setenv(
        "nnUNet_results", str(nnunet_folders / "raw" / "Dataset022_Test" / "dataset.json")
    )
    error = refusal(capsys, alice_pretrain, "-preset", "tiny")
    assert "check the environment variable nnUNet_results" in error
    assert not (nnunet_folders / "preprocessed" / "Dataset022_Test").exists()


def add_scan(root, images: str, case: str) -> None:
    folder = root / "raw" / "Dataset022_Test"
    (folder / images).mkdir(exist_ok=True)
    shutil.copy(folder / "imagesTr" / "a_0000.nii.gz", folder / images / f"{case}_0000.nii.gz")


def test_a_test_set_is_used_only_where_it_is_asked_for(preprocess, nnunet_folders, capsys):
    add_scan(nnunet_folders, "imagesTs", "t")
    volumes = nnunet_folders / PLANS.replace(".json", "_3d_fullres")

    preprocess("-preset", "tiny")
    assert case_names(volumes) == ["a"]
    assert "0 of them of imagesTs, where 1 are left out" in capsys.readouterr().out

    preprocess("--with-test-images")
    assert case_names(volumes) == ["a", "t"]
    assert "2 volumes, 1 of them of imagesTs. Do not report" in capsys.readouterr().out
    preprocess()  # what was used stays: a run on it goes on
    assert case_names(volumes) == ["a", "t"]

    preprocess("--overwrite")
    assert case_names(volumes) == ["a"]


def test_labels_and_scans_that_were_added_later_are_named(preprocess, nnunet_folders, capsys):
    (nnunet_folders / "raw" / "Dataset022_Test" / "labelsTr").mkdir()
    preprocess("-preset", "tiny")
    assert "has labels (labelsTr), which are not used" in capsys.readouterr().out

    add_scan(nnunet_folders, "imagesTr", "new")
    preprocessed_volumes("Dataset022_Test", 1, "tiny", (32, 64, 64))
    printed = capsys.readouterr().out
    assert "1 scans in imagesTr were added after preprocessing and are not used (new)" in printed
