"""What runs on a GPU, run on a CUDA device that is pretended (tests/helpers/pretended_cuda.py)."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from alice_nnunet.data.pairs import PairBatch, noise_pairs
from alice_nnunet.finetuning.block import make_block
from alice_nnunet.finetuning.network import build_network
from alice_nnunet.finetuning.optimizers import build_optimizer, encoder_depths, parameter_groups
from alice_nnunet.finetuning.recipes import RECIPES
from alice_nnunet.geometry import grid_of
from alice_nnunet.model.encoders.registry import unit_of
from alice_nnunet.model.encoders.vit import ViT
from alice_nnunet.model.methods.alice import Alice
from alice_nnunet.model.pretraining.registry import DEFAULT, METHODS
from alice_nnunet.planning.step_memory import training_step
from alice_nnunet.pretrain.embedding import state as embedding_state
from alice_nnunet.pretrain.embedding import step as embedding_step
from alice_nnunet.pretrain.embedding.config import embed_config
from alice_nnunet.pretrain.training.config import PretrainConfig, make_config, read_settings
from alice_nnunet.pretrain.training.state import build_state
from alice_nnunet.pretrain.training.step import train_step, validate
from tests.helpers.finetuning import pretrained_encoder
from tests.helpers.pretended_cuda import CPU, CUDA, OnCuda, Operations, pretended_cuda
from tests.helpers.pretraining import SPACING, method_config, noise, small_config

SIZES = {
    "vit": ("crop_size=32,32,32", "depth=2"),
    "swin": ("crop_size=32,32,32",),
    "nnformer": ("crop_size=16,32,32",),
}
WAITS_IN_A_STEP = 1  # whether it is finite; one more is one too many
PARTS = ("compile=off", "iterations=10", "warmup_iterations=0")


@pytest.fixture
def cuda(monkeypatch):
    """The pretended device; counts of operations, and where the host waited."""
    with pretended_cuda(monkeypatch) as operations:
        yield operations


def tiny_config(encoder: str, *more: str) -> PretrainConfig:
    """An encoder of the tiny preset on small crops."""
    settings = [*PARTS, *SIZES[encoder], "decoder_depth=1", "head_hidden=64"]
    return make_config("Dataset001_X", read_settings(encoder, "tiny", [*settings, *more]))


def on_cpu(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.inner if isinstance(tensor, OnCuda) else tensor


@pytest.mark.parametrize(
    "encoder, launches", [("vit", 1_500), ("swin", 3_500), ("nnformer", 3_800)]
)
def test_a_step_is_that_of_the_cpu(encoder, launches, monkeypatch):
    config = tiny_config(encoder, "precision=fp32")
    batch = noise_pairs(2, (1, *config.encoder_arguments["crop_size"]))
    state = build_state(config, CPU)
    expected = train_step(state, batch, config, SPACING)

    with pretended_cuda(monkeypatch) as operations:
        state_on_cuda = build_state(config, CUDA)
        result = train_step(state_on_cuda, batch, config, SPACING)
        with_bf16 = replace(config, precision="bf16")
        state_in_bf16 = build_state(with_bf16, CUDA)
        operations.reset()  # after the first step, which packs the grids
        in_bf16 = train_step(state_in_bf16, batch, with_bf16, SPACING)

    for name, value in result.losses.items():
        assert isinstance(value, OnCuda)
        assert on_cpu(value).item() == pytest.approx(expected.losses[name].item(), rel=1e-4)
    ours = dict(state_on_cuda.model.named_parameters())
    for name, parameter in state.model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(
                on_cpu(ours[name].grad), parameter.grad, rtol=1e-3, atol=1e-5, msg=name
            )

    assert len(operations.waits) <= WAITS_IN_A_STEP, operations.waits
    assert operations.launches <= launches
    assert in_bf16.finite
    loss = on_cpu(in_bf16.loss).item()
    assert loss != expected.loss.item() and loss == pytest.approx(expected.loss.item(), rel=0.02)


def with_anatomy(batch: PairBatch, config: PretrainConfig) -> PairBatch:
    """The batch with random vectors of a matcher at each token, where the config wants them."""
    if not config.method.weight_an:
        return batch

    arguments = config.encoder_arguments
    tokens = math.prod(grid_of(arguments["crop_size"], unit_of(config.encoder, arguments)))
    shape = (2, len(batch.query), tokens, config.method.anatomy_channels)
    query, key = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return replace(batch, query_anatomy=query, key_anatomy=key)


@pytest.mark.parametrize(
    "options",
    [
        ("head=byol",),
        ("similarity=infonce",),
        ("similarity=dino", "predictor=false"),
        ("target_mask_ratio=0.5", "online_flips=true"),
        ("reconstruct=all", "normalise=token"),
        ("normalise=none", "target_flips=false"),
        ("weight_dv=0", "weight_st=0"),
        ("weight_r=0", "ema_casa=false"),
        ("accumulate=2",),
        ("dv_by=place",),
        ("dv_by=place", "memory=0", "weight_st=0"),
        ("weight_an=1", "weight_dv=0", "weight_st=0"),
        ("weight_an=1", "dv_by=place"),
        ("checkpoint_blocks=true",),
    ],
    ids=str,
)
def test_every_option_of_the_method(options, monkeypatch):
    config = small_config("compile=off", "precision=fp32", *options)
    # What the first step remembers, the second one compares with.
    steps = 2 if config.method.dv_by == "place" else 1
    check_steps(config, with_anatomy(noise(), config), steps, monkeypatch)


@pytest.mark.parametrize("method", [name for name in METHODS if name != DEFAULT])
def test_every_method(method, monkeypatch):
    config = method_config(method, "vit", "compile=off", "precision=fp32", "warmup_iterations=0")
    check_steps(config, noise(0, 4), 1, monkeypatch)


def test_terms_by_place_of_an_encoder_with_windows(monkeypatch):
    config = tiny_config("swin", "precision=fp32", "weight_an=1", "dv_by=place", "memory=4")
    batch = noise_pairs(1, (1, *config.encoder_arguments["crop_size"]))
    check_steps(config, with_anatomy(batch, config), 2, monkeypatch)


def check_steps(config: PretrainConfig, batch: PairBatch, steps: int, monkeypatch) -> None:
    """Steps in fp32 have the losses of the CPU, and the last one in bf16 hardly waits."""
    state = build_state(config, CPU)
    expected = [train_step(state, batch, config, SPACING) for _ in range(steps)]

    with pretended_cuda(monkeypatch) as cuda:
        state = build_state(config, CUDA)
        for step in expected:
            losses = train_step(state, batch, config, SPACING).losses
            assert losses.keys() == step.losses.keys()
            for name, loss in losses.items():
                value = step.losses[name].item()
                assert on_cpu(loss).item() == pytest.approx(value, rel=1e-3, abs=1e-4), name

        in_bf16 = replace(config, precision="bf16")
        state = build_state(in_bf16, CUDA)
        for _ in range(steps):
            cuda.reset()
            result = train_step(state, batch, in_bf16, SPACING)
        assert len(cuda.waits) <= WAITS_IN_A_STEP, cuda.waits
        means, _ = validate(state, [batch], in_bf16, SPACING)
    assert result.finite and all(value == value for value in means.values())


@pytest.mark.parametrize("features, waits", [("sam", 2), ("context", 9)])
def test_the_matchers_training(features, waits, cuda):
    config = embed_config(
        "Dataset001_X",
        "tiny",
        [
            f"features={features}",
            *("patch_size=16,32,32", "crop_size=16,32,32", "points=100", "hardest=20"),
            *("iterations=4", "batch_size=2", "precision=bf16"),
        ],
    )
    batch = {
        "crop": torch.rand(2, 1, *config.crop_size),
        "points": torch.rand(2, config.points, 3) * 20 - 10,
        "middle": torch.zeros(2, 3),
        "number": torch.arange(2),
    }
    state = embedding_state.build_state(config, CUDA)
    cuda.reset()
    result = embedding_step.train_step(state, batch, config)
    # How many points both patches show, and whether the step is finite; context solves equations
    assert len(cuda.waits) <= waits, cuda.waits
    assert result.finite and result.loss.item() > 0


@pytest.mark.parametrize("encoder", ["vit", "swin", "nnformer"])
def test_fine_tuning_and_prediction(encoder, cuda):
    block = make_block(
        pretrained_encoder(encoder=encoder),
        ["CTNormalization"],
        {"0": {"mean": -125.0, "std": 380.0}},
        RECIPES[encoder].recipe,
        flip_axes=[],
    )
    network = build_network(block, 1, 3, deep_supervision=True).to(CUDA)
    groups = parameter_groups(
        network.named_parameters(), encoder_depths(block.origin.arguments), 1.0, 0
    )
    optimizer = build_optimizer(groups, block.recipe)

    image = torch.rand(1, 1, 16, 32, 32).to(CUDA)
    with torch.autocast("cuda", torch.bfloat16):
        training_step(network, optimizer, image)

    network.eval()
    network.deep_supervision = False
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        logits = network(torch.rand(1, 1, 12, 40, 32).to(CUDA))
    assert logits.shape == (1, 3, 12, 40, 32) and torch.isfinite(logits).all().item()


# Faults that only a GPU shows


def a_tensor_made_on_the_cpu(self, x, keep):
    return x + torch.ones(x.shape[-1])


def an_index_on_the_cpu(self, x, keep):
    return x[:, torch.arange(x.shape[1])]


def an_index_that_is_a_list(self, x, keep):
    return x[:, list(range(x.shape[1]))]


def a_generator_of_the_cpu(self, x, keep):
    generator = torch.Generator().manual_seed(0)
    return x + torch.rand(x.shape, generator=generator, device=x.device)


@pytest.mark.parametrize(
    "fault",
    [
        a_tensor_made_on_the_cpu,
        an_index_on_the_cpu,
        an_index_that_is_a_list,
        a_generator_of_the_cpu,
    ],
)
def test_a_planted_fault_is_caught(fault, monkeypatch, cuda):
    embed = ViT.embed
    monkeypatch.setattr(
        ViT, "embed", lambda self, crop, keep: fault(self, embed(self, crop, keep), keep)
    )
    config = small_config("compile=off", "precision=fp32")
    with pytest.raises(RuntimeError, match=r"same device|generator"):
        train_step(build_state(config, CUDA), noise(), config, SPACING)


def test_one_wait_more_is_over_the_budget(monkeypatch, cuda):
    after_step = Alice.after_step

    def update_and_wait(self, momentum, running, remembered) -> None:
        after_step(self, momentum, running, remembered)
        running["st"].sum().item()

    monkeypatch.setattr(Alice, "after_step", update_and_wait)
    config = small_config("compile=off", "precision=fp32")
    state = build_state(config, CUDA)
    cuda.reset()
    train_step(state, noise(), config, SPACING)
    assert len(cuda.waits) == WAITS_IN_A_STEP + 1
    assert "tests/test_on_pretended_cuda.py" in cuda.waits[-1]


def waits_of(action, cuda: Operations) -> int:
    """How often the host waits for the device in an action."""
    before = len(cuda.waits)
    action()
    return len(cuda.waits) - before


def test_every_wait_is_counted(cuda):
    x = torch.rand(4, 5, device="cuda")
    assert waits_of(lambda: x.sum().item(), cuda) == 1
    assert waits_of(lambda: bool(x.any()), cuda) == 1
    assert waits_of(lambda: x.cpu(), cuda) == 1
    assert waits_of(lambda: torch.tensor([1, 2], device="cuda"), cuda) == 1
    assert waits_of(lambda: torch.ones(3).to("cuda"), cuda) == 1
    assert waits_of(lambda: x[x > 0.5], cuda) == 1
    assert waits_of(lambda: x.nonzero(), cuda) == 1
    assert waits_of(lambda: x.flatten().unique_consecutive(), cuda) == 1
    assert "tests/test_on_pretended_cuda.py" in cuda.waits[0]

    assert waits_of(lambda: torch.ones(3).to("cuda", non_blocking=True), cuda) == 0
    assert waits_of(lambda: F.softmax(x @ x.T, -1).sort(), cuda) == 0
    assert waits_of(lambda: torch.arange(4, device=x.device), cuda) == 0
