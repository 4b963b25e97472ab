"""AliceTrainer in distributed training, as far as possible without the GPUs that nnU-Net wants."""

import json

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from alice_nnunet.finetuning.network import with_all_offsets
from alice_nnunet.trainers.alice_trainer import AliceTrainer
from tests.helpers.finetuning import CROP, plan_by_hand, write_checkpoint, write_dataset
from tests.helpers.training import NAME, plan

ENCODERS = ("nnformer", "swin", "vit")


@pytest.fixture(scope="module")
def planned(tmp_path_factory, real_ct):
    """The preprocessed folder of a dataset of two labels with plans for each encoder, no cases."""
    root = tmp_path_factory.mktemp("ddp")

    with pytest.MonkeyPatch.context() as patch:
        for name in ("raw", "preprocessed", "results"):
            (root / name).mkdir()
            patch.setenv(f"nnUNet_{name}", str(root / name))
        patch.setenv("nnUNet_compile", "f")

        folder = root / "preprocessed" / NAME
        plan_by_hand(write_dataset(root / "raw", real_ct), folder)
        for encoder in ENCODERS:
            write_checkpoint(root / f"{encoder}.pth", encoder=encoder)
            plan(root, "-n", encoder, weights=f"{encoder}.pth")
        yield folder


@pytest.fixture
def one_process():
    """A process group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.filterwarnings(
    "ignore:torch.cuda.amp.GradScaler:UserWarning",
    "ignore:.*GradScaler is enabled, but CUDA:UserWarning",
)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_steps_in_ddp_use_every_parameter_and_find_the_network_inside(
    planned, one_process, encoder, tmp_path
):
    """DDP raises in the step after one in which a parameter had no part in the loss."""
    plans = json.loads((planned / f"{encoder}.json").read_text())
    dataset = json.loads((planned / "dataset.json").read_text())
    plans["continue_training"] = False

    trainer = AliceTrainer(plans, "3d_fullres", 0, dataset)
    assert trainer.is_ddp and trainer.device.type == "cuda"
    trainer.device = torch.device("cpu")
    trainer.grad_scaler = None

    network = trainer.build_network_architecture(
        trainer.plans_manager, trainer.configuration_manager, 1, 2, trainer.enable_deep_supervision
    )
    trainer.network = network
    trainer.optimizer, trainer.lr_scheduler = trainer.configure_optimizers()
    trainer.network = DistributedDataParallel(network)
    trainer.loss = trainer._build_loss()

    assert "Not loaded: none" in trainer.load_weights()
    checkpoint = torch.load(planned.parents[1] / f"{encoder}.pth", weights_only=True)
    weights = checkpoint["network_weights"]
    if encoder != "vit":
        weights = with_all_offsets(weights, network.encoder)
    loaded = network.encoder.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.items())

    trainer.set_deep_supervision_enabled(True)
    data = torch.rand(2, 1, *CROP)
    labels = torch.randint(0, 2, (2, 1, *CROP)).float()
    targets = [labels[(..., *[slice(None, None, 2**level)] * 3)] for level in range(trainer.levels)]
    batch = {"data": data, "target": targets if trainer.levels > 1 else labels}

    trainer.lr_scheduler.step(0)
    losses = [trainer.train_step(batch)["loss"] for _ in range(3)]
    assert np.isfinite(losses).all()

    trained = network.encoder.state_dict()
    assert any(not torch.equal(tensor, weights[name]) for name, tensor in trained.items())

    trainer.save_checkpoint(str(tmp_path / "c.pth"))
    saved = torch.load(tmp_path / "c.pth", weights_only=False)["network_weights"]
    assert saved.keys() == network.state_dict().keys()
