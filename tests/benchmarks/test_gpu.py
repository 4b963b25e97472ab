"""benchmarks/gpu.py, tried on the CPU, without most packages, and on the pretended CUDA device."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers.pretended_cuda import CPU, CUDA, pretended_cuda

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TOY = ("-device", "cpu", "--toy", "-repeats", "1")


@pytest.fixture(autouse=True)
def benchmarks_are_importable(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def distributions_of(name: str, found: dict[str, importlib.metadata.Distribution]) -> None:
    """Add a distribution and, without their extras, all that it requires and that is installed."""
    if name in found:
        return
    try:
        found[name] = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return  # of another platform
    for requirement in found[name].requires or ():
        if "extra ==" not in requirement:
            distributions_of(re.match(r"[\w.-]+", requirement)[0], found)


@pytest.fixture
def bare(tmp_path) -> Path:
    """A folder of packages with torch, numpy and what these require."""
    found: dict[str, importlib.metadata.Distribution] = {}
    for name in ("torch", "numpy"):
        distributions_of(name, found)

    folder = tmp_path / "packages"
    folder.mkdir()
    for distribution in found.values():
        for file in distribution.files:
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (folder / top).exists():
                (folder / top).symlink_to(distribution.locate_file(top))
    return folder


def test_it_runs_with_torch_and_numpy_alone(bare, tmp_path):
    words = [
        *("-encoders", "vit", "-sections", "correctness", "pretraining", "fine-tuning", "matcher"),
        *("--json", str(tmp_path / "gpu.json"), "--table", str(tmp_path / "gpu.md")),
    ]
    # -S: without the packages of this environment
    done = subprocess.run(
        [sys.executable, "-S", str(BENCHMARKS / "gpu.py"), *TOY, *words],
        env={**os.environ, "PYTHONPATH": str(bare)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr

    report = json.loads((tmp_path / "gpu.json").read_text())
    assert {"monai", "nnunetv2", "scipy", "matplotlib", "blosc2"} <= set(report["absent"])
    rows = report["rows"]

    compared = [row for row in rows["correctness"] if "agrees" in row]
    assert len(compared) == 2 and all(row["agrees"] for row in compared)
    plain, compiled, reading = rows["pretraining"]
    assert 0.5 < float(plain["peak, GB"]) / float(plain["estimate, GB"]) < 2
    assert float(plain["step, s"]) > 0
    assert compiled["skipped"] == "compiled for a GPU only"
    assert "nnunetv2" in reading["skipped"]
    assert rows["fine-tuning"][0]["skipped"].startswith("monai")
    assert all(float(row["step, s"]) > 0 for row in rows["matcher"])

    table = (tmp_path / "gpu.md").read_text()
    assert "## fine-tuning" in table and "| vit | tiny | off |" in table


def test_it_names_what_disagrees_and_what_fails(monkeypatch, tmp_path):
    import gpu
    import gpu_cases

    honest = gpu_cases.loss_and_gradient

    def off(config, batch, device):
        loss, gradient = honest(config, batch, device)
        return loss * (1 if config.precision == "fp32" else 1.1), gradient

    def broken(*_):
        raise ValueError("no such kernel")

    monkeypatch.setattr(gpu_cases, "loss_and_gradient", off)
    monkeypatch.setattr(gpu_cases, "stopped_or_not", broken)
    report = tmp_path / "gpu.json"
    words = ["-sections", "correctness", "resume", "-encoders", "vit", "--json", str(report)]
    assert gpu.main([*TOY, *words]) == 1

    rows = json.loads(report.read_text())["rows"]
    assert [row.get("agrees") for row in rows["correctness"]] == [True, None, False, None]
    assert rows["resume"][0]["failed"] == "ValueError: no such kernel"


def test_without_time_everything_is_skipped_and_said(tmp_path):
    import gpu

    report = tmp_path / "gpu.json"
    assert gpu.main([*TOY, "-minutes", "0", "--json", str(report)]) == 0
    rows = json.loads(report.read_text())["rows"]
    assert len(rows) == 6
    assert all(row["skipped"] for section in rows.values() for row in section)


def test_a_run_that_goes_on_is_the_same_bits():
    from gpu_cases import Request, stopped_or_not

    config = Request(CPU, ("vit",), ("tiny",), 1, True, None).config("vit", "tiny")
    row = stopped_or_not(config, CPU)
    assert row == {"resumed off by": "0.0e+00", "repeated off by": "0.0e+00", "agrees": True}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_correctness_on_the_pretended_device(precision, monkeypatch):
    from gpu_cases import Request, against_cpu

    request = Request(torch.device("cuda"), ("vit",), ("tiny",), 1, True, None)
    config = request.config("vit", "tiny", f"precision={precision}", "compile=off")
    with pretended_cuda(monkeypatch):
        row = against_cpu(config, CUDA)
    assert row["agrees"] and (precision == "fp32" or row["loss off by"] != "0.0e+00")


def test_memory_of_the_pretended_device_is_its_own_counters(monkeypatch):
    import gpu_cases
    from gpu_cases import Request, pretraining_step

    monkeypatch.setattr(gpu_cases, "seconds", lambda *_: 0.5)
    monkeypatch.setattr(gpu_cases, "step_flops", lambda *_: 2e12)
    monkeypatch.setattr(gpu_cases, "matmul_peak", lambda *_: 16e12)
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda *_: 2e9)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda *_: 3e9)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (5e9, 8e9))

    request = Request(torch.device("cuda"), ("vit",), ("tiny",), 1, True, None)
    config = request.config("vit", "tiny", "precision=auto", "compile=off")
    with pretended_cuda(monkeypatch):
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda *_: 1.5e9)
        row = pretraining_step(config, request)

    assert row["peak, GB"] == "1.5" and row["kept by torch, GB"] == "3"
    assert row["outside, GB"] == "1"  # 8 - 5 in use, 2 of it torch's
    assert row["of the matmul peak"] == "25%" and float(row["estimate, GB"]) > 0
