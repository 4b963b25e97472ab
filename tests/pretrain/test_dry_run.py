import pytest
import torch

from alice_nnunet.pretrain.config import make_config, read_settings
from alice_nnunet.pretrain.dry_run import bytes_of_pairs, fixed_bytes, forward_bytes, saved_bytes
from alice_nnunet.pretrain.state import build_state, save_state
from alice_nnunet.pretrain.step import train_step

CPU = torch.device("cpu")


def config(*more: str):
    return make_config("Dataset001_X", "vit", "tiny", 1, read_settings("tiny", "vit", None, ["crop_size=32,32,32", *more])[0])


def test_saved_bytes_are_those_that_backward_needs():
    x, weight = torch.rand(100, 1000, requires_grad=True), torch.rand(1000, 50, requires_grad=True)
    count = lambda left_out=(): saved_bytes(lambda: (x @ weight).exp().square().sum(), set(left_out))
    assert count() == 4 * (100 * 1000 + 1000 * 50 + 100 * 50)  # both factors; exp keeps its result, which is what square keeps too
    assert count([weight.untyped_storage().data_ptr()]) == 4 * (100 * 1000 + 100 * 50)


def test_fixed_bytes_are_those_of_a_run_after_a_step(tmp_path):
    c = config("batch_size=2")
    state = build_state(c, CPU)
    crops = torch.rand(2, 2, 1, 32, 32, 32)
    train_step(state, {"query": crops[0], "key": crops[1], "query_case": "ab", "key_case": "cd"}, c, (3.0, 3.0, 3.0))
    size = lambda tensors: sum(t.numel() * t.element_size() for t in tensors)
    moments = [t for weight in state.optimizer.state.values() for name, t in weight.items() if name != "step"]
    gradients = [p.grad for p in state.model.parameters() if p.grad is not None]
    assert fixed_bytes(state)["state"] == size([*state.model.state_dict().values(), *moments, *gradients])
    save_state(tmp_path / "c.pth", state, c, {}, {})
    assert abs((tmp_path / "c.pth").stat().st_size / fixed_bytes(state)["checkpoint"] - 1) < 0.1


def test_what_a_pair_takes_is_less_in_bf16_and_with_recomputed_blocks():
    measure = lambda *more: forward_bytes(build_state(config(*more), CPU), config(*more))
    (once, each), (copies, halves), (_, less) = measure(), measure("precision=bf16"), measure("precision=bf16", "checkpoint_blocks=true")
    assert copies > 1e6 > once and 4 * 4 * 32 ** 3 < less < 0.9 * halves < 0.9 * each
    for c, (fixed, pair) in ((config(), (once, each)), (config("precision=bf16"), (copies, halves))):
        assert bytes_of_pairs(build_state(c, CPU), c, 3) == pytest.approx(fixed + 3 * pair, rel=0.03)
