import pytest
import torch

from alice_nnunet.errors import UserError
from alice_nnunet.pretrain.runtime.device import autocast, choose_device, generator_at, peak_memory

CPU = torch.device("cpu")


def test_generators_differ_by_seed_stream_and_step():
    draws = {
        tuple(torch.rand(3, generator=generator_at(seed, stream, step, CPU)).tolist())
        for seed in range(3)
        for stream in range(2)
        for step in range(5)
    }
    assert len(draws) == 30


def test_a_cpu_computes_in_bf16_only_where_it_is_told_to():
    for precision, bf16 in (("auto", False), ("fp32", False), ("bf16", True)):
        with autocast(CPU, precision):
            assert torch.is_autocast_enabled("cpu") == bf16


def test_memory_is_in_gb():
    assert 0.05 < peak_memory(CPU) < 100


def test_a_preset_for_gpus_is_not_started_on_a_cpu_unless_asked_for(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", bool)

    with pytest.raises(UserError, match=r"preset paper is made for a GPU.* -preset tiny.* -device"):
        choose_device(None, "paper")
    assert choose_device(None, "tiny").type == "cpu"
    assert not capsys.readouterr().out

    assert choose_device("cpu", "small").type == "cpu"
    assert choose_device(None, "paper", only_asked=True).type == "cpu"
    assert capsys.readouterr().out.count("NOTE: preset") == 2

    with pytest.raises(UserError, match="torch finds no CUDA device here; use -device cpu"):
        choose_device("cuda", "tiny")
