"""What the recipe does in a training (seed, frozen encoder, layer decay, augmentation), and NaN."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from alice_nnunet.finetuning import network
from alice_nnunet.finetuning.recipes import NNUNET_AUGMENTATION
from alice_nnunet.trainers import alice_trainer
from alice_nnunet.trainers.alice_scratch_trainer import AliceScratchTrainer
from alice_nnunet.trainers.alice_trainer import AliceTrainer
from tests.helpers.finetuning import write_checkpoint
from tests.helpers.training import NAME, make, plan, plan_on_the_same_data, refusal, workplace_in


@pytest.fixture(scope="module")
def folder(tmp_path_factory, real_ct):
    """A workplace whose AlicePlans are preprocessed."""
    root = tmp_path_factory.mktemp("recipes")
    with workplace_in(root, real_ct):
        plan(root)
        preprocess_dataset(7, "AlicePlans", ["3d_fullres"], [1])
        yield root


@pytest.mark.parametrize("workers", ["0", "2"])
def test_scratch_sees_the_same_batches(folder, monkeypatch, workers):
    """With one seed both trainers start with the same decoder and see the same augmented crops."""
    name = f"Seeded{workers}"
    plan_on_the_same_data(folder, "vit", name, "--set", "seed=7", "augmentation=nnunet")
    monkeypatch.setenv("nnUNet_n_proc_DA", workers)

    batches = []
    weights = []
    for cls in (AliceTrainer, AliceScratchTrainer):
        trainer = make(folder, cls, name)
        trainer.on_train_start()
        weights.append(trainer.network.state_dict())

        training = trainer.dataloader_train
        batches.append([next(training), next(training), next(trainer.dataloader_val)])
        trainer.on_train_end()

    for ours, theirs in zip(*batches):
        assert ours["keys"].tolist() == theirs["keys"].tolist()
        assert torch.equal(ours["data"], theirs["data"])
        assert torch.equal(ours["target"], theirs["target"])
    assert not torch.equal(batches[0][0]["data"], batches[0][1]["data"])

    alice, scratch = weights
    different = {name for name in alice if not torch.equal(alice[name], scratch[name])}
    assert different and all(name.startswith("encoder.") for name in different)


def one_epoch(trainer: AliceTrainer, checkpoint: Path | None = None) -> dict:
    """Train an epoch of one step, and save it. Returns the network's tensors before it."""
    before = {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}

    trainer.on_train_epoch_start()
    trainer.train_step(next(trainer.dataloader_train))
    if checkpoint:
        trainer.save_checkpoint(str(checkpoint))
    trainer.current_epoch += 1
    return before


def unchanged(trainer: AliceTrainer, before: dict) -> set[str]:
    return {
        name
        for name, tensor in trainer.network.state_dict().items()
        if torch.equal(tensor, before[name])
    }


@pytest.mark.parametrize("encoder", ["vit", "nnformer"])  # AdamW and SGD
def test_a_frozen_encoder_stays_and_then_learns_layer_by_layer_also_after_going_on(
    folder, encoder, capsys
):
    options = ["-epochs", "4", "--set", "warmup_epochs=0", "frozen_epochs=1", "layer_decay=0.5"]
    plan_on_the_same_data(folder, encoder, f"Frozen{encoder}", *options)
    trainer = make(folder, plans=f"Frozen{encoder}")
    trainer.on_train_start()

    encoders = {name for name in trainer.network.state_dict() if name.startswith("encoder.")}
    still = unchanged(trainer, one_epoch(trainer, folder / "frozen.pth"))
    assert encoders <= still and not any(name.startswith(("out.", "heads.0.")) for name in still)
    assert len(encoders & unchanged(trainer, one_epoch(trainer))) < 0.1 * len(encoders)

    again = make(folder, plans=f"Frozen{encoder}", going_on=True)
    again.initialize()
    again.load_checkpoint(str(folder / "frozen.pth"))
    again.on_train_start()
    again.on_train_epoch_start()
    rates = [[group["lr"] for group in t.optimizer.param_groups] for t in (trainer, again)]
    layers = 4 if encoder == "vit" else 6
    np.testing.assert_allclose(rates[0], rates[0][0] * 0.5 ** np.arange(layers + 2))
    assert rates[0] == rates[1] and again.current_epoch == 1

    # the optimizer's state is for another layer_decay
    plan_on_the_same_data(folder, encoder, f"Frozen{encoder}", *options[:-1], "layer_decay=0.9")
    other = make(folder, plans=f"Frozen{encoder}", going_on=True)
    assert "layer_decay 0.5 there, 0.9 now" in refusal(
        capsys, lambda: other.load_checkpoint(str(folder / "frozen.pth"))
    )


