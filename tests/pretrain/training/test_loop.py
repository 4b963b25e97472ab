import copy
import json

import numpy as np
import pytest
import torch

from alice_nnunet.model.views import make_views
from alice_nnunet.pretrain.training.config import make_config, read_settings
from alice_nnunet.pretrain.training.loop import note_nonfinite, report
from alice_nnunet.pretrain.training.step import NonFiniteLoss, generator_at, train_step, validate
from alice_nnunet.pretrain.training.state import build_state, load_state, save_state
from alice_nnunet.schedules import ema_momentum, warmup_cosine

SPACING, CPU = (3.0, 3.0, 3.0), torch.device("cpu")
SMALL = [
    "iterations=10",
    "width=24",
    "depth=2",
    "heads=2",
    "decoder_width=24",
    "decoder_depth=1",
    "decoder_heads=2",
    "head_hidden=32",
    "crop_size=32,32,32",
]


def config(*more):
    return make_config("Dataset001_X", read_settings("vit", "tiny", [*SMALL, *more]))


def batch(seed=0) -> dict:
    rng = np.random.default_rng(seed)
    crops = torch.from_numpy(rng.random((2, 2, 1, 32, 32, 32), np.float32))
    return {
        "query": crops[0],
        "key": crops[1],
        "query_case": ["a", "b"],
        "key_case": ["c", "d"],
        "rejected": torch.tensor([0, 1]),
    }


def test_a_step_is_the_textbook_step():
    c = config("clip_grad=1000000.0")
    state, other = build_state(c, CPU), build_state(c, CPU)
    train_step(state, batch(), c, SPACING)
    model = other.model.train()
    generator = generator_at(c.seed, 0, 0, CPU)
    views = [
        make_views(batch()[name], model.unit, SPACING, c.method, generator)
        for name in ("query", "key")
    ]
    output = model(*views)
    output.loss.backward()
    decayed = torch.optim.AdamW(
        [
            {"params": [p], "weight_decay": 0.05 if p.ndim > 1 else 0.0}
            for p in model.parameters()
            if p.requires_grad
        ],
        lr=warmup_cosine(0, 10, 0, 3e-4),
        betas=(0.9, 0.95),
    )
    decayed.step()
    model.update_target(ema_momentum(0, 10, 0.99), output.target_means)
    assert state.step == 1
    for (name, ours), theirs in zip(state.model.state_dict().items(), model.state_dict().values()):
        assert torch.allclose(ours, theirs, atol=1e-7), name


def test_gradients_are_clipped_and_lr_follows_the_schedule():
    c = config("clip_grad=0.001", "warmup_iterations=4")
    state = build_state(c, CPU)
    numbers = train_step(state, batch(), c, SPACING)
    total = torch.stack(
        [p.grad.norm() for p in state.model.parameters() if p.grad is not None]
    ).norm()
    assert numbers["gradient norm"] > 0.001 and total == pytest.approx(0.001, rel=1e-3)
    assert state.optimizer.param_groups[0]["lr"] == pytest.approx(3e-4 / 4)
    for _ in range(3):
        train_step(state, batch(), c, SPACING)
    assert state.optimizer.param_groups[0]["lr"] == pytest.approx(3e-4)


def test_saved_and_loaded_it_goes_on_as_if_nothing_had_been(tmp_path):
    c = config()
    whole = build_state(c, CPU)
    for step in range(4):
        train_step(whole, batch(step), c, SPACING)
    first = build_state(c, CPU)
    for step in range(2):
        train_step(first, batch(step), c, SPACING)
    save_state(tmp_path / "c.pth", first, c, {}, {})
    torch.manual_seed(123)  # whatever happened to the global generators in between
    second = load_state(tmp_path / "c.pth", c, CPU)
    for step in range(2, 4):
        train_step(second, batch(step), c, SPACING)
    assert second.step == 4
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.model.state_dict().values(), second.model.state_dict().values())
    )


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(5)
    first = build_state(config(), CPU).model.state_dict()
    torch.manual_seed(6)
    second, third = (
        build_state(config(), CPU).model.state_dict(),
        build_state(config("seed=1"), CPU).model.state_dict(),
    )
    assert all(torch.equal(first[n], second[n]) for n in first) and any(
        not torch.equal(first[n], third[n]) for n in first
    )


def test_generators_differ_by_seed_stream_and_step():
    draws = {
        tuple(torch.rand(3, generator=generator_at(seed, stream, step, CPU)).tolist())
        for seed in range(3)
        for stream in range(2)
        for step in range(5)
    }
    assert len(draws) == 30


def spoiled() -> dict:
    crops = batch()
    crops["query"][1] = float("nan")
    return crops


