"""Several processes are one: the gradients and losses of one with the whole batch (gloo, CPU)."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from alice_nnunet.errors import UserError
from alice_nnunet.model.pretraining.registry import DEFAULT
from alice_nnunet.model.pretraining.registry import METHODS as OTHERS
from alice_nnunet.pretrain.runtime import distributed
from alice_nnunet.pretrain.runtime.distributed import launch, launched, own_share, wait_for
from tests.helpers.pretraining import assert_same_gradients
from tests.pretrain.runtime.part_of_a_batch import two_steps

REPOSITORY = Path(__file__).parents[3]
METHODS = [
    [],
    ["similarity=infonce"],
    ["similarity=dino"],
    ["head=byol"],
    ["accumulate=2", "checkpoint_blocks=true"],
    ["weight_r=0"],
    ["weight_dv=0"],
    ["weight_st=0"],
    ["weight_dv=0", "weight_st=0", "center_teacher=false"],
    ["ema_casa=false", "target_mask_ratio=0.5", "online_flips=true"],
    ["dv_by=place", "target_flips=false", "memory=64"],
    ["dv_by=place", "memory=64", "accumulate=2"],
    ["weight_an=2", "weight_dv=0", "weight_st=0", "accumulate=2"],
    *([f"method={name}"] for name in OTHERS if name != DEFAULT),
    ["method=ibot", "weight_dv=1", "casa=true"],
    ["method=sim", "casa=true"],
]


@pytest.fixture(scope="module")
def divided(tmp_path_factory) -> list[dict]:
    """two_steps() of each method in two processes under torchrun."""
    out = tmp_path_factory.mktemp("divided") / "results.pth"
    script = Path(__file__).with_name("part_of_a_batch.py")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            "2",
            str(script),
            str(out),
            json.dumps(METHODS),
        ],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
    )
    return torch.load(out, weights_only=True)


@pytest.mark.parametrize("number, method", list(enumerate(METHODS)), ids=str)
def test_two_processes_with_half_the_batch_are_one_with_the_whole(divided, number, method):
    ours = divided[number]
    whole = two_steps(method)

    # Several batch norms in a row over 8 crops magnify the last bits.
    normed = method[:1] in (["method=byol"], ["method=cmae"], ["method=moco_v3"])
    assert_same_gradients(ours["gradients"], whole["gradients"], 1000 if normed else 100)
    for name, value in whole["scalars"].items():
        assert ours["scalars"][name].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-6), name
    assert ours["second_moments"].keys() == whole["second_moments"].keys()
    for name, value in whole["second_moments"].items():
        assert torch.allclose(ours["second_moments"][name], value, atol=1e-5), name
    for name, value in whole["buffers"].items():
        if name == "memory":  # of the same crops, in another order
            assert torch.allclose(ours["buffers"][name].sum(0), value.sum(0), atol=1e-5)
        if name.startswith("center"):
            assert torch.allclose(ours["buffers"][name], value, atol=1e-6), name


def test_the_shares_of_all_processes_are_one_stream(monkeypatch):
    taken = []
    monkeypatch.setattr(distributed, "world", lambda: 2)
    for step in range(3):
        monkeypatch.setattr(distributed, "rank", lambda: 0)
        taken += own_share(step, 4)
        monkeypatch.setattr(distributed, "rank", lambda: 1)
        taken += own_share(step, 4)
    assert taken == list(range(24))


def child(code: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", code])


def test_the_code_of_a_run_is_that_of_the_process_that_failed():
    assert wait_for([child("pass"), child("pass")]) == 0
    assert wait_for([child("pass"), child("raise SystemExit(3)")]) == 3
    assert (
        wait_for([child("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"), child("pass")])
        == 128 + signal.SIGKILL
    )


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="-num_gpus 2: torch sees 1"):
        launch(2, [], torch.device("cuda"))


def test_a_process_alone_is_not_launched(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert not launched()