def test_augmentation_comes_from_the_plans(folder):
    settings = ("--set", "augmentation.mirroring=0", "augmentation.gamma=0.125")
    plan_on_the_same_data(folder, "vit", "Unmirrored", *settings)
    trainer = make(folder, plans="Unmirrored")
    trainer.initialize()

    transforms = trainer.get_dataloaders()[0].data_loader.transforms.transforms
    probabilities = {
        type(transform.transform).__name__: transform.apply_probability
        for transform in transforms
        if isinstance(transform, RandomTransform)
    }
    assert "MirrorTransform" not in probabilities
    assert probabilities["GammaTransform"] == 0.125 and probabilities["IntensityShift"] == 0.5

    # what was not trained with is not predicted with
    assert trainer.inference_allowed_mirroring_axes is None


def test_plans_of_an_older_version_go_on_working(folder):
    plan_on_the_same_data(folder, "vit", "Older", "-epochs", "100")
    path = folder / "preprocessed" / NAME / "Older.json"
    content = json.loads(path.read_text())
    for name in ("layer_decay", "frozen_epochs", "seed", "augmentation"):
        del content["alice"]["recipe"][name]
    path.write_text(json.dumps(content))

    trainer = make(folder, plans="Older")
    trainer.initialize()
    assert len(trainer.optimizer.param_groups) == 1
    assert trainer.recipe.augmentation == NNUNET_AUGMENTATION


@pytest.mark.parametrize(
    "plans, change, said",
    [
        (
            "Deep",
            {},
            "encoder vit instead of nnformer.*unset alice_weights.*alice-plan -d 7 -weights",
        ),
        (
            "nnUNetPlans",
            {"orientation": "LPS"},
            "orientation 'LPS' instead of 'RAS'.*pretrain again",
        ),
        (
            "nnUNetPlans",
            {"spacing": [1.5, 0.76, 0.76]},
            "3 x 3 x 3 mm and 1.5 x 0.76 x 0.76 mm.*alice-plan -d 7 -weights",
        ),
    ],
)
def test_weights_in_the_variable_that_do_not_belong_to_the_plans(
    folder, capsys, monkeypatch, plans, change, said
):
    if plans == "Deep":
        plan_on_the_same_data(folder, "nnformer", "Deep")
    monkeypatch.setenv(
        "alice_weights", str(write_checkpoint(folder / "foreign.pth", seed=2, **change))
    )
    assert re.search(said, refusal(capsys, lambda: make(folder, plans=plans).on_train_start()))


class SpoiledTrainer(AliceTrainer):
    """After its first epoch, the preprocessed images on the disk are NaN."""

    def on_epoch_end(self) -> None:
        super().on_epoch_end()
        folder = self.preprocessed_dataset_folder
        for case in nnUNetDatasetBlosc2.get_identifiers(folder):
            data, seg, _, properties = nnUNetDatasetBlosc2(folder, [case]).load_case(case)
            labels = np.asarray(seg[:])
            file = Path(folder) / case
            (file.parent / f"{case}.b2nd").unlink()
            (file.parent / f"{case}_seg.b2nd").unlink()
            spoiled = np.full(data.shape, np.nan, np.float32)
            nnUNetDatasetBlosc2.save_case(spoiled, labels, properties, str(file))