def test_a_step_whose_loss_is_no_number_is_skipped():
    c = config()
    state = build_state(c, CPU)
    train_step(state, batch(), c, SPACING)
    before = copy.deepcopy((state.model.state_dict(), state.optimizer.state_dict()["state"]))
    numbers = train_step(state, spoiled(), c, SPACING)
    train_step(state, spoiled(), c, SPACING)
    assert not torch.isfinite(numbers["loss"]) and (state.step, state.nonfinite) == (3, 2)
    assert all(torch.equal(before[0][n], v) for n, v in state.model.state_dict().items())
    for weight, numbers in state.optimizer.state_dict()["state"].items():
        assert all(torch.equal(before[1][weight][n], v) for n, v in numbers.items())
    numbers = train_step(state, batch(), c, SPACING)
    assert torch.isfinite(numbers["loss"]) and (state.step, state.nonfinite) == (4, 0)


def test_skipped_steps_are_written_down_and_end_a_run_when_there_are_too_many(tmp_path):
    class Run:
        config, state, folder = config("max_nonfinite=2"), build_state(config(), CPU), tmp_path

    log = Log()
    for step in (1, 2):
        numbers = train_step(Run.state, spoiled(), Run.config, SPACING)
        if step == 1:
            note_nonfinite(Run, log, spoiled(), numbers)
    with pytest.raises(NonFiniteLoss, match="2 steps in a row; the pairs were a with c, b with d"):
        note_nonfinite(Run, log, spoiled(), numbers)
    lines = [
        json.loads(line) for line in (tmp_path / "nonfinite_cases.jsonl").read_text().splitlines()
    ]
    assert (
        [line["step"] for line in lines] == [0, 1]
        and lines[0]["pairs"] == [["a", "c"], ["b", "d"]]
        and lines[0]["loss"] == "nan"
    )
    assert len(log.lines) == 2 and "was skipped" in log.lines[0]


@pytest.mark.parametrize("similarity", ["cosine", "dino"])
def test_a_batch_in_parts_is_the_same_step(similarity):
    states, numbers = [], []
    for parts in (1, 2):
        c = config(f"accumulate={parts}", "clip_grad=1000000.0", f"similarity={similarity}")
        states.append(build_state(c, CPU))
        train_step(states[-1], batch(1), c, SPACING)
        numbers.append(train_step(states[-1], batch(), c, SPACING))
    for name in numbers[0]:
        assert numbers[0][name].item() == pytest.approx(numbers[1][name].item(), rel=1e-4), name
    for (name, whole), parts in zip(
        states[0].model.named_parameters(), states[1].model.parameters()
    ):
        assert whole.grad is parts.grad is None or torch.allclose(
            whole.grad, parts.grad, atol=1e-5, rtol=1e-3
        ), name
    assert all(
        torch.allclose(a, b, atol=1e-6)
        for a, b in zip(states[0].model.buffers(), states[1].model.buffers())
    )


def test_validation_is_repeatable_and_changes_nothing():
    c = config("head=byol", "similarity=dino")
    state = build_state(c, CPU)
    before = {n: v.clone() for n, v in state.model.state_dict().items()}
    first, _ = validate(state, [batch(0), batch(1)], c, SPACING)
    assert first == validate(state, [batch(0), batch(1)], c, SPACING)[0]
    assert set(first) == {"validation l_r", "validation l_dv", "validation l_st"}
    assert all(torch.equal(before[n], v) for n, v in state.model.state_dict().items())


class Log:
    def __init__(self):
        self.lines = []

    def line(self, text):
        self.lines.append(text)

    def scalars(self, step, values, history):
        self.values = values


@pytest.mark.parametrize("spread, warns", [(0.09, True), (0.11, False)])
def test_collapse_warns(spread, warns):
    class Run:
        config, state = config(), build_state(config(), CPU)

    names = ("loss", "l_r", "l_dv", "l_st", "gradient norm", "data time", "step time")
    numbers = {
        **dict.fromkeys(names, 1.0),
        "spread cls": 0.5,
        "spread S": 0.5,
        "spread T": torch.tensor(spread),
        "rejected": torch.tensor(1.0),
    }
    log = Log()
    report(Run, log, [numbers, numbers])
    assert log.values["rejection rate"] == 0.5
    assert any("COLLAPSE" in line and " T " in line for line in log.lines) == warns


def test_it_learns_to_reconstruct_one_pair():
    """Real learning, not only running: on one pair of crops with structure the reconstruction error falls clearly."""
    c = config(
        "iterations=80", "lr=0.003", "decoder_width=96", "width=96", "weight_dv=0", "weight_st=0"
    )
    state = build_state(c, CPU)
    z, y, x = torch.meshgrid(*[torch.linspace(0, 3.14, 32)] * 3, indexing="ij")
    crop = (torch.sin(3 * z + 1) * torch.cos(2 * y) * torch.sin(x)).expand(2, 1, 32, 32, 32)
    pair = {**batch(), "query": crop, "key": crop.flip(2)}
    losses = [train_step(state, pair, c, SPACING)["l_r"].item() for _ in range(80)]
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:3])
