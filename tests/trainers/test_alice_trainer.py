"""AliceTrainer with nnU-Net's own commands, from planning to prediction, and what it refuses."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.run_training import maybe_load_checkpoint

from alice_nnunet.trainers.alice_scratch_trainer import AliceScratchTrainer
from alice_nnunet.trainers.alice_trainer import AliceTrainer
from tests.helpers.finetuning import write_case, write_checkpoint
from tests.helpers.training import (
    NAME,
    make,
    plan,
    plan_on_the_same_data,
    refusal,
    workplace_in,
)

SHORT_TRAINER = """
from alice_nnunet.trainers.alice_trainer import AliceTrainer

class ShortAliceTrainer(AliceTrainer):
    def __init__(self, plans, configuration, fold, dataset_json, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.warmup_epochs = 1, 0
        self.num_iterations_per_epoch = self.num_val_iterations_per_epoch = 1
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, real_ct, programs):
    """training.workplace_in with other.pth and a folder with a user's own trainer."""
    root = tmp_path_factory.mktemp("finetuning")
    (root / "own").mkdir()
    (root / "own" / "short_alice_trainer.py").write_text(SHORT_TRAINER)
    write_checkpoint(root / "other.pth", seed=1)
    with workplace_in(root, real_ct, root / "own"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(programs), prepend=os.pathsep)
        yield root


@pytest.fixture(scope="module")
def trained(workplace):
    """The workplace after a training, and its log.

    It was planned by alice-plan, preprocessed, and fold 0 was trained for one epoch.
    """
    options = ("-epochs", "1", "-iterations", "25", "-lr", "3e-3", "-np", "1")
    planned = run(workplace, "alice-plan", "-d", "7", "-weights", "c.pth", *options)
    assert planned.stdout.splitlines()[-1] == "AlicePlans"

    preprocess(workplace, "AlicePlans")
    return workplace, train(workplace, "-tr", "AliceTrainer", "-p", "AlicePlans").stdout


def run(
    folder: Path, *command: str, expected: int = 0, **variables: str
) -> subprocess.CompletedProcess:
    """Run an installed command and check its exit code.

    Args:
        folder: to run it in.
        *command: its name and arguments.
        expected: exit code.
        **variables: more environment variables.
    """
    done = subprocess.run(
        [shutil.which(command[0]), *command[1:]],
        cwd=folder,
        env={**os.environ, **variables},
        text=True,
        capture_output=True,
    )

    assert done.returncode == expected, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def train(
    folder: Path, *arguments: str, expected: int = 0, **variables: str
) -> subprocess.CompletedProcess:
    """Train fold 0 on the CPU; see run."""
    command = ("nnUNetv2_train", "7", "3d_fullres", "0", *arguments, "-device", "cpu")
    return run(folder, *command, expected=expected, **variables)


def preprocess(folder: Path, plans: str) -> None:
    """Preprocess the cases of plans."""
    run(
        folder,
        "nnUNetv2_preprocess",
        "-d",
        "7",
        "-plans_name",
        plans,
        "-c",
        "3d_fullres",
        "-np",
        "1",
    )


def predict(folder: Path, images: str, results: str, plans: str, *options: str) -> None:
    """Predict images with fold 0 of AliceTrainer."""
    model = ("-d", "7", "-c", "3d_fullres", "-tr", "AliceTrainer", "-p", plans, "-f", "0")
    device = ("-device", "cpu", "-npp", "1", "-nps", "1")
    run(folder, "nnUNetv2_predict", "-i", images, "-o", results, *model, *device, *options)


@contextmanager
def moved_away(weights: Path) -> Iterator[None]:
    """Inside the block there is no such file."""
    elsewhere = weights.with_name("moved.pth")
    weights.rename(elsewhere)
    try:
        yield
    finally:
        elsewhere.rename(weights)


def saved_plans(folder: Path, trainer: str = "AliceTrainer", plans: str = "AlicePlans") -> dict:
    return json.loads(
        (folder / "results" / NAME / f"{trainer}__{plans}__3d_fullres" / "plans.json").read_text()
    )


def test_training_logs_what_was_loaded_and_saves_the_block(trained):
    folder, log = trained
    for said in (
        f"encoder tensors from {folder / 'c.pth'} (sha256",
        "Loaded 49 of 49",
        "Not loaded: none",
        "Random: 33 decoder tensors",
        "Mean Validation Dice",
    ):
        assert said in log
    assert saved_plans(folder)["alice"]["weights"] == str(folder / "c.pth")


