import torch
import torch.nn.functional as F
from torch import nn

from alice_nnunet.model.heads import BatchNormMLP, DinoHead, Predictor


def test_dino_head_is_the_formula():
    torch.manual_seed(0)
    head = DinoHead(8, 16, 4, 6)
    tokens = torch.randn(2, 3, 8)

    first, second, third = (m for m in head.mlp if isinstance(m, nn.Linear))
    z = third(F.gelu(second(F.gelu(first(tokens)))))
    z = z / z.norm(dim=-1, keepdim=True)
    weight = head.last.weight / head.last.weight.norm(dim=-1, keepdim=True)
    assert torch.allclose(head(tokens), z @ weight.T, atol=1e-6)


def test_batch_norm_mlp_normalises_over_all_tokens():
    torch.manual_seed(0)
    head = BatchNormMLP(8, 16, 6)
    tokens = torch.randn(2, 5, 8) * 3 + 1

    hidden = head.enter(tokens).flatten(0, 1)
    hidden = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + 1e-5).sqrt()
    assert torch.allclose(head(tokens), head.leave(F.relu(hidden)).view(2, 5, 6), atol=1e-5)


def test_batch_norm_mlp_is_the_same_with_other_shapes_and_in_validation():
    torch.manual_seed(0)
    head = BatchNormMLP(6, 12, 6)
    features = torch.randn(4, 5, 6)

    expected = head(features)
    assert torch.allclose(expected, head(features.flatten(0, 1)).view(4, 5, 6), atol=1e-6)
    assert torch.equal(head.eval()(features), expected) and not list(head.buffers())


def test_predictor_is_the_formula_and_looks_at_one_vector_at_a_time():
    torch.manual_seed(0)
    predictor = Predictor(6, 12)
    features = torch.randn(4, 5, 6)

    hidden = predictor.enter(features)
    variance = hidden.var(-1, unbiased=False, keepdim=True)
    hidden = (hidden - hidden.mean(-1, keepdim=True)) / (variance + 1e-5).sqrt()
    assert torch.allclose(predictor(features), predictor.leave(F.relu(hidden)), atol=1e-5)
    assert torch.allclose(predictor(features)[1:2], predictor(features[1:2]), atol=1e-6)
