"""AliceTrainer in distributed training, as far as that goes without GPUs: nnU-Net's own setup asks for CUDA."""

import json

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from alice_nnunet.commands.plan import main as alice_plan
from alice_nnunet.trainers.alice_trainer import AliceTrainer
from tests.helpers.finetuning import CROP, plan_by_hand, write_checkpoint, write_dataset

ENCODERS = ("nnformer", "swin", "vit")


@pytest.fixture(scope="module")
def planned(tmp_path_factory, real_ct):
    """nnU-Net's folders with plans for each encoder, by its name, on a dataset of two labels; nothing is preprocessed."""
    root = tmp_path_factory.mktemp("ddp")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("raw", "preprocessed", "results"):
            (root / name).mkdir()
            patch.setenv(f"nnUNet_{name}", str(root / name))
        patch.setenv("nnUNet_compile", "f")
        plan_by_hand(
            write_dataset(root / "raw", real_ct), root / "preprocessed" / "Dataset007_Body"
        )
        for encoder in ENCODERS:
            write_checkpoint(root / f"{encoder}.pth", encoder=encoder)
            alice_plan(
                ["-d", "7", "-weights", str(root / f"{encoder}.pth"), "-n", encoder, "-np", "1"]
            )
        yield root / "preprocessed" / "Dataset007_Body"


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
    plans, dataset = (
        json.loads((planned / name).read_text()) for name in (f"{encoder}.json", "dataset.json")
    )
    trainer = AliceTrainer(plans | {"continue_training": False}, "3d_fullres", 0, dataset)
    assert trainer.is_ddp and trainer.device.type == "cuda"
    trainer.device, trainer.grad_scaler = torch.device("cpu"), None
    network = trainer.build_network_architecture(
        trainer.plans_manager, trainer.configuration_manager, 1, 2, trainer.enable_deep_supervision
    )
    trainer.network = network
    trainer.optimizer, trainer.lr_scheduler = trainer.configure_optimizers()
    trainer.network, trainer.loss = DistributedDataParallel(network), trainer._build_loss()
    assert "Not loaded: none" in trainer.load_weights()
    weights = torch.load(planned.parents[1] / f"{encoder}.pth", weights_only=True)[
        "network_weights"
    ]
    assert all(
        torch.equal(tensor, weights[name]) for name, tensor in network.encoder.state_dict().items()
    )
    trainer.set_deep_supervision_enabled(True)
    data, labels = torch.rand(2, 1, *CROP), torch.randint(0, 2, (2, 1, *CROP)).float()
    targets = [labels[(..., *[slice(None, None, 2**level)] * 3)] for level in range(trainer.levels)]
    trainer.lr_scheduler.step(0)
    losses = [
        trainer.train_step({"data": data, "target": targets if trainer.levels > 1 else labels})[
            "loss"
        ]
        for _ in range(3)
    ]
    assert np.isfinite(losses).all()
    assert any(
        not torch.equal(tensor, weights[name])
        for name, tensor in network.encoder.state_dict().items()
    )
    trainer.save_checkpoint(str(tmp_path / "c.pth"))
    assert (
        torch.load(tmp_path / "c.pth", weights_only=False)["network_weights"].keys()
        == network.state_dict().keys()
    )
