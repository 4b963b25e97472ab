"""The memory of a training step, against what a process that does one takes."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from alice_nnunet.finetune import NETWORK_ARGUMENTS
from alice_nnunet.memory import CudaSizes, Ledger, training_memory
from alice_nnunet.model.encoders import PRESETS
from alice_nnunet.recipes import RECIPES, training_recipe

PATCH, BATCH, CLASSES = [48, 64, 64], 2, 5
PROCESS = '''
import json, sys
import torch
from alice_nnunet.finetune import build_network
from alice_nnunet.memory import training_step
from alice_nnunet.optimizers import build_optimizer, encoder_depths, parameter_groups

block, patch, batch, classes = json.loads(sys.argv[1])

def resident(name: str) -> int:
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))

def steps(patch: list[int], batch: int) -> None:
    network = build_network(block, 1, classes, deep_supervision=True)
    optimizer = build_optimizer(parameter_groups(network.named_parameters(), encoder_depths(block["encoder_arguments"]), 1.0, 0), block["recipe"])
    for _ in range(2):
        training_step(network, optimizer, torch.zeros(batch, 1, *patch), classes)

steps([16, 32, 32], 1)  # loads the code
before = resident("VmRSS")
steps(patch, batch)
print(resident("VmHWM") - before)
'''


def block_of(encoder: str) -> dict:
    arguments = {"in_channels": 1, "crop_size": [32, 64, 64], **PRESETS[encoder]["tiny"]}
    return {"encoder": encoder, "encoder_arguments": arguments, "network_arguments": NETWORK_ARGUMENTS[encoder]["tiny"],
            "input": {"scale": [1.0], "shift": [0.0], "low": [0.0], "high": [1.0], "flip_axes": []},
            "recipe": training_recipe(RECIPES[encoder])}


@pytest.mark.parametrize("encoder", ["vit", "swin", "nnformer"])
def test_against_the_resident_memory_of_a_process(encoder):
    arguments = json.dumps([block_of(encoder), PATCH, BATCH, CLASSES])
    done = subprocess.run([sys.executable, "-c", PROCESS, arguments], text=True, capture_output=True, timeout=300,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"})  # what is freed goes back
    assert done.returncode == 0, done.stderr
    estimate = training_memory(block_of(encoder), 1, CLASSES, PATCH, BATCH, autocast=False)
    assert estimate == pytest.approx(int(done.stdout), rel=0.1)


@pytest.mark.parametrize("encoder", ["vit", "swin", "nnformer"])
def test_grows_with_the_batch_and_shrinks_under_autocast(encoder):
    one, three = (training_memory(block_of(encoder), 1, CLASSES, [32, 64, 64], batch) for batch in (1, 3))
    assert one < three < 3 * one
    assert 1.2 < training_memory(block_of(encoder), 1, CLASSES, [32, 64, 64], 3, autocast=False) / three < 3


def test_the_ledger_counts_a_chain_that_can_be_counted_by_hand():
    layer = nn.Sequential(nn.Linear(1000, 500, bias=False, device="meta"), nn.ReLU(), nn.Linear(500, 1, bias=False, device="meta"))
    with Ledger() as ledger:
        ledger.count(layer.parameters())
        assert ledger.now == 4 * (1000 * 500 + 500)
        hidden = layer[1](layer[0](torch.empty(8, 1000, device="meta")))
        assert ledger.now == 4 * (1000 * 500 + 500) + 4 * (8 * 1000 + 8 * 500)  # the image, the ReLU's output; its input is gone
        layer[2](hidden).sum().backward()
        del hidden
    assert ledger.now == 2 * 4 * (1000 * 500 + 500)  # weights and gradients


def test_what_autocast_computes_in_half_precision():
    linear, norm = nn.Linear(4, 4, device="meta"), nn.LayerNorm(4, device="meta")
    with CudaSizes():
        half = linear(torch.empty(2, 4, device="meta"))
        query = torch.empty(3, 2, 5, 4, device="meta")
        assert half.dtype == torch.half and norm(half).dtype == torch.float
        assert nn.functional.scaled_dot_product_attention(query, query, query, attn_mask=query.new_empty(1, 2, 5, 5)).shape == query.shape