def test_prediction_needs_no_checkpoint_and_sees_no_orientation(trained, real_ct):
    """A scan stored as LPS, as RAS and along other axes gives one segmentation in physical space.

    Each has the geometry of its own file.
    """
    folder, _ = trained
    voxels = np.asarray(real_ct.dataobj)[5:33, 3:30, :16]
    orientations = ("LPS", "RAS", "SAL")
    for codes in orientations:
        write_case(folder / "in" / f"{codes}_0000.nii.gz", voxels, codes)
    with moved_away(folder / "c.pth"):
        predict(folder, "in", "out", "AlicePlans")

    turned = []
    for codes in orientations:
        image = sitk.ReadImage(folder / "in" / f"{codes}_0000.nii.gz")
        result = sitk.ReadImage(folder / "out" / f"{codes}.nii.gz")
        for value in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
            np.testing.assert_allclose(getattr(result, value)(), getattr(image, value)(), atol=1e-4)
        turned.append(sitk.DICOMOrient(result, "LPS"))

    first, *others = turned
    segmentation = sitk.GetArrayFromImage(first)
    assert np.unique(segmentation).tolist() == [0, 1]
    for other in others:
        np.testing.assert_allclose(other.GetOrigin(), first.GetOrigin(), atol=1e-3)
        assert np.array_equal(sitk.GetArrayFromImage(other), segmentation)


def test_going_on_and_validation_keep_the_trained_weights(trained):
    """--c after more epochs were planned, and --val, do not need the pretrained weights."""
    folder, _ = trained
    plan(folder, "-epochs", "2", "-iterations", "1")
    results = folder / "results" / NAME / "AliceTrainer__AlicePlans__3d_fullres" / "fold_0"
    final = torch.load(results / "checkpoint_final.pth", weights_only=False)["network_weights"]

    with moved_away(folder / "c.pth"):
        for going_on in (True, False):
            trainer = make(folder, going_on=going_on)
            maybe_load_checkpoint(trainer, going_on, not going_on)
            if going_on:
                trainer.on_train_start()

            assert (trainer.current_epoch, trainer.num_epochs) == (1, 2)
            weights = trainer.network.state_dict()
            assert all(torch.equal(tensor, final[name]) for name, tensor in weights.items())


def test_another_training_of_other_weights_is_refused(trained, capsys):
    folder, _ = trained
    plans = folder / "preprocessed" / NAME / "AlicePlans.json"
    kept = plans.read_text()
    before = saved_plans(folder)
    plans.unlink()

    try:
        plan(folder, "-epochs", "1", weights="other.pth")
        error = train(folder, "-tr", "AliceTrainer", "-p", "AlicePlans", expected=2).stderr
        assert "Traceback" not in error and "-n OTHERNAME" in error
        assert "holds a training of other plans" in error.splitlines()[-1]
        assert saved_plans(folder) == before

        for going_on in (True, False):  # --c and --val
            load = partial(
                maybe_load_checkpoint, make(folder, going_on=going_on), going_on, not going_on
            )
            assert "other plans" in refusal(capsys, load)
    finally:
        plans.write_text(kept)


def test_weights_gone_or_changed_stop_a_training_before_it_starts(trained, capsys):
    folder, _ = trained
    weights = folder / "c.pth"
    shutil.copy(weights, folder / "kept.pth")

    try:
        shutil.copy(folder / "other.pth", weights)
        text = refusal(capsys, make(folder, fold=1).on_train_start)
        assert "is not the file that was planned with" in text

        weights.unlink()
        text = refusal(capsys, make(folder, fold=1).on_train_start)
        assert f"{weights}, and that file is gone" in text
    finally:
        shutil.copy(folder / "kept.pth", weights)


def test_scratch_differs_in_the_weights_alone(trained):
    folder, _ = trained
    trainers = []
    for cls in (AliceTrainer, AliceScratchTrainer):
        torch.manual_seed(5)
        trainer = make(folder, cls, fold=2)
        trainer.initialize()
        trainers.append((trainer, trainer.load_weights()))
    (alice, loaded), (scratch, random) = trainers

    pretrained = torch.load(folder / "c.pth", weights_only=True)["network_weights"]
    ours = alice.network.state_dict()
    theirs = scratch.network.state_dict()
    different = {name for name in ours if not torch.equal(ours[name], theirs[name])}
    assert different and all(name.startswith("encoder.") for name in different)
    assert all(torch.equal(ours[f"encoder.{name}"], pretrained[name]) for name in pretrained)

    assert loaded[0].startswith("Loaded 49 of 49") and "no weights are loaded" in random[0]
    assert alice.plans_manager.plans == scratch.plans_manager.plans
    assert alice.num_epochs == scratch.num_epochs


def rates_of(trainer: AliceTrainer) -> list[float]:
    """Learning rates of the only parameter group in the epochs of the training."""
    (group,) = trainer.optimizer.param_groups
    rates = []
    for epoch in range(trainer.num_epochs):
        trainer.lr_scheduler.step(epoch)
        rates.append(group["lr"])
    return rates


