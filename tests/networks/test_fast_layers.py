import copy

import pytest
import torch
from monai.networks.blocks.dynunet_block import UnetOutBlock
from monai.networks.blocks.unetr_block import UnetrBasicBlock, UnetrUpBlock
from torch import nn

from alice_nnunet.networks.fast_layers import InstanceNorm, PointwiseConv, replace_layers


def basic_block() -> nn.Module:
    return UnetrBasicBlock(3, 3, 6, 3, 1, "instance", True)


def up_block() -> nn.Module:
    return UnetrUpBlock(3, 6, 4, 3, 2, "instance", True)


def out_block() -> nn.Module:
    return UnetOutBlock(3, 5, 4)


def replaced(block: nn.Module) -> nn.Module:
    ours = nn.ModuleList([copy.deepcopy(block)])
    replace_layers(ours)
    return ours[0]


@pytest.mark.parametrize(
    "make, shapes",
    [
        (basic_block, ((2, 3, 7, 8, 9),)),
        (up_block, ((2, 6, 4, 5, 3), (2, 4, 8, 10, 6))),
        (out_block, ((2, 5, 6, 7, 8),)),
    ],
)
def test_a_block_is_monais_in_value_gradient_and_state_dict(make, shapes):
    torch.manual_seed(0)
    block = make().double()
    ours = replaced(block)
    assert not any(isinstance(m, nn.InstanceNorm3d) for m in ours.modules())
    assert any(isinstance(m, PointwiseConv) for m in ours.modules())
    assert ours.state_dict().keys() == block.state_dict().keys()

    inputs = [torch.randn(s, dtype=torch.double, requires_grad=True) for s in shapes]
    our_inputs = [x.detach().clone().requires_grad_() for x in inputs]
    expected = block(*inputs)
    result = ours(*our_inputs)
    torch.testing.assert_close(result, expected)

    expected.square().sin().sum().backward()
    result.square().sin().sum().backward()
    theirs = [*inputs, *block.parameters()]
    for tensor, expected_tensor in zip([*our_inputs, *ours.parameters()], theirs, strict=True):
        torch.testing.assert_close(tensor.grad, expected_tensor.grad)


def test_weights_are_the_very_same():
    conv = nn.Conv3d(3, 2, 1)
    ours = PointwiseConv(conv)
    assert ours.weight is conv.weight and ours.bias is conv.bias


def test_what_is_done_in_place_is_done_to_no_view():
    x = torch.randn(2, 3, 4, 5, 6, requires_grad=True) * 1
    norm = nn.InstanceNorm3d(3)
    assert norm(x)._is_view() and not InstanceNorm(norm)(x)._is_view()


def test_types_are_those_of_monai_under_autocast():
    block = up_block()
    x = torch.randn(1, 6, 4, 4, 4)
    skip = torch.randn(1, 4, 8, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        theirs = block(x, skip)
        mine = replaced(block)(x, skip)
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
    assert not any(isinstance(layer, PointwiseConv) for layer in others)
    assert all(new.weight is old.weight for new, old in zip(others, before))
    assert [repr(layer) for layer in others] == [f"Safe{layer}" for layer in before]
