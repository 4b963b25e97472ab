"""alice-plan: what it writes, what it says, what it refuses."""

import json
import re

import nibabel
import numpy as np
import pytest

from alice_nnunet.commands.export import main as alice_export
from alice_nnunet.commands.plan import main
from alice_nnunet.files import file_sha256
from alice_nnunet.finetuning.block import block_of_plans
from alice_nnunet.finetuning.compatibility import check_compatible
from tests.helpers.exporting import write_run
from tests.helpers.finetuning import stock_plans, write_case, write_checkpoint, write_dataset


@pytest.fixture
def dataset(nnunet_folders, real_ct):
    """A labeled dataset that nnU-Net has already planned, and a checkpoint c.pth beside the three folders."""
    raw = write_dataset(nnunet_folders / "raw", real_ct)
    write_checkpoint(nnunet_folders / "c.pth")
    preprocessed = nnunet_folders / "preprocessed" / raw.name
    preprocessed.mkdir()
    files = sorted((raw / "imagesTr").iterdir())
    (preprocessed / "dataset_fingerprint.json").write_text(
        json.dumps(
            {
                "spacings": [[3.0, 3.0, 3.0]] * len(files),
                "shapes_after_crop": [list(nibabel.load(file).shape[::-1]) for file in files],
            }
        )
    )
    (preprocessed / "nnUNetPlans.json").write_text(json.dumps(stock_plans()))
    (preprocessed / "dataset.json").write_text((raw / "dataset.json").read_text())
    return nnunet_folders


def refused(capsys, *arguments) -> str:
    """The one line that a refused call ends in."""
    with pytest.raises(SystemExit) as stopped:
        main([str(a) for a in arguments])
    text = capsys.readouterr().err
    assert stopped.value.code == 2 and text.startswith("alice-plan: ") and text.count("\n") == 1
    return text


def written(folders, name="AlicePlans") -> dict:
    return json.loads((folders / "preprocessed" / "Dataset007_Body" / f"{name}.json").read_text())


def test_says_what_it_chose_and_last_the_name(dataset, capsys):
    main(["-d", "7", "-weights", str(dataset / "c.pth")])
    lines = capsys.readouterr().out.splitlines()
    text, plans = "\n".join(lines), written(dataset)
    assert lines[-1] == "AlicePlans"
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
    assert plans["alice"]["weights"] == str(dataset / "c.pth")
    assert plans["alice"]["weights_sha256"] == file_sha256(dataset / "c.pth")
    assert plans["configurations"]["3d_fullres"]["batch_size"] == 2


def test_options(dataset, capsys, monkeypatch):
    monkeypatch.chdir(dataset)
    main(
        "-d Dataset007_Body -weights c.pth -n Short -epochs 100 -iterations 10 -patch 32 16 48 -batch 5 -lr 0.002".split()
    )
    plans = written(dataset, "Short")
    configuration, recipe = plans["configurations"]["3d_fullres"], plans["alice"]["recipe"]
    assert (configuration["patch_size"], configuration["batch_size"]) == ([32, 16, 48], 5)
    assert (recipe["epochs"], recipe["warmup_epochs"], recipe["iterations_per_epoch"]) == (
        100,
        5,
        10,
    )
    assert recipe["learning_rate"] == 0.002
    assert (
        plans["alice"]["weights"] == str(dataset / "c.pth")
        and capsys.readouterr().out.splitlines()[-1] == "Short"
    )


def test_the_papers_preset_gets_the_papers_patch_and_batch(dataset, capsys):
    checkpoint = write_checkpoint(dataset / "paper.pth", preset="paper", spacing=[0.1, 0.1, 0.1])
    main(["-d", "7", "-weights", str(checkpoint)])
    configuration = written(dataset)["configurations"]["3d_fullres"]
    assert (configuration["patch_size"], configuration["batch_size"]) == ([96, 96, 96], 8)