def test_recipe_comes_from_the_plans(trained):
    folder, _ = trained
    plan(folder, "-n", "Long", "-epochs", "100", "-iterations", "7")
    trainer = make(folder, plans="Long")
    trainer.network = torch.nn.Linear(1, 1)
    trainer.optimizer, trainer.lr_scheduler = trainer.configure_optimizers()

    assert isinstance(trainer.optimizer, torch.optim.AdamW)
    assert trainer.optimizer.param_groups[0]["weight_decay"] == 1e-5
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch) == (100, 7)
    assert trainer.enable_deep_supervision is False

    rates = rates_of(trainer)
    np.testing.assert_allclose(rates[:5], [2e-5, 4e-5, 6e-5, 8e-5, 1e-4])
    assert rates[4] == max(rates)
    assert sorted(rates[5:], reverse=True) == rates[5:] and 0 < rates[-1] < 1e-6


def test_training_before_preprocessing_says_what_to_run(trained, capsys):
    folder, _ = trained
    plan(folder, "-n", "Unprocessed")
    text = refusal(capsys, make(folder, plans="Unprocessed").on_train_start)
    assert "nnUNetv2_preprocess -d 7 -plans_name Unprocessed -c 3d_fullres" in text


def test_other_weights_to_start_from_are_refused(trained, capsys):
    """nnU-Net's -pretrained_weights makes and loads the network before the training starts."""
    folder, _ = trained
    for cls in (AliceTrainer, AliceScratchTrainer):
        trainer = make(folder, cls, fold=3)
        trainer.initialize()
        assert "-pretrained_weights cannot be used" in refusal(capsys, trainer.on_train_start)


def test_configurations_that_cannot_be_fine_tuned(trained, capsys, monkeypatch):
    folder, _ = trained
    monkeypatch.setenv("alice_weights", str(folder / "c.pth"))
    assert "2D" in refusal(capsys, lambda: make(folder, plans="nnUNetPlans", configuration="2d"))
    assert "no configuration 3d_lowres" in refusal(
        capsys, lambda: make(folder, configuration="3d_lowres")
    )
    assert not list((folder / "results" / NAME).glob("*__2d"))


def test_stock_plans_with_the_variable(trained, capsys, monkeypatch):
    """A user's own subclass on nnU-Net's own plans of LPS files.

    The variable is needed to start a fold, and only then.
    """
    folder, _ = trained
    assert "alice_weights=CKPT" in refusal(capsys, lambda: make(folder, plans="nnUNetPlans"))
    preprocess(folder, "nnUNetPlans")

    log = train(folder, "-tr", "ShortAliceTrainer", alice_weights="c.pth").stdout
    assert "Loaded 49 of 49" in log
    assert "Axes flipped on the way into the network and back: ['y', 'x']" in log
    block = saved_plans(folder, "ShortAliceTrainer", "nnUNetPlans")["alice"]
    assert block["input"]["flip_axes"] == [1, 2] and block["input"]["scale"] != [1.0]
    check_prediction_sees_no_orientation(folder)

    class ShortAliceTrainer(AliceTrainer):
        """Finds the same results folder by its name."""

    trainer = make(folder, ShortAliceTrainer, "nnUNetPlans")
    maybe_load_checkpoint(trainer, False, True)  # --val
    assert trainer.plans_manager.plans["alice"] == block

    new_fold = make(folder, ShortAliceTrainer, "nnUNetPlans", fold=1)
    assert "alice_weights=CKPT" in refusal(capsys, new_fold.on_train_start)
    monkeypatch.setenv("alice_weights", str(folder / "other.pth"))
    assert "-n OTHERNAME" in refusal(capsys, new_fold.on_train_start)
    assert saved_plans(folder, "ShortAliceTrainer", "nnUNetPlans")["alice"] == block

    # The other folds were trained by an earlier version: this one computes in fp32 as they did.
    model = folder / "results" / NAME / "ShortAliceTrainer__nnUNetPlans__3d_fullres"
    earlier = json.loads((model / "plans.json").read_text())
    assert earlier["alice"]["recipe"].pop("precision") == "auto"
    (model / "plans.json").write_text(json.dumps(earlier))
    monkeypatch.setenv("alice_weights", str(folder / "c.pth"))
    new_fold = make(folder, ShortAliceTrainer, "nnUNetPlans", fold=1)
    new_fold.on_train_start()
    assert not new_fold.network.half_on_cpu
    new_fold.on_train_end()

    for encoder, outputs in (("swin", 1), ("nnformer", 2)):
        weights = write_checkpoint(folder / f"stock_{encoder}.pth", encoder=encoder)
        monkeypatch.setenv("alice_weights", str(weights))
        check_training_and_prediction_share_weights(make(folder, plans="nnUNetPlans"), outputs)


