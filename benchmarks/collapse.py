"""Do the features collapse? The paper's equations as printed against the default, on real CT, tiny preset.

    python benchmarks/collapse.py DATA OUT [--steps 2000] [--seeds 0 1] [--variants plain default] [--json FILE]

DATA has images/CASE.nii.gz and labels/CASE.nii.gz for lidc0001 and ts_example; everything without labels is trained on.
Each run is one alice-pretrain. Printed: losses and spreads over the last tenth of the run, the lowest spread of the last
tenth, and organ retrieval between the two labeled people, whom no run has seen, beside random weights and raw voxels.
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

PLAIN = {"predictor": False, "ema_casa": False, "center_teacher": False, "weight_r": 1.0}
VARIANTS = {
    "plain": PLAIN,  # the paper as printed
    "EMA CASA only": {**PLAIN, "ema_casa": True},
    "predictor only": {**PLAIN, "predictor": True},
    "centering": {**PLAIN, "similarity": "dino"},
    "predictor and EMA CASA": {"center_teacher": False},
    "sum": {"weight_r": 1.0},
    "infonce": {"similarity": "infonce"},
    "default": {},
}
PEOPLE = ("lidc0001", "ts_example")


def make_dataset(data: Path, out: Path) -> dict:
    """An nnU-Net raw dataset of links to the unlabeled volumes. Returns the environment for the commands."""
    folder = out / "raw" / "Dataset023_Torso"
    (folder / "imagesTr").mkdir(parents=True, exist_ok=True)
    labeled = {p.name for p in (data / "labels").glob("*.nii.gz")}
    for image in sorted((data / "images").glob("*.nii.gz")):
        link = folder / "imagesTr" / image.name.replace(".nii.gz", "_0000.nii.gz")
        if image.name not in labeled and not link.exists():
            link.symlink_to(image.resolve())
    (folder / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": "CT"}, "file_ending": ".nii.gz"})
    )
    return {
        **os.environ,
        "nnUNet_raw": str(out / "raw"),
        "nnUNet_preprocessed": str(out / "preprocessed"),
    }


def pretrain(variant: str, seed: int, steps: int, out: Path, environment: dict) -> dict:
    """Run alice-pretrain (or go on with it) and return its last checkpoint."""
    results = out / f"{variant.replace(' ', '_')}_{seed}"
    settings = [
        f"--set={k}={v}"
        for k, v in {
            **VARIANTS[variant],
            "seed": seed,
            "iterations": steps,
            "validate_every": steps,
        }.items()
    ]
    subprocess.run(
        [
            "alice-pretrain",
            "-d",
            "23",
            "-encoder",
            "vit",
            "-preset",
            "tiny",
            "-matcher",
            "body",
            "-device",
            "cpu",
            "-np",
            "1",
            "--c",
            *settings,
        ],
        env={**environment, "nnUNet_results": str(results)},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return load_pretraining(next(results.glob("*/*/vit/checkpoint_final.pth")))


def summarise(checkpoint: dict, people: list) -> dict:
    """Means over the last tenth of the run, the lowest spread there, and the probe."""
    steps, names = checkpoint["step"], ("l_r", "l_dv", "l_st", "spread cls", "spread S", "spread T")
    last = {n: [v for step, v in checkpoint["history"][n] if step > 0.9 * steps] for n in names}
    encoder = build_encoder("vit", checkpoint["config"]["encoder_arguments"]).eval()
    encoder.load_state_dict(checkpoint["network_weights"])
    size = tuple(checkpoint["config"]["encoder_arguments"]["crop_size"])
    return {
        **{n: float(np.mean(v)) for n, v in last.items()},
        "lowest spread": min(min(last[n]) for n in names[3:]),
        "retrieval": organ_retrieval(encoder, people, size)["encoder"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument(
        "--variants", nargs="+", default=["plain", "default"], choices=list(VARIANTS)
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    environment, rows, people = make_dataset(arguments.data, arguments.out), [], None
    for seed in arguments.seeds:
        for variant in arguments.variants:
            checkpoint = pretrain(variant, seed, arguments.steps, arguments.out, environment)
            if people is None:
                plans = json.loads(
                    (
                        arguments.out / "preprocessed/Dataset023_Torso/AlicePretrainPlans.json"
                    ).read_text()
                )
                people = [
                    labeled_volume(
                        arguments.data / f"images/{p}.nii.gz",
                        arguments.data / f"labels/{p}.nii.gz",
                        plans,
                    )
                    for p in PEOPLE
                ]
            rows.append({"variant": variant, "seed": seed, **summarise(checkpoint, people)})
            print(rows[-1], flush=True)
    torch.manual_seed(0)
    arguments_of_encoder = checkpoint["config"]["encoder_arguments"]
    random_weights = organ_retrieval(
        build_encoder("vit", arguments_of_encoder).eval(),
        people,
        tuple(arguments_of_encoder["crop_size"]),
    )
    names = list(rows[0])[2:]
    print(
        f"\n{arguments.steps} steps; retrieval among {random_weights['organs']} organs: chance {random_weights['chance']:.3f}, "
        f"raw voxels {random_weights['intensities']:.3f}, random weights {random_weights['encoder']:.3f}\n"
    )
    print("| variant | seed | " + " | ".join(names) + " |\n|" + "---|" * (len(names) + 2))
    for row in rows:
        print(
            f"| {row['variant']} | {row['seed']} | "
            + " | ".join(f"{row[n]:.3f}" for n in names)
            + " |"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps({"baselines": random_weights, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
