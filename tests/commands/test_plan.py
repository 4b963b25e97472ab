"""alice-plan: what it writes, what it says, what it refuses."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest

from alice_nnunet.commands.export import main as alice_export
from alice_nnunet.commands.plan import main
from alice_nnunet.files import file_sha256
from alice_nnunet.finetuning.block import AliceBlock, block_of_plans
from alice_nnunet.finetuning.compatibility import check_compatible
from alice_nnunet.planning import planner
from alice_nnunet.planning.step_memory import training_memory
from tests.helpers.exporting import write_run
from tests.helpers.finetuning import (
    plan_by_hand,
    stock_plans,
    write_case,
    write_checkpoint,
    write_dataset,
)


@pytest.fixture(autouse=True, scope="module")
def memory_is_estimated_once() -> Iterator[None]:
    """For each network, patch and batch: an estimate takes a second."""
    known: dict[str, int] = {}

    def remembered(block: AliceBlock, *sizes) -> int:
        arguments = (block.origin.name, block.origin.arguments, block.network_arguments)
        key = repr((*arguments, block.input, block.recipe, sizes))
        if key not in known:
            known[key] = training_memory(block, *sizes)
        return known[key]

    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(planner, "training_memory", remembered)
        yield


@pytest.fixture
def dataset(nnunet_folders, real_ct):
    """nnU-Net's folders with a labeled dataset that it has already planned, and c.pth."""
    raw = write_dataset(nnunet_folders / "raw", real_ct)
    write_checkpoint(nnunet_folders / "c.pth")

    preprocessed = nnunet_folders / "preprocessed" / raw.name
    plan_by_hand(raw, preprocessed)
    (preprocessed / "nnUNetPlans.json").write_text(json.dumps(stock_plans()))
    return nnunet_folders


def plan(folders: Path, *options: object, weights: str = "c.pth", name: str = "AlicePlans") -> dict:
    """Run alice-plan and return the plans."""
    words = ["-d", 7, "-weights", folders / weights, "-n", name, *options]
    main([str(word) for word in words])
    return written(folders, name)


def refused(capsys, *arguments) -> str:
    """The one line that a refused call ends in."""
    with pytest.raises(SystemExit) as stopped:
        main([str(a) for a in arguments])
    text = capsys.readouterr().err
    assert stopped.value.code == 2 and text.startswith("alice-plan: ") and text.count("\n") == 1
    return text


def written(folders: Path, name: str = "AlicePlans") -> dict:
    return json.loads((folders / "preprocessed" / "Dataset007_Body" / f"{name}.json").read_text())


def configuration_in(plans: dict) -> dict:
    return plans["configurations"]["3d_fullres"]


def test_says_what_it_chose_and_last_the_name(dataset, capsys):
    main(["-d", "7", "-weights", str(dataset / "c.pth")])
    text = capsys.readouterr().out
    assert text.splitlines()[-1] == "AlicePlans"
    for said in (
        str(dataset / "c.pth"),
        "3 x 3 x 3 mm",
        "-125..255 HU",
        "16 x 32 x 32",
        "RAS",
        "epochs 1000",
        "nnUNetv2_preprocess -d 7 -plans_name AlicePlans -c 3d_fullres",
        "-tr AliceTrainer -p AlicePlans",
    ):
        assert said in text

    plans = written(dataset)
    assert plans["alice"]["weights"] == str(dataset / "c.pth")
    assert plans["alice"]["weights_sha256"] == file_sha256(dataset / "c.pth")
    assert configuration_in(plans)["batch_size"] == 2


def test_fewer_cases_than_folds_train_on_all(nnunet_folders, real_ct, capsys):
    raw = write_dataset(nnunet_folders / "raw", real_ct, cases=3)
    write_checkpoint(nnunet_folders / "c.pth")
    plan_by_hand(raw, nnunet_folders / "preprocessed" / raw.name)
    plan(nnunet_folders)
    shown = capsys.readouterr().out
    assert "nnUNetv2_train 7 3d_fullres all -tr AliceTrainer -p AlicePlans" in shown
    assert "3 cases are too few for the 5 folds" in shown


def test_options(dataset, capsys, monkeypatch):
    monkeypatch.chdir(dataset)
    named = ["-d", "Dataset007_Body", "-weights", "c.pth", "-n", "Short"]
    length = ["-epochs", "100", "-iterations", "10", "-lr", "0.002"]
    main([*named, *length, "-patch", "32", "16", "48", "-batch", "5"])
    assert capsys.readouterr().out.splitlines()[-1] == "Short"

    plans = written(dataset, "Short")
    configuration = configuration_in(plans)
    assert configuration["patch_size"] == [32, 16, 48] and configuration["batch_size"] == 5
    assert plans["alice"]["weights"] == str(dataset / "c.pth")

    recipe = plans["alice"]["recipe"]
    assert recipe["epochs"] == 100 and recipe["warmup_epochs"] == 5
    assert recipe["iterations_per_epoch"] == 10 and recipe["learning_rate"] == 0.002


