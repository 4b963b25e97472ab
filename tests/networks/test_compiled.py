"""torch.compile takes each segmentation network as one graph, in training too.

Outputs and gradients are the same.
"""

import pytest
import torch

from alice_nnunet.finetuning.network import NETWORKS

IDENTITY = {"scale": [1.0], "shift": [0.0], "low": [0.0], "high": [1.0], "flip_axes": [2]}
WINDOWS = {
    "crop_size": [16, 32, 32],
    "embed_width": 12,
    "depths": [2, 2],
    "heads": [2, 3],
    "windows": [[8, 4, 16], [4, 4, 8]],
}
ARGUMENTS = {
    "vit": {"crop_size": [32, 32, 32], "width": 24, "depth": 4, "heads": 2},
    "swin": WINDOWS,
    "nnformer": WINDOWS,
}


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_one_graph_with_the_same_outputs_and_gradients(name):
    torch.manual_seed(0)
    network = NETWORKS[name](1, 3, {"in_channels": 1, **ARGUMENTS[name]}, IDENTITY)
    network.deep_supervision = name == "nnformer"
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    image = torch.rand(1, 1, 16, 32, 30)

    results = []
    for forward in (network, compiled):
        network.zero_grad()
        outputs = forward(image)
        outputs = outputs if network.deep_supervision else [outputs]
        sum((output - 0.5).square().sum() for output in outputs).backward()
        results.append([*outputs, *(parameter.grad.clone() for parameter in network.parameters())])

    for plain, same in zip(*results, strict=True):
        atol = 1e-3 * plain.abs().max().item() + 1e-6
        torch.testing.assert_close(same, plain, rtol=1e-3, atol=atol)
