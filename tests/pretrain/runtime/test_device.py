import pytest
import torch

from alice_nnunet.errors import UserError
from alice_nnunet.pretrain.runtime import device as device_module
from alice_nnunet.pretrain.runtime.device import (
    autocast,
    choose_device,
    cpu_has_bf16,
    generator_at,
    peak_memory,
    settled_precision,
    warn_of_emulation,
)

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


@pytest.mark.parametrize(
    "avx512, amx, has_it", [(False, False, False), (True, False, True), (False, True, True)]
)
def test_a_cpu_has_bf16_by_avx512_or_by_amx(avx512, amx, has_it, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert cpu_has_bf16() == has_it


@pytest.mark.parametrize(
    "precision, has_bf16, pays, settled",
    [
        ("auto", True, True, "bf16"),
        ("auto", True, False, "fp32"),
        ("auto", False, True, "fp32"),
        ("fp32", True, True, "fp32"),
        ("bf16", False, False, "bf16"),
    ],
)
def test_a_new_run_settles_its_precision(precision, has_bf16, pays, settled, monkeypatch):
    monkeypatch.setattr(device_module, "cpu_has_bf16", lambda: has_bf16)
    assert settled_precision(precision, CPU, pays) == settled


@pytest.mark.parametrize("capability, settled", [((7, 5), "fp32"), ((8, 0), "bf16")])
def test_on_a_gpu_its_capability_settles_it(capability, settled, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert settled_precision("auto", torch.device("cuda"), False) == settled


@pytest.mark.parametrize(
    "precision, has_bf16, warns",
    [("bf16", False, True), ("bf16", True, False), ("fp32", False, False)],
)
def test_a_cpu_that_emulates_bf16_is_warned_of(precision, has_bf16, warns, monkeypatch, capsys):
    monkeypatch.setattr(device_module, "cpu_has_bf16", lambda: has_bf16)
    warn_of_emulation(CPU, precision)
    assert ("emulates it" in capsys.readouterr().out) == warns


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