def test_the_papers_preset_gets_the_papers_patch_and_batch(dataset, capsys):
    write_checkpoint(dataset / "paper.pth", preset="paper", spacing=[0.1, 0.1, 0.1])
    configuration = configuration_in(plan(dataset, weights="paper.pth"))
    assert (configuration["patch_size"], configuration["batch_size"]) == ([96, 96, 96], 8)


@pytest.mark.parametrize(
    "asked, spacing, accepted, said",
    [
        (["pretrained"], [3, 3, 3], False, ["3 x 3 x 3 mm: the pretraining's"]),
        (["dataset"], [3.05, 2.95, 3.0], False, ["nnU-Net's for this dataset"]),
        (
            [2, 1.5, 6],
            [2, 1.5, 6],
            True,
            ["1.50 x 2.00 x 0.50 times the voxels", "accepted, as -spacing"],
        ),
    ],
)
def test_spacings(dataset, capsys, asked, spacing, accepted, said):
    """The pretraining's, nnU-Net's for the dataset, three numbers; the trainer accepts them all."""
    plans = plan(dataset, "-spacing", *asked)
    text = capsys.readouterr().out
    assert all(words in text for words in said) and ("accepted" in text) == accepted

    assert configuration_in(plans)["spacing"] == spacing
    assert plans["alice"].get("accepted_spacing") == (spacing if accepted else None)
    check_compatible(block_of_plans(plans).origin, plans, configuration_in(plans))


def test_sizes_follow_the_spacing(dataset, capsys):
    configuration = configuration_in(plan(dataset, "-spacing", 2, 1.5, 6))
    assert configuration["median_image_size_in_voxels"] == [24.0, 64.0, 15.0]
    assert configuration["patch_size"] == [16, 32, 16]


def stored_as(file: Path, codes: str, **more) -> None:
    """Write a file again along other axes."""
    write_case(file, np.asarray(nibabel.load(file).dataobj).astype(np.int16), codes, **more)


def test_the_datasets_spacing_is_turned_to_the_canonical_axes(dataset, capsys):
    """z, y, x of the files are x, y, z of the canonical orientation."""
    raw = dataset / "raw" / "Dataset007_Body"
    # spacing 3.05, 2.95, 3.0 along y, z, x of the files
    stock = stock_plans(transpose_forward=[1, 0, 2], transpose_backward=[1, 0, 2])
    path = dataset / "preprocessed" / "Dataset007_Body" / "nnUNetPlans.json"
    path.write_text(json.dumps(stock))

    files = sorted((raw / "imagesTr").iterdir())
    for file in (*files, *(raw / "labelsTr").iterdir()):
        stored_as(file, "SAL")
    plans = plan(dataset, "-spacing", "dataset")
    assert configuration_in(plans)["spacing"] == [3.0, 3.05, 2.95]

    for file in (files[0], raw / "labelsTr" / "case0.nii.gz"):
        stored_as(file, "LPS")
    text = refused(capsys, "-d", 7, "-weights", dataset / "c.pth", "-spacing", "dataset")
    assert "three numbers instead" in text


def test_memory_is_said_and_kept_within_a_gpus(dataset, capsys):
    write_checkpoint(dataset / "paper.pth", preset="paper", spacing=[0.1, 0.1, 0.1])

    def planned(*options: object) -> tuple[list, int, float, str]:
        """Patch, batch, GB and the whole report."""
        configuration = configuration_in(plan(dataset, *options, weights="paper.pth"))
        text = capsys.readouterr().out
        memory = float(re.search(r"memory +([\d.]+) GB", text)[1])
        return configuration["patch_size"], configuration["batch_size"], memory, text

    patch, batch, free, text = planned()
    assert (patch, batch) == ([96, 96, 96], 8) and "no -gpu_memory is given" in text

    # 1 GB for CUDA, and a tenth for workspaces
    patch, batch, needed, text = planned("-gpu_memory", 0.8 * 1.1 * free + 1)
    assert patch == [96, 96, 96] and 5 < batch < 8 and needed <= 0.8 * free
    assert "reduced from 8 to fit -gpu_memory" in text

    # the given batch stays, the patch gives way
    patch, batch, needed, text = planned("-gpu_memory", 0.9 * 1.1 * free + 1, "-batch", 8)
    assert batch == 8 and min(patch) < 96 and needed <= 0.9 * free
    assert "reduced from 96 x 96 x 96" in text
    assert all(size % 16 == 0 for size in patch)

    given = ("-gpu_memory", 1.1, "-patch", 64, 64, 64, "-batch", 2)
    text = refused(capsys, "-d", 7, "-weights", dataset / "paper.pth", *given)
    assert "smaller -patch or -batch" in text


