"""The memory of a training step, against what PyTorch allocates for a real one."""

import bisect
import dataclasses
import functools
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from alice_nnunet.finetuning.block import AliceBlock, make_block
from alice_nnunet.finetuning.network import build_network
from alice_nnunet.finetuning.optimizers import build_optimizer, encoder_depths, parameter_groups
from alice_nnunet.finetuning.recipes import RECIPES
from alice_nnunet.model.encoders import stage, window_attention
from alice_nnunet.model.encoders.window_attention import CUDA_GROUPS
from alice_nnunet.model.encoders.windows import Packing, pack_grid
from alice_nnunet.networks.fast_layers import PointwiseConv
from alice_nnunet.planning.step_memory import CudaSizes, training_memory, training_step
from tests.helpers.finetuning import pretrained_encoder

PATCH = [32, 32, 64]
BATCH = 2
CLASSES = 5


@pytest.fixture
def one_thread():
    """Convolutions on a CPU take a workspace for each thread beside the step's tensors."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """What is computed otherwise on a CPU, to save time there, is computed as on a GPU."""

    def pack_joined(*arguments) -> Packing:
        *others, _ = arguments
        return pack_grid(*others, True)

    monkeypatch.setattr(PointwiseConv, "forward", nn.Conv3d.forward)
    monkeypatch.setattr(
        window_attention,
        "attention",
        lambda q, k, v, bias: F.scaled_dot_product_attention(q, k, v, bias),
    )
    monkeypatch.setattr(window_attention, "groups_at_a_time", lambda *_: CUDA_GROUPS)
    monkeypatch.setattr(stage, "pack_grid", pack_joined)
    pack_grid.cache_clear()


def block_of(encoder: str) -> AliceBlock:
    ct = {"mean": -125.0, "std": 380.0}
    return make_block(
        pretrained_encoder(encoder=encoder),
        ["CTNormalization"],
        {"0": ct},
        dataclasses.replace(RECIPES[encoder].recipe, precision="fp32"),
        flip_axes=[],
    )


@functools.cache
def estimate(encoder: str, batch: int, autocast: bool) -> int:
    """training_memory for the patch, of which each call takes seconds."""
    return training_memory(block_of(encoder), 1, CLASSES, PATCH, batch, autocast=autocast)


def highest_allocation(action, trace: Path) -> int:
    """The most bytes that PyTorch's CPU allocator gave out in action, by its own profiler.

    What a convolution takes and gives back before it ends does not count: it is the workspace of
    this machine's library.
    """
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        action()

    profile.export_chrome_trace(str(trace))
    events = json.loads(trace.read_text())["traceEvents"]

    ends = sorted(
        (e["ts"], e["ts"] + e["dur"])
        for e in events
        if e["name"] in ("aten::convolution", "aten::convolution_backward")
    )
    starts = [start for start, _ in ends]

    allocations = sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"])
    first = allocations[0]["args"]
    before = first["Total Allocated"] - first["Bytes"]  # what was there already

    left = {}  # bytes after each event; inside a convolution only the last one counts
    for event in allocations:
        number = bisect.bisect_right(starts, event["ts"]) - 1
        inside = number >= 0 and event["ts"] <= ends[number][1]
        key = ("convolution", number) if inside else ("between", event["ts"])
        left[key] = event["args"]["Total Allocated"]
    return max(left.values()) - before


@pytest.mark.parametrize("encoder", ["vit", "swin", "nnformer"])
def test_against_pytorchs_own_count_of_a_real_step(encoder, tmp_path, one_thread, as_on_a_gpu):
    block = block_of(encoder)

    def steps() -> None:
        network = build_network(block, 1, CLASSES, deep_supervision=True)
        groups = parameter_groups(
            network.named_parameters(), encoder_depths(block.origin.arguments), 1.0, 0
        )
        optimizer = build_optimizer(groups, block.recipe)
        for _ in range(2):
            training_step(network, optimizer, torch.zeros(BATCH, 1, *PATCH))

    measured = highest_allocation(steps, tmp_path / "trace.json")
    estimated = estimate(encoder, BATCH, False)
    assert estimated == pytest.approx(measured, rel=0.003)
    assert training_memory(block, 1, CLASSES, PATCH, BATCH, autocast=False) == estimated


@pytest.mark.parametrize("encoder", ["vit", "swin", "nnformer"])
def test_grows_with_the_batch_and_shrinks_under_autocast(encoder):
    one = estimate(encoder, 1, True)
    two = estimate(encoder, BATCH, True)
    assert BATCH == 2 and one < two < 2 * one
    assert 1.2 < estimate(encoder, BATCH, False) / two < 3


def test_what_autocast_computes_in_half_precision():
    linear = nn.Linear(4, 4, device="meta")
    norm = nn.LayerNorm(4, device="meta")
    query = torch.empty(3, 2, 5, 4, device="meta")
    mask = query.new_empty(1, 2, 5, 5)

    with CudaSizes():
        half = linear(torch.empty(2, 4, device="meta"))
        assert half.dtype == torch.half and norm(half).dtype == torch.float

        result = F.scaled_dot_product_attention(query, query, query, attn_mask=mask)
        assert result.shape == query.shape
