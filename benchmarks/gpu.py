"""Is what was proven on a CPU true on this GPU, how long does a step take, and how much memory?

    python benchmarks/gpu.py --json gpu.json --table gpu.md

It needs this checkout, torch and numpy. What needs a package that is absent is skipped and named:
without MONAI the fine-tuning of vit and swin, without nnU-Net the steps that read data. Nothing is
fetched from a network. The sections, in this order:

    correctness  losses and gradients of a step against the CPU: fp32, bf16, compiled
    resume       a run that is saved and goes on, against one that was not stopped, bit by bit
    pretraining  a step's time, memory and share of the matmul peak, with and without torch.compile
                 and reading data; the estimate of alice-pretrain --dry-run beside its memory
    fine-tuning  the same for a training step of the segmentation networks; the estimate of
                 alice-plan
    processes    the same step in several processes, where there are several GPUs (NCCL)
    matcher      a step of the matcher's training

Memory is in GB of 10^9 bytes: peak of tensors, estimate, what torch keeps for tensors, and what is
in use outside of it (the reserve for CUDA in the estimates is 1 GB). Steps are of noise: nothing is
learned. Nothing is begun after -minutes; what is left is skipped and said. Exit code 1 if results
disagree or something failed.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from bare import ABSENT
from gpu_cases import Request, cases_of

SECTIONS = ("correctness", "resume", "pretraining", "fine-tuning", "processes", "matcher")
ENCODERS = ("vit", "swin", "nnformer")
PRESETS = ("tiny", "small", "paper")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("-device", choices=("cuda", "cpu"), help="default: cuda if available")
    p.add_argument("-sections", nargs="+", default=SECTIONS, choices=SECTIONS, metavar="NAME")
    p.add_argument("-encoders", nargs="+", default=ENCODERS, choices=ENCODERS, metavar="NAME")
    p.add_argument("-presets", nargs="+", default=PRESETS, choices=PRESETS, metavar="NAME")
    p.add_argument("-repeats", type=int, default=5, metavar="N", help="timed steps (default: 5)")
    p.add_argument("-minutes", type=float, default=20.0, metavar="N", help="default: 20")
    p.add_argument("-np", type=int, default=8, metavar="N", help="processes that read (default: 8)")
    p.add_argument("--without-data", action="store_true", help="random crops only")
    p.add_argument("--toy", action="store_true", help="tiny sizes, to try this script on a CPU")
    p.add_argument("--json", type=Path, metavar="FILE", help="write all rows there")
    p.add_argument("--table", type=Path, metavar="FILE", help="write the tables there (Markdown)")
    return p


def main(words: list[str] | None = None) -> int:
    arguments = parser().parse_args(words)
    until = time.monotonic() + 60 * arguments.minutes

    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    request = Request(
        device,
        tuple(arguments.encoders),
        tuple(arguments.presets),
        arguments.repeats,
        arguments.toy,
        None if arguments.without_data else arguments.np,
    )
    report: dict = {
        "machine": machine(device),
        "absent": ABSENT,
        "rows": {name: [] for name in arguments.sections},
    }
    for name, value in report["machine"].items():
        print(f"{name}: {value}")
    print(f"packages that are not installed: {', '.join(ABSENT) or 'none'}", flush=True)

    for section in arguments.sections:
        for case in cases_of(section, request):
            row = case.row(time.monotonic() < until)
            report["rows"][section].append(row)
            print(f"{section}: {' '.join(f'{k}={v}' for k, v in row.items())}", flush=True)
            write(report, arguments.json, arguments.table)

    rows = [row for section in report["rows"].values() for row in section]
    return int(any("failed" in row or row.get("agrees") is False for row in rows))


def machine(device: torch.device) -> dict[str, str]:
    """What was measured on."""
    found = {"torch": torch.__version__, "device": "cpu", "CPU threads": torch.get_num_threads()}
    if device.type == "cuda":
        found["device"] = torch.cuda.get_device_name(device)
        found["GPUs"] = torch.cuda.device_count()
        found["CUDA"] = torch.version.cuda
        found["cuDNN"] = torch.backends.cudnn.version()
    return {name: str(value) for name, value in found.items()}


def write(report: dict, json_file: Path | None, table_file: Path | None) -> None:
    """Write what is known so far."""
    if json_file:
        json_file.write_text(json.dumps(report, indent=1))
    if table_file:
        table_file.write_text(tables(report))


def tables(report: dict) -> str:
    """The report in Markdown: a table for each section, a column for each name in its rows."""
    parts = [f"Machine: {', '.join(f'{k} {v}' for k, v in report['machine'].items())}."]
    for section, rows in report["rows"].items():
        columns = list(dict.fromkeys(name for row in rows for name in row))
        lines = [columns, ["---"] * len(columns)]
        lines += [[str(row.get(name, "")) for name in columns] for row in rows]
        parts.append(f"## {section}")
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.exit(main())
