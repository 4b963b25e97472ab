"""What an earlier version wrote still loads, and gives the same: see made_before/README.md."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from pydoc import locate

import nibabel
import numpy as np
import pytest
import torch

import alice_nnunet.trainers
from alice_nnunet.files import file_sha256
from alice_nnunet.names import LATEST
from tests.helpers.warm_commands import warm_commands

MADE = Path(__file__).parent / "made_before"
PRETRAINING = Path("Dataset022_Before") / "AlicePretrain__AlicePretrainPlans__3d_fullres" / "vit"
ANATOMY = Path("Dataset022_Before") / "AlicePretrainPlans_anatomy"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Path]:
    """A copy of the files, which the tests of this module share, with the commands in bin/."""
    folder = Path(shutil.copytree(MADE, tmp_path_factory.mktemp("made") / "before"))
    with warm_commands(folder, {}):
        yield folder


def run(place: Path, *words: str) -> str:
    """Run a command on the copy. Returns what it printed."""
    folders = {f"nnUNet_{name}": str(place / name) for name in ("raw", "preprocessed", "results")}
    environment = {
        **os.environ,
        **folders,
        "nnUNet_extTrainer": alice_nnunet.trainers.__path__[0],
        "nnUNet_def_n_proc": "1",
        "OMP_NUM_THREADS": "1",
    }

    program = place / "bin" / words[0]
    done = subprocess.run(
        [str(program), *words[1:]], env=environment, capture_output=True, text=True, cwd=place
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def expected(name: str) -> dict:
    return json.loads((MADE / "expected" / name).read_text())


def test_a_pretraining_goes_on_where_it_stopped(place):
    words = ("-d", "22", "-encoder", "vit", "-preset", "tiny", "-device", "cpu", "-np", "1", "--c")
    folder = place / "results" / PRETRAINING
    latest = (folder / LATEST).read_bytes()
    output = run(place, "alice-pretrain", *words)
    assert "step 3" in output

    assert not (folder / LATEST).exists()  # the run has ended
    (folder / LATEST).write_bytes(latest)  # the other tests plan from it

    checkpoint = torch.load(folder / "checkpoint_final.pth", weights_only=True)
    whole = expected("pretraining.json")
    assert checkpoint["step"] == whole["step"] == 6

    # Losses of other CPUs differ in their last digits, which three steps of AdamW enlarge.
    for name in ("l_r", "l_dv", "l_st", "loss", "validation l_r", "retrieval", "lr", "ema"):
        was = np.array(whole["history"][name])
        now = np.array(checkpoint["history"][name])
        assert np.array_equal(now[:, 0], was[:, 0]), name
        np.testing.assert_allclose(now[:, 1], was[:, 1], rtol=2e-3, err_msg=name)


def test_the_index_is_kept(place):
    folder = place / "preprocessed" / ANATOMY
    before = {path.name: file_sha256(path) for path in folder.glob("*.npy")}
    assert len(before) == 3

    words = ("-d", "22", "-preset", "tiny", "-device", "cpu", "-np", "1")
    output = run(place, "alice-embed", *words, "-config", str(folder / "config.json"))
    assert "3 of 3 volumes are indexed (0 new)" in output
    assert {path.name: file_sha256(path) for path in folder.glob("*.npy")} == before


@pytest.mark.parametrize(
    "plans, encoder",
    [("AlicePlans", "vit"), ("Plans_swin", "swin"), ("Plans_nnformer", "nnformer")],
)
def test_plans_come_out_the_same(place, plans, encoder):
    if encoder == "vit":
        weights = place / "results" / PRETRAINING / "checkpoint_latest.pth"
        more = ("-epochs", "2", "-iterations", "2", "--set", "seed=1")
    else:
        weights = place / f"exported_{encoder}"
        more = ()

    run(place, "alice-plan", "-d", "7", "-weights", str(weights), "-n", plans, "-np", "1", *more)

    now = json.loads((place / "preprocessed" / "Dataset007_Before" / f"{plans}.json").read_text())
    was = expected(f"{plans}.json")
    assert now["alice"].pop("weights") == str(weights)
    was["alice"].pop("weights")
    assert now["alice"]["recipe"].pop("precision") == "auto"  # earlier plans compute in fp32
    if encoder == "vit":  # the expected plans name the checkpoint of step 6
        now["alice"].pop("weights_sha256")
        was["alice"].pop("weights_sha256")

        # Plans now say which patch the position embeddings are for, in multiples of 16 voxels.
        configuration = now["configurations"]["3d_fullres"]
        size = [-(-length // 16) * 16 for length in configuration["patch_size"]]
        for arguments in (
            now["alice"]["network_arguments"],
            configuration["architecture"]["arch_kwargs"],
        ):
            assert arguments.pop("positions") == {"size": size, "pitch": [1.0, 1.0, 1.0]}
    assert now == was


def test_a_trained_model_predicts_the_same(place):
    words = ("-d", "7", "-c", "3d_fullres", "-f", "0", "-tr", "AliceTrainer", "-p", "AlicePlans")
    images = place / "raw" / "Dataset007_Before" / "imagesTs"
    options = ("-device", "cpu", "-npp", "0", "-nps", "0", "--disable_tta", "--save_probabilities")
    run(place, "nnUNetv2_predict", "-i", str(images), "-o", str(place / "out"), *words, *options)

    now = np.load(place / "out" / "case5.npz")["probabilities"][1]
    was = np.load(MADE / "expected" / "case5_probabilities.npz")["liver"]  # float16
    np.testing.assert_allclose(now, was, atol=2e-3)

    labels = np.asarray(nibabel.load(place / "out" / "case5.nii.gz").dataobj)
    reference = np.asarray(nibabel.load(MADE / "expected" / "case5.nii.gz").dataobj)
    assert 0.5 < reference.mean() < 1
    assert (labels != reference).mean() < 1e-3


def test_class_paths_in_written_files_are_importable():
    plans = [json.loads(path.read_text()) for path in (MADE / "expected").glob("*lans*.json")]
    assert len(plans) == 4
    preprocessed = MADE / "preprocessed" / "Dataset022_Before" / "AlicePretrainPlans.json"
    plans.append(json.loads(preprocessed.read_text()))

    networks = {
        configuration["architecture"]["network_class_name"]
        for content in plans
        for configuration in content["configurations"].values()
    }
    encoders = {
        json.loads((MADE / f"exported_{name}" / "adaptation_plan.json").read_text())
        ["architecture_plans"]["arch_class_name"]
        for name in ("swin", "nnformer")
    }  # fmt: skip
    assert len(networks) == 4
    for path in networks | encoders:
        assert isinstance(locate(path), type), path
