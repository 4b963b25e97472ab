import torch

from alice_nnunet.model.casa import CASA


def test_equals_the_explicit_softmax_of_eqs_3_and_4():
    torch.manual_seed(0)
    casa = CASA(10, 6)
    visible = torch.randn(2, 3, 10)
    context = torch.randn(2, 7, 6)

    for b in range(2):
        q = casa.norm_query(visible[b]) @ casa.to_query.weight.T
        k = casa.norm_context(context[b]) @ casa.to_key.weight.T
        v = casa.norm_context(context[b]) @ casa.to_value.weight.T

        attention = torch.zeros(3, 7)
        for i in range(3):
            scores = torch.stack([q[i] @ k[j] / 6**0.5 for j in range(7)])
            attention[i] = scores.exp() / scores.exp().sum()  # Eq. 3

        expected = (attention @ v) @ casa.zeta.weight.T + casa.zeta.bias  # Eq. 4
        assert torch.allclose(casa(visible, context)[b], expected, atol=1e-6)


def test_no_residual_path_from_the_query():
    """With one context token the query cannot matter: every query gets that token."""
    casa = CASA(10, 6)
    context = torch.randn(2, 1, 6)
    first = casa(torch.randn(2, 4, 10), context)
    second = casa(torch.randn(2, 4, 10), context)
    assert torch.allclose(first, second, atol=1e-6)