def test_spacings(dataset, capsys):
    """The pretraining's, nnU-Net's own for the dataset, and three numbers; what is off is accepted once and for all."""

    def plan(*spacing: str) -> tuple[dict, str]:
        main(
            [
                "-d",
                "7",
                "-weights",
                str(dataset / "c.pth"),
                "-n",
                "S" + "".join(spacing).replace(".", ""),
                "-spacing",
                *spacing,
            ]
        )
        plans = written(dataset, "S" + "".join(spacing).replace(".", ""))
        check_compatible(block_of_plans(plans).origin, plans, plans["configurations"]["3d_fullres"])
        return plans, capsys.readouterr().out

    plans, text = plan("pretrained")
    assert (
        plans["configurations"]["3d_fullres"]["spacing"] == [3, 3, 3]
        and "3 x 3 x 3 mm: the pretraining's" in text
    )
    plans, text = plan("dataset")
    assert (
        plans["configurations"]["3d_fullres"]["spacing"] == [3.05, 2.95, 3.0]
        and "accepted_spacing" not in plans["alice"]
    )
    assert "nnU-Net's for this dataset" in text and "accepted" not in text
    plans, text = plan("2", "1.5", "6")
    assert (
        plans["alice"]["accepted_spacing"] == [2, 1.5, 6]
        and "1.50 x 2.00 x 0.50 times the voxels" in text
        and "accepted, as -spacing" in text
    )
    assert plans["configurations"]["3d_fullres"]["median_image_size_in_voxels"] == [
        24.0,
        64.0,
        15.0,
    ]
    assert plans["configurations"]["3d_fullres"]["patch_size"] == [16, 32, 16]


def test_the_datasets_spacing_is_turned_to_the_canonical_axes(dataset, capsys):
    raw = dataset / "raw" / "Dataset007_Body"
    stock = stock_plans(
        transpose_forward=[1, 0, 2], transpose_backward=[1, 0, 2]
    )  # spacing 3.05, 2.95, 3.0 along y, z, x of the files
    (dataset / "preprocessed" / "Dataset007_Body" / "nnUNetPlans.json").write_text(
        json.dumps(stock)
    )
    for file in (
        raw / "imagesTr"
    ).iterdir():  # z, y, x of the files are x, y, z of the canonical orientation
        write_case(file, np.asarray(nibabel.load(file).dataobj).astype(np.int16), "SAL")
    main(["-d", "7", "-weights", str(dataset / "c.pth"), "-spacing", "dataset"])
    assert written(dataset)["configurations"]["3d_fullres"]["spacing"] == [3.0, 3.05, 2.95]
    write_case(file, np.asarray(nibabel.load(file).dataobj).astype(np.int16), "LPS")
    assert "three numbers instead" in refused(
        capsys, "-d", 7, "-weights", dataset / "c.pth", "-spacing", "dataset"
    )


def test_memory_is_said_and_kept_within_a_gpus(dataset, capsys):
    plan = [
        "-d",
        "7",
        "-weights",
        str(write_checkpoint(dataset / "paper.pth", preset="paper", spacing=[0.1, 0.1, 0.1])),
        "-n",
        "P",
    ]

    def planned(*options: str) -> tuple[list, int, float, str]:
        main([*plan, *options])
        text, configuration = (
            capsys.readouterr().out,
            written(dataset, "P")["configurations"]["3d_fullres"],
        )
        return (
            configuration["patch_size"],
            configuration["batch_size"],
            float(re.search(r"memory +([\d.]+) GB", text)[1]),
            text,
        )

    patch, batch, free, text = planned()
    assert (patch, batch) == ([96, 96, 96], 8) and "no -gpu_memory is given" in text
    patch, batch, needed, text = planned("-gpu_memory", str(0.8 * free + 1))
    assert (
        patch == [96, 96, 96]
        and 5 < batch < 8
        and needed <= 0.8 * free
        and "reduced from 8 to fit -gpu_memory" in text
    )
    patch, batch, needed, text = planned(
        "-gpu_memory", str(0.9 * free + 1), "-batch", "8"
    )  # what is given stays, the patch gives way
    assert (
        batch == 8
        and sorted(patch)[0] < 96
        and needed <= 0.9 * free
        and "reduced from 96 x 96 x 96" in text
    )
    assert all(size % 16 == 0 for size in patch)
    assert "smaller -patch or -batch" in refused(
        capsys, *plan, "-gpu_memory", 1.1, "-patch", 64, 64, 64, "-batch", 2
    )