def test_anything_in_the_recipe_can_be_set(dataset, capsys):
    optimizer = ("optimizer=SGD", "momentum=0.95", "layer_decay=0.8", "frozen_epochs=20", "seed=3")
    augmentation = ("augmentation=none", "augmentation.blur=0.5")
    recipe = plan(dataset, "--set", *optimizer, "--set", *augmentation)["alice"]["recipe"]

    assert (recipe["optimizer"], recipe["momentum"], recipe["seed"]) == ("SGD", 0.95, 3)
    assert (recipe["layer_decay"], recipe["frozen_epochs"]) == (0.8, 20)
    assert {name for name, p in recipe["augmentation"].items() if p} == {"blur"}

    text = capsys.readouterr().out
    for said in (
        "SGD",
        "each layer 0.8 times",
        "unchanged for the first 20 epochs",
        "seed         3",
        "augmentation blur 0.5",
    ):
        assert said in text


def test_cases_preprocessed_otherwise_are_not_left_behind(dataset, capsys):
    before = plan(dataset)
    folder = dataset / "preprocessed" / "Dataset007_Body" / "AlicePlans_3d_fullres"
    folder.mkdir()
    (folder / "case0.pkl").write_bytes(b"")

    text = refused(capsys, "-d", 7, "-weights", dataset / "c.pth", "-spacing", 2, 2, 2)
    for said in (str(folder), "[3.0, 3.0, 3.0] there, [2.0, 2.0, 2.0] now", "-n"):
        assert said in text
    assert written(dataset) == before

    plan(dataset, "-epochs", 3, "-batch", 4)  # the same cases serve
    two = plan(dataset, "-spacing", 2, 2, 2, name="Two")
    assert configuration_in(two)["data_identifier"] == "Two_3d_fullres"


def test_plans_of_other_weights_are_not_overwritten(dataset, capsys):
    plan(dataset, "-epochs", 10)
    before = plan(dataset, "-epochs", 20)  # same weights: written anew
    assert before["alice"]["recipe"]["epochs"] == 20

    other = write_checkpoint(dataset / "other.pth", seed=1)
    text = refused(capsys, "-d", 7, "-weights", other)
    assert "other weights" in text and "-n" in text
    text = refused(capsys, "-d", 7, "-weights", other, "-n", "nnUNetPlans")
    assert "no weights of alice-pretrain" in text
    assert written(dataset) == before

    others = plan(dataset, weights="other.pth", name="Others")
    assert configuration_in(others)["data_identifier"] == "Others_3d_fullres"


def test_an_exported_folder_gives_the_plans_of_its_checkpoint(dataset, capsys):
    write_run(dataset / "run.pth")
    alice_export([str(dataset / "run.pth"), str(dataset / "shared")])
    checkpoint = plan(dataset, weights="run.pth", name="Checkpoint")["alice"]
    folder = plan(dataset, weights="shared", name="Folder")["alice"]

    assert folder.pop("weights") == str(dataset / "shared")
    model = dataset / "shared" / "model.safetensors"
    assert folder.pop("weights_sha256") == file_sha256(model)
    for name in ("weights", "weights_sha256"):
        del checkpoint[name]
    assert folder == checkpoint

    (dataset / "shared" / "config.json").unlink()
    text = refused(capsys, "-d", 7, "-weights", dataset / "shared", "-n", "Third")
    assert "no config.json in" in text


