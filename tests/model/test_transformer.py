import pytest
import torch

from alice_nnunet.model.encoders.registry import build_encoder
from alice_nnunet.model.methods.alice import Alice
from alice_nnunet.model.presets import PRESETS
from alice_nnunet.model.pretraining.settings import AliceSettings
from alice_nnunet.model.transformer import (
    Block,
    Recomputable,
    compile_blocks,
    recompute_blocks,
)
from alice_nnunet.model.views import make_views
from tests.helpers.pretraining import PAPER

CROP = (32, 64, 64)
METHOD = AliceSettings(
    **PAPER,
    head_hidden=32,
    head_bottleneck=16,
    channels=24,
    decoder_width=24,
    decoder_depth=2,
    decoder_heads=2,
)


def model_and_views(name: str):
    torch.manual_seed(0)
    settings = PRESETS[name]["tiny"].encoder
    encoder = build_encoder(name, {"in_channels": 1, "crop_size": CROP, **settings})
    model = Alice(encoder, 1, METHOD)

    views = []
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        crops = torch.rand(2, 1, *CROP, generator=generator)
        views.append(make_views(crops, model.unit, (3.0, 3.0, 3.0), METHOD, generator))
    return model, views


def gradients(model: Alice, views) -> tuple[list, int]:
    """Gradients of all weights, and how many bytes forward kept for them."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(*views).loss
    loss.backward()
    return [p.grad.clone() for p in model.parameters() if p.requires_grad], sum(kept.values())


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_recomputed_blocks_give_the_same_gradient_bit_for_bit_and_keep_less(name):
    model, views = model_and_views(name)
    plain, kept = gradients(model, views)

    recompute_blocks(model.encoder)
    assert not any(
        module.recompute for module in model.decoder.modules() if isinstance(module, Recomputable)
    )

    recompute_blocks(model.decoder)
    again, less = gradients(model, views)
    assert all(torch.equal(a, b) for a, b in zip(plain, again)) and less < 0.75 * kept


def test_compiled_blocks_compute_the_same_under_the_same_names():
    model, views = model_and_views("vit")
    names = list(model.state_dict())
    plain, _ = gradients(model, views)

    compile_blocks(model, Block, backend="aot_eager")
    compiled, _ = gradients(model, views)

    assert list(model.state_dict()) == names
    assert all(
        torch.allclose(a, b, atol=1e-5 * a.abs().max() + 1e-7) for a, b in zip(plain, compiled)
    )