def test_anything_in_the_recipe_can_be_set(dataset, capsys):
    main(
        [
            "-d",
            "7",
            "-weights",
            str(dataset / "c.pth"),
            "--set",
            "optimizer=SGD",
            "momentum=0.95",
            "layer_decay=0.8",
            "frozen_epochs=20",
            "seed=3",
            "--set",
            "augmentation=none",
            "augmentation.blur=0.5",
        ]
    )
    text, recipe = capsys.readouterr().out, written(dataset)["alice"]["recipe"]
    assert (
        recipe["optimizer"],
        recipe["momentum"],
        recipe["layer_decay"],
        recipe["frozen_epochs"],
        recipe["seed"],
    ) == ("SGD", 0.95, 0.8, 20, 3)
    assert {name for name, p in recipe["augmentation"].items() if p} == {"blur"}
    for said in (
        "SGD",
        "each layer 0.8 times",
        "unchanged for the first 20 epochs",
        "seed         3",
        "augmentation blur 0.5",
    ):
        assert said in text


def test_cases_preprocessed_otherwise_are_not_left_behind(dataset, capsys):
    main(["-d", "7", "-weights", str(dataset / "c.pth")])
    folder, before = (
        dataset / "preprocessed" / "Dataset007_Body" / "AlicePlans_3d_fullres",
        written(dataset),
    )
    folder.mkdir()
    (folder / "case0.pkl").write_bytes(b"")
    text = refused(capsys, "-d", 7, "-weights", dataset / "c.pth", "-spacing", 2, 2, 2)
    assert (
        str(folder) in text
        and "[3.0, 3.0, 3.0] there, [2.0, 2.0, 2.0] now" in text
        and "-n" in text
        and written(dataset) == before
    )
    main(
        ["-d", "7", "-weights", str(dataset / "c.pth"), "-epochs", "3", "-batch", "4"]
    )  # the same cases serve
    main(["-d", "7", "-weights", str(dataset / "c.pth"), "-spacing", "2", "2", "2", "-n", "Two"])
    assert (
        written(dataset, "Two")["configurations"]["3d_fullres"]["data_identifier"]
        == "Two_3d_fullres"
    )


def test_plans_of_other_weights_are_not_overwritten(dataset, capsys):
    main(["-d", "7", "-weights", str(dataset / "c.pth"), "-epochs", "10"])
    main(
        ["-d", "7", "-weights", str(dataset / "c.pth"), "-epochs", "20"]
    )  # same weights: written anew
    assert written(dataset)["alice"]["recipe"]["epochs"] == 20
    other, before = write_checkpoint(dataset / "other.pth", seed=1), written(dataset)
    assert "other weights" in (text := refused(capsys, "-d", 7, "-weights", other)) and "-n" in text
    assert "no weights of alice-pretrain" in refused(
        capsys, "-d", 7, "-weights", other, "-n", "nnUNetPlans"
    )
    assert written(dataset) == before
    main(["-d", "7", "-weights", str(other), "-n", "Others"])
    assert (
        written(dataset, "Others")["configurations"]["3d_fullres"]["data_identifier"]
        == "Others_3d_fullres"
    )


def test_an_exported_folder_gives_the_plans_of_its_checkpoint(dataset, capsys):
    write_run(dataset / "run.pth")
    alice_export([str(dataset / "run.pth"), str(dataset / "shared")])
    main(["-d", "7", "-weights", str(dataset / "run.pth"), "-n", "Checkpoint"])
    main(["-d", "7", "-weights", str(dataset / "shared"), "-n", "Folder"])
    checkpoint, folder = (
        written(dataset, "Checkpoint")["alice"],
        written(dataset, "Folder")["alice"],
    )
    assert folder["weights"] == str(dataset / "shared")
    assert folder["weights_sha256"] == file_sha256(dataset / "shared" / "model.safetensors")
    assert {k: v for k, v in folder.items() if "weights" not in k} == {
        k: v for k, v in checkpoint.items() if "weights" not in k
    }
    (dataset / "shared" / "config.json").unlink()
    assert "no config.json in" in refused(
        capsys, "-d", 7, "-weights", dataset / "shared", "-n", "Third"
    )


