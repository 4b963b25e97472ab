import copy

import pytest
import torch
from monai.networks.blocks.dynunet_block import UnetOutBlock
from monai.networks.blocks.unetr_block import UnetrBasicBlock, UnetrUpBlock
from torch import nn

from alice_nnunet.networks.fast_layers import InstanceNorm, PointwiseConv, replace_layers

BLOCKS = {
    "basic": (lambda: UnetrBasicBlock(3, 3, 6, 3, 1, "instance", True), ((2, 3, 7, 8, 9),)),
    "up": (
        lambda: UnetrUpBlock(3, 6, 4, 3, 2, "instance", True),
        ((2, 6, 4, 5, 3), (2, 4, 8, 10, 6)),
    ),
    "out": (lambda: UnetOutBlock(3, 5, 4), ((2, 5, 6, 7, 8),)),
}


def replaced(block: nn.Module) -> nn.Module:
    ours = nn.ModuleList([copy.deepcopy(block)])
    replace_layers(ours)
    return ours[0]


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_is_monais_in_value_gradient_and_state_dict(name):
    make, shapes = BLOCKS[name]
    torch.manual_seed(0)
    block = make().double()
    ours = replaced(block)
    assert not any(isinstance(m, nn.InstanceNorm3d) for m in ours.modules())
    assert any(isinstance(m, PointwiseConv) for m in ours.modules())
    assert ours.state_dict().keys() == block.state_dict().keys()
    inputs = [
        [
            torch.randn(
                s, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
            ).requires_grad_()
            for s in shapes
        ]
        for _ in range(2)
    ]
    results = [b(*i) for b, i in zip((block, ours), inputs)]
    torch.testing.assert_close(results[1], results[0])
    for result in results:
        result.square().sin().sum().backward()
    for theirs, mine in zip(
        [*inputs[0], *block.parameters()], [*inputs[1], *ours.parameters()], strict=True
    ):
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_weights_are_the_very_same():
    conv = nn.Conv3d(3, 2, 1)
    ours = PointwiseConv(conv)
    assert ours.weight is conv.weight and ours.bias is conv.bias


def test_what_is_done_in_place_is_done_to_no_view():
    x = torch.randn(2, 3, 4, 5, 6, requires_grad=True) * 1
    assert (
        nn.InstanceNorm3d(3)(x)._is_view() and not InstanceNorm(nn.InstanceNorm3d(3))(x)._is_view()
    )


def test_types_are_those_of_monai_under_autocast():
    block = BLOCKS["up"][0]()
    x, skip = torch.randn(1, 6, 4, 4, 4), torch.randn(1, 4, 8, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        theirs, mine = block(x, skip), replaced(block)(x, skip)
    assert mine.dtype == theirs.dtype == torch.bfloat16
    torch.testing.assert_close(mine, theirs, atol=0.1, rtol=0.05)


@pytest.mark.parametrize(
    "norm", [nn.InstanceNorm3d(3, affine=True), nn.InstanceNorm3d(3, track_running_stats=True)]
)
def test_a_norm_with_weights_is_refused(norm):
    with pytest.raises(ValueError, match="weights or running means"):
        replace_layers(nn.Sequential(norm))


def test_other_convolutions_stay():
    others = nn.Sequential(
        nn.Conv3d(4, 4, 3), nn.Conv3d(4, 4, 1, stride=2), nn.Conv3d(4, 4, 1, groups=2)
    )
    before = list(others)
    replace_layers(others)
    assert list(others) == before