def check_prediction_sees_no_orientation(folder: Path) -> None:
    """A model of stock plans, whose reader turns nothing, segments a scan alike in any file."""
    source = nibabel.load(folder / "raw" / NAME / "imagesTr" / "case0_0000.nii.gz")
    model = folder / "results" / NAME / "ShortAliceTrainer__nnUNetPlans__3d_fullres"
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), (0,))

    results = []
    for codes in ("LPS", "RAS", "PIR"):
        scan = folder / "in_stock" / f"{codes}_0000.nii.gz"
        write_case(scan, np.asarray(source.dataobj), codes)
        predictor.predict_from_files_sequential([[str(scan)]], [str(scan.with_name(codes))])
        result = nibabel.load(scan.with_name(f"{codes}.nii.gz"))
        np.testing.assert_allclose(result.affine, nibabel.load(scan).affine, atol=1e-5)
        assert result.header["qform_code"] and result.header["sform_code"]
        results.append(np.asarray(nibabel.as_closest_canonical(result).dataobj))

    assert np.unique(results[0]).tolist() == [0, 1]
    assert np.array_equal(results[1], results[0]) and np.array_equal(results[2], results[0])


@torch.no_grad()
def check_training_and_prediction_share_weights(trainer: AliceTrainer, outputs: int) -> None:
    """The network of stock plans has all outputs in training and the finest in prediction.

    Both load one state dict strictly.
    """
    trainer.initialize()
    assert trainer.load_weights()[1] == "Not loaded: none"
    assert trainer.plans_manager.plans["alice"]["input"]["flip_axes"] == [1, 2]

    image = torch.rand(1, 1, *trainer.configuration_manager.patch_size)
    network = trainer.network.eval()
    results = network(image) if outputs > 1 else [network(image)]
    assert [list(r.shape[2:]) for r in results] == [
        [round(n / 2**level) for n in image.shape[2:]] for level in range(outputs)
    ]

    predicting = AliceTrainer.build_network_architecture(
        trainer.plans_manager, trainer.configuration_manager, 1, 2, False
    ).eval()
    predicting.load_state_dict(network.state_dict(), strict=True)
    assert torch.equal(predicting(image), results[0])
    trainer.set_deep_supervision_enabled(False)
    assert torch.equal(network(image), results[0])


@pytest.mark.parametrize("encoder", ["swin", "nnformer"])
def test_the_other_encoders_train_and_predict(trained, encoder):
    folder, _ = trained
    plan_on_the_same_data(folder, encoder, encoder, "-epochs", "1", "-iterations", "1")
    log = train(folder, "-tr", "AliceTrainer", "-p", encoder).stdout
    assert "Not loaded: none" in log and "Mean Validation Dice" in log

    (folder / f"{encoder}.pth").unlink()
    noise = np.random.default_rng(0).normal(0, 100, (20, 17, 16)).astype(np.float32)
    write_case(folder / f"in_{encoder}" / "a_0000.nii.gz", noise)
    predict(folder, f"in_{encoder}", f"out_{encoder}", encoder, "--disable_tta")
    assert sitk.ReadImage(folder / f"out_{encoder}" / "a.nii.gz").GetSize() == (20, 17, 16)


def test_nnformers_recipe_and_deep_supervision(trained):
    folder, _ = trained
    plan_on_the_same_data(folder, "nnformer", "Deep", "-epochs", "100")
    trainer = make(folder, plans="Deep")
    trainer.initialize()

    (group,) = trainer.optimizer.param_groups
    assert isinstance(trainer.optimizer, torch.optim.SGD)
    assert group["nesterov"] and group["momentum"] == 0.99 and group["weight_decay"] == 3e-5
    assert trainer.warmup_epochs == 4

    rates = rates_of(trainer)
    np.testing.assert_allclose(rates[:5], [2.5e-3, 5e-3, 7.5e-3, 1e-2, 1e-2])
    np.testing.assert_allclose(rates[52], 1e-2 * 0.5**0.9)

    assert trainer.enable_deep_supervision and trainer.network.deep_supervision
    assert not trainer._do_i_compile()
    assert trainer._get_deep_supervision_scales() == [[1, 1, 1], [0.5] * 3]
    np.testing.assert_allclose(trainer.loss.weight_factors, [2 / 3, 1 / 3])

    trainer.levels = 3
    np.testing.assert_allclose(trainer._build_loss().weight_factors, [4 / 7, 2 / 7, 1 / 7])
    trainer.set_deep_supervision_enabled(False)
    assert not trainer.network.deep_supervision