def test_nan_in_the_images_ends_the_run_and_keeps_the_last_checkpoint(folder, capsys):
    """The whole of nnUNetv2_train: an epoch is trained and saved, the next meets NaN."""
    plan_on_the_same_data(folder, "vit", "Spoiled", "-epochs", "3", "-iterations", "1")
    preprocessed = folder / "preprocessed" / NAME
    kept = shutil.copytree(preprocessed / "AlicePlans_3d_fullres", folder / "kept")
    shutil.copytree(kept, preprocessed / "Spoiled_3d_fullres")
    plans = json.loads((preprocessed / "Spoiled.json").read_text())
    plans["configurations"]["3d_fullres"]["data_identifier"] = "Spoiled_3d_fullres"
    (preprocessed / "Spoiled.json").write_text(json.dumps(plans))

    trainer = make(folder, SpoiledTrainer, "Spoiled")
    trainer.save_every = 1
    error = refusal(capsys, trainer.run_training)
    checkpoint = Path(trainer.output_folder) / "checkpoint_latest.pth"
    assert "the loss of a training step in epoch 1 is nan" in error
    assert f"{checkpoint} is from before and is kept" in error

    splits = json.loads((preprocessed / "splits_final.json").read_text())
    named = re.search("cases of its batch are (.*?), in ", error)[1].split(", ")
    assert named and set(named) <= set(splits[0]["train"])

    saved = torch.load(checkpoint, weights_only=False)
    assert saved["current_epoch"] == 1
    assert all(tensor.isfinite().all() for tensor in saved["network_weights"].values())
    assert not (checkpoint.parent / "checkpoint_final.pth").exists()


def trained_in(folder: Path, name: str, checkpoint: Path, going_on: bool = False) -> AliceTrainer:
    """A trainer after one step, or after the checkpoint of another one."""
    trainer = make(folder, AliceTrainer, name)
    if going_on:
        trainer.load_checkpoint(str(checkpoint))
        return trainer
    trainer.on_train_start()
    one_epoch(trainer, checkpoint)
    trainer.on_train_end()
    return trainer


@pytest.mark.parametrize(
    ("asked", "has_bf16", "recorded"),
    [
        ("auto", True, "bf16"),
        ("auto", False, "fp32"),
        ("fp32", True, "fp32"),
        ("bf16", True, "bf16"),
    ],
)
def test_a_training_records_its_precision_and_goes_on_with_it(
    folder, monkeypatch, tmp_path, asked, has_bf16, recorded
):
    name = f"In{asked}{has_bf16}"
    plan_on_the_same_data(folder, "vit", name, "--set", f"precision={asked}")
    checkpoint = tmp_path / "checkpoint.pth"
    set_bf16(monkeypatch, has_bf16)
    trainer = trained_in(folder, name, checkpoint)
    assert trainer.network.half_on_cpu == (recorded == "bf16")

    # On another machine
    set_bf16(monkeypatch, not has_bf16)
    second = trained_in(folder, name, checkpoint, going_on=True)
    assert second.network.half_on_cpu == (recorded == "bf16")
    assert second.my_init_kwargs["precision"] == recorded
    emulated = recorded == "bf16" and has_bf16
    assert ("has no bf16" in Path(second.log_file).read_text()) == emulated


def test_plans_of_earlier_versions_compute_in_fp32(folder, monkeypatch, tmp_path):
    name = "WithoutPrecision"
    plan_on_the_same_data(folder, "vit", name)
    file = next(folder.rglob(f"{name}.json"))
    plans = json.loads(file.read_text())
    assert plans["alice"]["recipe"].pop("precision") == "auto"
    file.write_text(json.dumps(plans))

    set_bf16(monkeypatch, True)
    assert not trained_in(folder, name, tmp_path / "checkpoint.pth").network.half_on_cpu


def set_bf16(monkeypatch, has_bf16: bool) -> None:
    """Let this CPU have bf16, or not."""
    for module in (network, alice_trainer):
        monkeypatch.setattr(module, "cpu_has_bf16", lambda: has_bf16)