def test_sizes_are_those_after_turning_to_ras(dataset, capsys):
    """Files stored along S, A, L have the axes of nnU-Net's SimpleITK arrays the other way round."""
    raw = dataset / "raw" / "Dataset007_Body"
    for file in (raw / "imagesTr").iterdir():
        image = nibabel.load(file)
        write_case(file, np.asarray(image.dataobj).astype(np.int16), "SAL", spacing=[4.0, 3.0, 2.0])
    fingerprint = dataset / "preprocessed" / "Dataset007_Body" / "dataset_fingerprint.json"
    shapes = [list(nibabel.load(file).shape[::-1]) for file in sorted((raw / "imagesTr").iterdir())]
    fingerprint.write_text(
        json.dumps({"spacings": [[2.0, 3.0, 4.0]] * 5, "shapes_after_crop": shapes})
    )
    main(["-d", "7", "-weights", str(dataset / "c.pth")])
    plans = written(dataset)
    assert plans["original_median_spacing_after_transp"] == [4.0, 3.0, 2.0]
    assert (
        plans["original_median_shape_after_transp"]
        == np.median([shape[::-1] for shape in shapes], 0).tolist()
    )


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
    stock = dataset / "preprocessed" / "Dataset007_Body" / "nnUNetPlans.json"
    plans = stock_plans()
    plans["configurations"]["3d_fullres"]["normalization_schemes"] = [
        "CTNormalization",
        "ZScoreNormalization",
    ]
    plans["foreground_intensity_properties_per_channel"]["1"] = {
        "mean": 1.0,
        "std": 2.0,
        "percentile_00_5": 0.0,
        "percentile_99_5": 9.0,
    }
    stock.write_text(json.dumps(plans))
    assert (
        "channel 1 of Dataset007_Body"
        in (text := refused(capsys, "-d", 7, "-weights", dataset / "c.pth"))
        and "alice_accept_channels=1" in text
    )
    monkeypatch.setenv("alice_accept_channels", "1")
    main(["-d", "7", "-weights", str(dataset / "c.pth")])
    said, new = capsys.readouterr().out, written(dataset)
    assert (
        "channel 0    CT clipped to -125..255 HU" in said
        and "channel 1    ZScoreNormalization, not seen by the pretraining" in said
    )
    assert (
        new["foreground_intensity_properties_per_channel"]["1"]
        == plans["foreground_intensity_properties_per_channel"]["1"]
    )
    assert (
        new["alice"]["other_channels"] == [1]
        and new["alice"]["input"]["scale"] == [1.0, 1.0]
        and new["alice"]["input"]["low"] == [0.0, None]
    )


def spoil(dataset, what: str) -> None:
    raw, images = (
        dataset / "raw" / "Dataset007_Body",
        dataset / "raw" / "Dataset007_Body" / "imagesTr",
    )
    if what == "labels":
        for file in (raw / "labelsTr").iterdir():
            file.unlink()
    elif what == "file ending":
        (raw / "dataset.json").write_text(
            (raw / "dataset.json").read_text().replace(".nii.gz", ".nrrd")
        )
    elif what == "case":
        (images / "case0_0000.nii.gz").write_bytes(b"no NIfTI")
    elif what == "fingerprint":
        (images / "case0_0000.nii.gz").unlink()


@pytest.mark.parametrize(
    "what, said",
    [
        ("labels", "needs labels.*5 of 5 cases"),
        ("file ending", "nrrd.*NIfTI"),
        ("case", "case0_0000.nii.gz cannot be read"),
        ("fingerprint", "5 cases and imagesTr has 4.*nnUNetv2_extract_fingerprint -d 7 --clean"),
    ],
)
def test_datasets_that_cannot_be_planned(dataset, capsys, what, said):
    spoil(dataset, what)
    assert re.search(said, refused(capsys, "-d", 7, "-weights", dataset / "c.pth"))


def test_variables_that_are_not_set(dataset, capsys, monkeypatch):
    monkeypatch.delenv("nnUNet_raw")
    assert "nnUNet_raw is not set" in refused(capsys, "-d", 7, "-weights", dataset / "c.pth")
