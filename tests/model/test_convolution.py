import pytest
import torch
from torch import nn

from alice_nnunet.model.convolution import SafeConv3d


@pytest.mark.parametrize("size", [(1, 4, 4), (2, 2, 2), (2, 4, 4), (2, 7, 5), (3, 4, 4), (4, 4, 4)])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (1, 1)])
def test_gradients_in_bf16_are_those_of_fp32(size, kernel, stride):
    torch.manual_seed(0)
    exact = nn.Conv3d(32, 32, kernel, stride, kernel // 2)
    safe = SafeConv3d.of(exact)
    image = torch.randn(2, 32, *size)

    exact(image).square().sum().backward()
    expected = [parameter.grad.clone() for parameter in exact.parameters()]
    exact.zero_grad()
    for numbers in (5_000, 14_000, 28_000, 60_000):
        torch.full((numbers,), 3e33)  # what is not written later holds this value
    with torch.autocast("cpu", torch.bfloat16):
        result = safe(image)
    result.float().square().sum().backward()

    for found, wanted in zip(safe.parameters(), expected):
        assert (found.grad - wanted).abs().max() < 0.05 * wanted.abs().max()


def test_it_shares_weights_and_computes_the_same():
    exact = nn.Conv3d(2, 3, 3, padding=1, bias=False)
    safe = SafeConv3d.of(exact)
    assert safe.weight is exact.weight and safe.bias is None
    image = torch.randn(1, 2, 2, 5, 5)
    assert torch.equal(safe(image), exact(image))
