"""Do the features collapse? The paper's equations as printed, and with what keeps spreads open.

    python benchmarks/collapse.py DATA OUT [--steps 2000] [--seeds 0 1]
        [--variants plain "former default"] [--json FILE]

DATA has images/CASE.nii.gz and labels/CASE.nii.gz for lidc0001 and ts_example; everything without
labels is trained on. Each run is one alice-pretrain with the tiny preset. Printed: losses and
spreads over the last tenth of the run, the lowest spread of the last tenth, and organ retrieval
between the two labeled people, whom no run has seen, beside random weights and raw voxels.
"""

import argparse
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import torch
from organ_retrieval import labeled_volume, organ_retrieval

from alice_nnunet.checkpoint import load_pretraining
from alice_nnunet.model.encoders.registry import build_encoder

# The paper's terms, which every variant compares; the present default has others.
PAPER = {
    "dv_by": "crop",
    "weight_st": 1.0,
    "weight_an": 0.0,
    "target_flips": True,
    "temperature": 0.2,
}
PLAIN = {
    **PAPER,
    "predictor": False,
    "ema_casa": False,
    "center_teacher": False,
    "weight_r": 1.0,
}
VARIANTS = {
    "plain": PLAIN,  # the paper as printed
    "EMA CASA only": {**PLAIN, "ema_casa": True},
    "predictor only": {**PLAIN, "predictor": True},
    "centering": {**PLAIN, "similarity": "dino"},
    "predictor and EMA CASA": {**PAPER, "center_teacher": False},
    "sum": {**PAPER, "weight_r": 1.0},
    "infonce": {**PAPER, "similarity": "infonce"},
    "former default": PAPER,
}
PEOPLE = ("lidc0001", "ts_example")
LOSSES = ("l_r", "l_dv", "l_st")
SPREADS = ("spread cls", "spread S", "spread T")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("data", type=Path)
    p.add_argument("out", type=Path)
    p.add_argument("--steps", type=int, default=2000)
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    p.add_argument("--variants", nargs="+", default=["plain", "default"], choices=list(VARIANTS))
    p.add_argument("--json", type=Path)
    return p


def main() -> None:
    arguments = parser().parse_args()
    environment = make_dataset(arguments.data, arguments.out)
    rows = []
    people = None  # read when the first run has preprocessed, with its plans

    for seed in arguments.seeds:
        for variant in arguments.variants:
            checkpoint = pretrain(variant, seed, arguments.steps, arguments.out, environment)
            if people is None:
                people = labeled_people(arguments.data, arguments.out)
            rows.append({"variant": variant, "seed": seed, **summarise(checkpoint, people)})
            print(rows[-1], flush=True)

    torch.manual_seed(0)
    encoder_arguments = checkpoint["config"]["encoder_arguments"]
    untrained = build_encoder("vit", encoder_arguments).eval()
    baselines = organ_retrieval(untrained, people, tuple(encoder_arguments["crop_size"]))

    print_table(rows, baselines, arguments.steps)
    if arguments.json:
        arguments.json.write_text(json.dumps({"baselines": baselines, "rows": rows}, indent=2))


def make_dataset(data: Path, out: Path) -> dict[str, str]:
    """Make an nnU-Net raw dataset of links to the unlabeled volumes.

    Returns:
        The environment for the commands.
    """
    images = out / "raw" / "Dataset023_Torso" / "imagesTr"
    images.mkdir(parents=True, exist_ok=True)

    labeled = {path.name for path in (data / "labels").glob("*.nii.gz")}
    for image in sorted((data / "images").glob("*.nii.gz")):
        link = images / image.name.replace(".nii.gz", "_0000.nii.gz")
        if image.name not in labeled and not link.exists():
            link.symlink_to(image.resolve())

    description = {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
    (images.parent / "dataset.json").write_text(json.dumps(description))
    return {
        **os.environ,
        "nnUNet_raw": str(out / "raw"),
        "nnUNet_preprocessed": str(out / "preprocessed"),
    }


def pretrain(variant: str, seed: int, steps: int, out: Path, environment: dict) -> dict:
    """Run alice-pretrain, or go on with it, and return its last checkpoint."""
    results = out / f"{variant.replace(' ', '_')}_{seed}"
    run = {"seed": seed, "iterations": steps, "validate_every": steps}
    settings = [f"--set={name}={value}" for name, value in {**VARIANTS[variant], **run}.items()]

    options = "-d 23 -encoder vit -preset tiny -matcher body -device cpu -np 1 --c"
    subprocess.run(
        ["alice-pretrain", *options.split(), *settings],
        env={**environment, "nnUNet_results": str(results)},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return load_pretraining(next(results.glob("*/*/vit/checkpoint_final.pth")))


def labeled_people(data: Path, out: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Image and labels of the labeled people, preprocessed as the others were."""
    plans = out / "preprocessed" / "Dataset023_Torso" / "AlicePretrainPlans.json"
    content = json.loads(plans.read_text())
    return [
        labeled_volume(
            data / "images" / f"{person}.nii.gz", data / "labels" / f"{person}.nii.gz", content
        )
        for person in PEOPLE
    ]


def summarise(checkpoint: dict, people: list) -> dict[str, float]:
    """Means over the last tenth of the run, the lowest spread there, and organ retrieval."""
    begin = 0.9 * checkpoint["step"]
    last = {
        name: [value for step, value in checkpoint["history"][name] if step > begin]
        for name in (*LOSSES, *SPREADS)
    }

    encoder_arguments = checkpoint["config"]["encoder_arguments"]
    encoder = build_encoder("vit", encoder_arguments).eval()
    encoder.load_state_dict(checkpoint["network_weights"])
    found = organ_retrieval(encoder, people, tuple(encoder_arguments["crop_size"]))

    return {
        **{name: float(np.mean(values)) for name, values in last.items()},
        "lowest spread": min(min(last[name]) for name in SPREADS),
        "retrieval": found["encoder"],
    }


def print_table(rows: list[dict], baselines: dict, steps: int) -> None:
    """Print the runs as a table in Markdown, under what they are compared with."""
    print(
        f"\n{steps} steps; retrieval among {baselines['organs']} organs: "
        f"chance {baselines['chance']:.3f}, raw voxels {baselines['intensities']:.3f}, "
        f"random weights {baselines['encoder']:.3f}\n"
    )

    names = [name for name in rows[0] if name not in ("variant", "seed")]
    print(f"| variant | seed | {' | '.join(names)} |")
    print("|" + "---|" * (len(names) + 2))
    for row in rows:
        values = " | ".join(f"{row[name]:.3f}" for name in names)
        print(f"| {row['variant']} | {row['seed']} | {values} |")


if __name__ == "__main__":
    main()
