"""Volumes, their matcher and a run are of one preset, or it is said which is which."""

import json
import re
import shutil

import nibabel
import numpy as np
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from alice_nnunet.data import volumes
from alice_nnunet.data.volumes import case_names
from alice_nnunet.errors import UserError
from alice_nnunet.model.presets import CROPS
from alice_nnunet.pretrain.commands.embed import main as alice_embed
from alice_nnunet.pretrain.commands.preprocess import main as alice_preprocess
from alice_nnunet.pretrain.commands.pretrain import main as alice_pretrain
from alice_nnunet.pretrain.datasets.preprocessed import check_preset, preprocessed_volumes
from alice_nnunet.pretrain.embedding.job import check_spacing

FINE = "1.5 x 0.76 x 0.76 mm"
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


@pytest.mark.parametrize(
    "there, asked", [("tiny", "paper"), ("tiny", "small"), ("paper", "tiny"), ("small", "tiny")]
)
def test_a_preset_does_not_follow_the_volumes_of_another(
    preprocess, nnunet_folders, capsys, there, asked
):
    spacing = {"tiny": "3 x 3 x 3 mm", "small": FINE, "paper": FINE}
    preprocess("-preset", there)
    assert f"1 cases good, 0 failed, {spacing[there]}" in capsys.readouterr().out

    for command in (alice_pretrain, alice_embed):
        for words in ([], ["--dry-run"]):
            error = refusal(capsys, command, "-preset", asked, *words)
            assert f"({spacing[there]}), and preset {asked} needs {spacing[asked]}." in error
            assert f"alice-preprocess -d Dataset022_Test -preset {asked} --overwrite" in error
            assert f"alice-embed -d Dataset022_Test -preset {asked} --overwrite" in error
            (use,) = re.findall(r"Use -preset (\w+), or", error)
            check_preset(nnunet_folders / PLANS, "Dataset022_Test", use)  # what it offers works

    volumes = nnunet_folders / PLANS.replace(".json", "_3d_fullres")
    assert case_names(volumes) == ["a"]  # nothing was changed


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


def test_a_method_that_turns_crops_is_refused_oblong_voxels(preprocess, capsys):
    preprocess("-spacing", "3", "3", "2")
    for words in ([], ["--dry-run"]):
        error = refusal(capsys, alice_pretrain, "-preset", "tiny", "-method", "tang", *words)
        assert "-method tang cannot learn from these volumes" in error and "3 x 3 x 2 mm" in error


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


@pytest.mark.parametrize("preset, other", [("tiny", "paper"), ("paper", "tiny")])
def test_a_matcher_of_other_volumes_is_refused(preprocess, tmp_path, preset, other):
    plans = json.loads(preprocess("-preset", preset).read_text())
    trained = {"config": {"preset": other}, "data": {"spacing": CROPS[preset].spacing}}
    check_spacing(trained, plans, tmp_path, preset)

    trained["data"]["spacing"] = CROPS[other].spacing
    with pytest.raises(UserError, match=rf"\(preset {other}\), and now .*-preset {preset} --"):
        check_spacing(trained, plans, tmp_path, preset)


def test_two_presets_side_by_side_are_two_datasets(preprocess, nnunet_folders, capsys):
    """What a user does who wants to keep both: the same scans under another number."""
    first = preprocess("-preset", "tiny")
    (nnunet_folders / "raw" / "Dataset023_Fine").symlink_to("Dataset022_Test")
    alice_preprocess(["-d", "23", "-np", "1", "-preset", "paper"])
    second = nnunet_folders / "preprocessed" / "Dataset023_Fine" / first.name

    check_preset(first, "Dataset022_Test", "tiny")
    check_preset(second, "Dataset023_Fine", "paper")
    preprocessed_volumes("Dataset022_Test", 1, "tiny", CROPS["tiny"].size)
    preprocessed_volumes("Dataset023_Fine", 1, "paper", CROPS["paper"].size)


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


def test_a_disk_that_fills_up_is_no_fault_of_the_scans(
    preprocess, nnunet_folders, monkeypatch, capsys
):
    """blosc2 raises RuntimeError where it cannot write, whatever the reason."""

    def cannot_write(*words, **options):
        raise RuntimeError("Error while creating the NDArray")

    add_scan(nnunet_folders, "imagesTr", "b")
    usage = shutil.disk_usage(nnunet_folders)
    monkeypatch.setattr(nnUNetDatasetBlosc2, "save_case", cannot_write)
    monkeypatch.setattr(
        volumes.shutil,
        "disk_usage",
        lambda path: usage if volumes.PARTIAL not in str(path) else usage._replace(free=0),
    )
    with pytest.raises(SystemExit) as end:
        preprocess("-preset", "tiny")

    assert end.value.code == 2
    assert "no space is left on the disk for" in capsys.readouterr().err
    folder = nnunet_folders / PLANS.replace(".json", "_3d_fullres")
    assert list(folder.iterdir()) == []
    assert not (nnunet_folders / PLANS.replace(".json", "_report.json")).exists()
