"""Counting the memory of tensors."""

import torch
from torch import nn

from alice_nnunet.memory import Ledger


def test_the_ledger_counts_a_chain_that_can_be_counted_by_hand():
    layer = nn.Sequential(
        nn.Linear(1000, 500, bias=False, device="meta"),
        nn.ReLU(),
        nn.Linear(500, 1, bias=False, device="meta"),
    )
    weights = 4 * (1000 * 500 + 500)  # bytes

    with Ledger() as ledger:
        ledger.count(layer.parameters())
        assert ledger.now == weights

        # the image and the ReLU's output; its input is gone
        hidden = layer[1](layer[0](torch.empty(8, 1000, device="meta")))
        assert ledger.now == weights + 4 * (8 * 1000 + 8 * 500)

        layer[2](hidden).sum().backward()
        del hidden

    assert ledger.now == 2 * weights  # weights and gradients
