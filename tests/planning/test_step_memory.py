"""The memory of a training step, against what PyTorch allocates for a real one."""

import bisect
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from alice_nnunet.finetuning.network import build_network
from alice_nnunet.finetuning.optimizers import build_optimizer, encoder_depths, parameter_groups
from alice_nnunet.finetuning.recipes import RECIPES, training_recipe
from alice_nnunet.model.encoders import window_attention
from alice_nnunet.model.presets import PRESETS
from alice_nnunet.networks.fast_layers import PointwiseConv
from alice_nnunet.planning.step_memory import CudaSizes, Ledger, training_memory, training_step

PATCH, BATCH, CLASSES = [32, 64, 64], 2, 5


@pytest.fixture
def one_thread():
    """Convolutions on a CPU take a workspace for each thread beside the step's tensors."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """What is computed otherwise on a CPU, to save time there, is computed as on a GPU, whose memory is the question."""
    monkeypatch.setattr(PointwiseConv, "forward", nn.Conv3d.forward)
    monkeypatch.setattr(
        window_attention,
        "attention",
        lambda q, k, v, bias: F.scaled_dot_product_attention(q, k, v, bias),
    )


def block_of(encoder: str) -> dict:
    arguments = {"in_channels": 1, "crop_size": [32, 64, 64], **PRESETS[encoder]["tiny"].encoder}
    return {
        "encoder": encoder,
        "encoder_arguments": arguments,
        "network_arguments": PRESETS[encoder]["tiny"].network,
        "input": {"scale": [1.0], "shift": [0.0], "low": [0.0], "high": [1.0], "flip_axes": []},
        "recipe": training_recipe(RECIPES[encoder]),
    }


def highest_allocation(action, trace: Path) -> int:
    """Bytes that PyTorch's CPU allocator had given out at most, of those asked for in action, by its own profiler. What a
    convolution takes and gives back before it is done does not count: it is the workspace of this machine's library."""
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
    starts, left = [start for start, _ in ends], {}
    for event in sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"]):
        number = bisect.bisect_right(starts, event["ts"]) - 1
        inside = number >= 0 and event["ts"] <= ends[number][1]
        left[("convolution", number) if inside else ("between", event["ts"])] = event["args"][
            "Total Allocated"
        ]  # the last one inside stays
    return max(left.values())


@pytest.mark.parametrize("encoder", ["vit", "swin", "nnformer"])
def test_against_pytorchs_own_count_of_a_real_step(encoder, tmp_path, one_thread, as_on_a_gpu):
    block = block_of(encoder)

    def steps() -> None:
        network = build_network(block, 1, CLASSES, deep_supervision=True)
        groups = parameter_groups(
            network.named_parameters(), encoder_depths(block["encoder_arguments"]), 1.0, 0
        )
        optimizer = build_optimizer(groups, block["recipe"])
        for _ in range(2):
            training_step(network, optimizer, torch.zeros(BATCH, 1, *PATCH), CLASSES)

    measured = highest_allocation(steps, tmp_path / "trace.json")
    assert training_memory(block, 1, CLASSES, PATCH, BATCH, autocast=False) == pytest.approx(
        measured, rel=0.01
    )


@pytest.mark.parametrize("encoder", ["vit", "swin", "nnformer"])
def test_grows_with_the_batch_and_shrinks_under_autocast(encoder):
    one, three = (
        training_memory(block_of(encoder), 1, CLASSES, [32, 64, 64], batch) for batch in (1, 3)
    )
    assert one < three < 3 * one
    assert (
        1.2
        < training_memory(block_of(encoder), 1, CLASSES, [32, 64, 64], 3, autocast=False) / three
        < 3
    )


def test_the_ledger_counts_a_chain_that_can_be_counted_by_hand():
    layer = nn.Sequential(
        nn.Linear(1000, 500, bias=False, device="meta"),
        nn.ReLU(),
        nn.Linear(500, 1, bias=False, device="meta"),
    )
    with Ledger() as ledger:
        ledger.count(layer.parameters())
        assert ledger.now == 4 * (1000 * 500 + 500)
        hidden = layer[1](layer[0](torch.empty(8, 1000, device="meta")))
        assert ledger.now == 4 * (1000 * 500 + 500) + 4 * (
            8 * 1000 + 8 * 500
        )  # the image, the ReLU's output; its input is gone
        layer[2](hidden).sum().backward()
        del hidden
    assert ledger.now == 2 * 4 * (1000 * 500 + 500)  # weights and gradients


def test_what_autocast_computes_in_half_precision():
    linear, norm = nn.Linear(4, 4, device="meta"), nn.LayerNorm(4, device="meta")
    with CudaSizes():
        half = linear(torch.empty(2, 4, device="meta"))
        query = torch.empty(3, 2, 5, 4, device="meta")
        assert half.dtype == torch.half and norm(half).dtype == torch.float
        assert (
            nn.functional.scaled_dot_product_attention(
                query, query, query, attn_mask=query.new_empty(1, 2, 5, 5)
            ).shape
            == query.shape
        )
