import torch

from alice_nnunet.pretrain.runtime.device import autocast, generator_at, peak_memory

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