def test_sizes_are_those_after_turning_to_ras(dataset, capsys):
    """Files stored along S, A, L have the axes of nnU-Net's SimpleITK arrays reversed."""
    raw = dataset / "raw" / "Dataset007_Body"
    files = sorted((raw / "imagesTr").iterdir())
    for file in (*files, *(raw / "labelsTr").iterdir()):
        stored_as(file, "SAL", spacing=[4.0, 3.0, 2.0])

    shapes = [list(nibabel.load(file).shape[::-1]) for file in files]
    fingerprint = {"spacings": [[2.0, 3.0, 4.0]] * 5, "shapes_after_crop": shapes}
    path = dataset / "preprocessed" / "Dataset007_Body" / "dataset_fingerprint.json"
    path.write_text(json.dumps(fingerprint))

    plans = plan(dataset)
    assert plans["original_median_spacing_after_transp"] == [4.0, 3.0, 2.0]
    median = np.median([shape[::-1] for shape in shapes], 0)
    assert plans["original_median_shape_after_transp"] == median.tolist()


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["-epochs", 0], "-epochs must be at least 1"),
        (["-patch", 30, 32, 32], "multiple of"),
        (["-n", "a/b"], "-n must be a file name"),
        (["-n", "a__b"], "without '__'"),
        (["-d", 99], "no dataset with the ID 99"),
        (["-weights", "nowhere.pth"], "no checkpoint at"),
        (["-iterations", "x"], "invalid int value"),
        (["-lr", 0], "-lr must be between 0 and 1"),
        (["-spacing", 1, 2], "pretrained, dataset, or three numbers"),
        (["-spacing", "mine"], "pretrained, dataset, or three"),
        (["-spacing", 1, 0, 1], "three numbers"),
        (["-gpu_memory", 1], "more than 1 GB"),
        (["--set", "decay=1"], "unknown setting 'decay'"),
        (["--set", "seed=x"], "seed must be int"),
        (["--set", "layer_decay=2"], "layer_decay"),
        (["--set", "augmentation=monai"], "no set of augmentations"),
    ],
)
def test_wrong_arguments(dataset, capsys, arguments, said):
    assert said in refused(capsys, "-d", 7, "-weights", dataset / "c.pth", *arguments)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"orientation": "LPS"}, "pretrain again"),
        (
            {"channels": [{"name": "MR", "scheme": "ZScoreNormalization", "window": None}]},
            "CTNormalization",
        ),
        (
            {"channels": [{"name": "CT", "scheme": "CTNormalization", "window": [0, 1]}] * 2},
            "2 channels and this dataset has 1",
        ),
    ],
)
def test_weights_that_do_not_fit(dataset, capsys, change, said):
    assert said in refused(
        capsys, "-d", 7, "-weights", write_checkpoint(dataset / "x.pth", **change)
    )
    assert not (dataset / "preprocessed" / "Dataset007_Body" / "AlicePlans.json").exists()


def test_a_pet_beside_the_ct_is_planned_deliberately(dataset, capsys, monkeypatch):
    stock = stock_plans()
    schemes = ["CTNormalization", "ZScoreNormalization"]
    stock["configurations"]["3d_fullres"]["normalization_schemes"] = schemes
    pet = {"mean": 1.0, "std": 2.0, "percentile_00_5": 0.0, "percentile_99_5": 9.0}
    stock["foreground_intensity_properties_per_channel"]["1"] = pet
    path = dataset / "preprocessed" / "Dataset007_Body" / "nnUNetPlans.json"
    path.write_text(json.dumps(stock))

    text = refused(capsys, "-d", 7, "-weights", dataset / "c.pth")
    assert "channel 1 of Dataset007_Body" in text and "alice_accept_channels=1" in text

    monkeypatch.setenv("alice_accept_channels", "1")
    plans = plan(dataset)
    text = capsys.readouterr().out
    assert "channel 0    CT clipped to -125..255 HU" in text
    assert "channel 1    ZScoreNormalization, not seen by the pretraining" in text

    assert plans["foreground_intensity_properties_per_channel"]["1"] == pet
    block = plans["alice"]
    assert block["other_channels"] == [1]
    assert block["input"]["scale"] == [1.0, 1.0] and block["input"]["low"] == [0.0, None]


def spoil(dataset: Path, what: str) -> None:
    raw = dataset / "raw" / "Dataset007_Body"
    first = raw / "imagesTr" / "case0_0000.nii.gz"

    if what == "labels":
        for file in (raw / "labelsTr").iterdir():
            file.unlink()
    elif what == "file ending":
        path = raw / "dataset.json"
        path.write_text(path.read_text().replace(".nii.gz", ".nrrd"))
    elif what == "case":
        first.write_bytes(b"no NIfTI")
    elif what == "fingerprint":
        first.unlink()


@pytest.mark.parametrize(
    "what, said",
    [
        ("labels", "needs labels.*5 of 5 cases"),
        ("file ending", "nrrd.*NIfTI"),
        ("case", "case0_0000.nii.gz: cannot be read"),
        ("fingerprint", "5 cases and imagesTr has 4.*nnUNetv2_extract_fingerprint -d 7 --clean"),
    ],
)
def test_datasets_that_cannot_be_planned(dataset, capsys, what, said):
    spoil(dataset, what)
    assert re.search(said, refused(capsys, "-d", 7, "-weights", dataset / "c.pth"))


def test_variables_that_are_not_set(dataset, capsys, monkeypatch):
    monkeypatch.delenv("nnUNet_raw")
    assert "nnUNet_raw is not set" in refused(capsys, "-d", 7, "-weights", dataset / "c.pth")
