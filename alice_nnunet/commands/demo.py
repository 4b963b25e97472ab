"""alice-demo: from unlabeled scans to a segmentation of a new person, by the real commands, on a CPU."""

import html
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from alice_nnunet.commands.env import with_trainers
from alice_nnunet.demo.datasets import (
    LABELED,
    LABELS,
    TEST_PERSON,
    TRAINING_PEOPLE,
    UNLABELED,
    canonical,
    volumes,
    write_datasets,
)
from alice_nnunet.errors import CommandParser, UserError, command
from alice_nnunet.files import write_json_atomically
from alice_nnunet.model.presets import PRESETS
from alice_nnunet.names import ANATOMY
from alice_nnunet.pictures import prediction_figure, save_figure

SHOWN = ("cptacpda_c3l00189", "crlm1004")  # two abdomens
PICTURES = {
    "matches.png": f"Random points of {SHOWN[0]} and where the learned matcher finds them in {SHOWN[1]}, with scores; pairs under 0.65 are not trained on",
    "pair.png": "Two crops of the same part of the body in two people, as the matcher pairs them for the pretraining",
    "reconstruction.png": "What the encoder saw of a held-out crop, and what the decoder made of the hidden part",
    "pretraining.png": "Losses and spreads of the pretraining",
    "finetuning.png": "nnU-Net's own progress of the fine-tuning",
    "prediction.png": f"Prediction and reference for {TEST_PERSON}, a person that neither pretraining nor fine-tuning has seen",
}


@command("alice-demo")
def main(argv: list[str] | None) -> None:
    parser = CommandParser(
        "alice-demo",
        description="Pretrain, fine-tune and predict on the CT that ships with the package.",
    )
    parser.add_argument(
        "-o",
        type=Path,
        default=Path("alice-demo"),
        metavar="DIR",
        help="new folder for everything (default: alice-demo)",
    )
    parser.add_argument("-encoder", default="vit", choices=sorted(PRESETS), help="default: vit")
    arguments = parser.parse_args(argv)
    out = arguments.o.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            f"{out} exists already and is not an empty folder: choose another one with -o, or remove it"
        )
    out.mkdir(parents=True, exist_ok=True)
    Demo(out, arguments.encoder, pretraining_steps=200, epochs=12, iterations=25).whole()


class Demo:
    """The steps of the demo in one folder.

    pretraining_steps: of alice-pretrain; epochs, iterations (of each): of the fine-tuning. steps: what was run and how
    long it took.
    """

    def __init__(
        self, out: Path, encoder: str, pretraining_steps: int, epochs: int, iterations: int
    ):
        self.out, self.encoder, self.steps, self.started = out, encoder, [], time.monotonic()
        self.pretraining_steps, self.epochs, self.iterations = pretraining_steps, epochs, iterations
        self.environment = {
            **os.environ,
            **{
                f"nnUNet_{name}": str(out / f"nnUNet_{name}")
                for name in ("raw", "preprocessed", "results")
            },
            "nnUNet_extTrainer": with_trainers(os.environ.get("nnUNet_extTrainer", "")),
            "nnUNet_n_proc_DA": "1",
            "nnUNet_def_n_proc": "1",
            "nnUNet_compile": "f",  # each process of nnU-Net's imports torch
            "OMP_WAIT_POLICY": "PASSIVE",  # nnU-Net's processes share two cores: idle threads must not spin
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        }

    def whole(self) -> None:
        """All steps in their order."""
        self.prepare()
        self.match()
        self.pretrain()
        self.finetune()
        self.show(self.predict())

    @property
    def pretraining(self) -> Path:
        return (
            self.out
            / f"nnUNet_results/{UNLABELED}/AlicePretrain__AlicePretrainPlans__3d_fullres/{self.encoder}"
        )

    @property
    def model(self) -> Path:
        return self.out / f"nnUNet_results/{LABELED}/AliceTrainer__AlicePlans__3d_fullres"

    def run(self, why: str, *words: str) -> None:
        """Say why, run one command, keep its output in log.txt. Raises UserError with its last lines where it fails."""
        line = " ".join(words)
        print(f"\n{why}\n  $ {line}", flush=True)
        started = time.monotonic()
        with open(self.out / "log.txt", "a+") as log:
            log.write(f"\n$ {line}\n")
            log.flush()
            where = log.tell()
            code = subprocess.run(
                words, env=self.environment, cwd=self.out, stdout=log, stderr=subprocess.STDOUT
            ).returncode
            log.seek(where)
            last = log.read().strip().splitlines()[-15:]
        seconds = time.monotonic() - started
        self.steps.append({"why": why, "command": line, "seconds": round(seconds, 1)})
        if code:
            raise UserError(
                f"this command ended with code {code}: {line}\nIts last lines ({self.out / 'log.txt'} has all):\n"
                + "\n".join(last)
            )
        print(f"  done in {seconds:.0f} s", flush=True)

    def prepare(self) -> None:
        """Raw datasets, then preprocessing without labels."""
        print(
            f"Writing two nnU-Net raw datasets to {self.out / 'nnUNet_raw'}: {len(volumes()) - 1} people without labels "
            f"to learn from, {len(TRAINING_PEOPLE)} with labels to fine-tune on, and {TEST_PERSON} to predict",
            flush=True,
        )
        write_datasets(self.out / "nnUNet_raw")
        for variable in ("preprocessed", "results"):
            (self.out / f"nnUNet_{variable}").mkdir()
        self.run(
            "Preprocess the unlabeled scans: canonical orientation, window -125..255 HU, 3 mm",
            "alice-preprocess",
            "-d",
            "100",
            "-spacing",
            "3",
            "3",
            "3",
            "-patch",
            "32",
            "64",
            "64",
            "-np",
            "2",
        )

    def match(self) -> None:
        """The anatomical matcher, and a picture of it."""
        self.run(
            "Learn from the same scans where in a body a point lies, and index every scan",
            "alice-embed",
            "-d",
            "100",
            "-preset",
            "tiny",
            "-device",
            "cpu",
            "-np",
            "2",
        )
        self.run(
            "Find points of one person in another",
            "alice-embed",
            "-d",
            "100",
            "-preset",
            "tiny",
            "-device",
            "cpu",
            "--show",
            *SHOWN,
        )

    def pretrain(self) -> None:
        self.run(
            f"Pretrain the tiny {self.encoder} encoder for {self.pretraining_steps} steps",
            "alice-pretrain",
            "-d",
            "100",
            "-encoder",
            self.encoder,
            "-preset",
            "tiny",
            "-device",
            "cpu",
            "--set",
            f"iterations={self.pretraining_steps}",
            "--set",
            "validate_every=100",
        )

    def finetune(self) -> None:
        self.run(
            "Derive nnU-Net plans that match the pretraining, for a short training: AdamW, a learning rate of its own, no augmentation",
            "alice-plan",
            "-d",
            "101",
            "-weights",
            str(self.pretraining / "checkpoint_final.pth"),
            "-epochs",
            str(self.epochs),
            "-iterations",
            str(self.iterations),
            "-lr",
            "1e-3",
            "-np",
            "2",
            "--set",
            "optimizer=AdamW",
            "augmentation=none",
            "seed=1",
        )
        everyone = list(TRAINING_PEOPLE)
        write_json_atomically(
            self.out / f"nnUNet_preprocessed/{LABELED}/splits_final.json",
            [{"train": everyone, "val": everyone[1:]}],
        )
        self.run(
            "Preprocess the labeled scans by those plans (nnU-Net's command)",
            "nnUNetv2_preprocess",
            "-d",
            "101",
            "-plans_name",
            "AlicePlans",
            "-c",
            "3d_fullres",
            "-np",
            "2",
        )
        self.run(
            f"Fine-tune on both labeled people; nnU-Net's own validation is on {TRAINING_PEOPLE[1]}, one of them (nnU-Net's command)",
            "nnUNetv2_train",
            "101",
            "3d_fullres",
            "0",
            "-tr",
            "AliceTrainer",
            "-p",
            "AlicePlans",
            "-device",
            "cpu",
        )

    def predict(self) -> dict[str, float]:
        """Predict the test person. Returns the Dice of each label."""
        raw = self.out / "nnUNet_raw" / LABELED
        self.run(
            f"Predict {TEST_PERSON}, whom no step has seen (nnU-Net's command)",
            "nnUNetv2_predict",
            "-i",
            str(raw / "imagesTs"),
            "-o",
            str(self.out / "prediction"),
            "-d",
            "101",
            "-c",
            "3d_fullres",
            "-f",
            "0",
            "-tr",
            "AliceTrainer",
            "-p",
            "AlicePlans",
            "-device",
            "cpu",
            "--disable_tta",
            "-npp",
            "1",
            "-nps",
            "1",
        )
        predicted, _ = canonical(self.out / f"prediction/{TEST_PERSON}.nii.gz")
        reference, spacing = canonical(raw / f"labelsTs/{TEST_PERSON}.nii.gz")
        image, _ = canonical(raw / f"imagesTs/{TEST_PERSON}_0000.nii.gz")
        window = np.clip((image + 125) / 380, 0, 1)
        save_figure(
            prediction_figure(window, predicted, reference, spacing, list(LABELS)),
            self.out / "prediction.png",
        )
        return {
            name: dice(predicted == number, reference == number)
            for number, name in enumerate(LABELS, 1)
        }

    def show(self, scores: dict[str, float]) -> None:
        """Pictures, summary.json and index.html. scores: Dice of each label."""
        seconds = time.monotonic() - self.started
        anatomy = self.out / f"nnUNet_preprocessed/{UNLABELED}/{ANATOMY}"
        for source, name in (
            (anatomy / f"matches_{SHOWN[0]}_{SHOWN[1]}.png", "matches.png"),
            (self.pretraining / "pair.png", "pair.png"),
            (self.pretraining / "reconstruction.png", "reconstruction.png"),
            (self.pretraining / "progress.png", "pretraining.png"),
            (self.model / "fold_0/progress.png", "finetuning.png"),
        ):
            shutil.copyfile(source, self.out / name)
        summary = {
            "encoder": self.encoder,
            "dice": {n: round(d, 4) for n, d in scores.items()},
            "seconds": round(seconds, 1),
            "steps": self.steps,
        }
        write_json_atomically(self.out / "summary.json", summary)
        (self.out / "index.html").write_text(page(summary), encoding="utf-8")
        print(
            f"\nDice of {TEST_PERSON}: "
            + ", ".join(f"{name} {score:.2f}" for name, score in scores.items())
        )
        print(
            f"This was a demo of {seconds / 60:.0f} minutes on a CPU, not a result. Open {self.out / 'index.html'}",
            flush=True,
        )


def dice(predicted: np.ndarray, reference: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|), 1 where both are empty."""
    total = predicted.sum() + reference.sum()
    return float(2 * (predicted & reference).sum() / total) if total else 1.0


def page(summary: dict) -> str:
    """One HTML page: scores, pictures, commands."""
    row = lambda *cells: (
        "<tr>" + "".join(f"<td>{html.escape(str(c))}</td>" for c in cells) + "</tr>"
    )
    scores = "".join(row(name, f"{score:.3f}") for name, score in summary["dice"].items())
    steps = "".join(
        f"{row(s['why'], s['seconds'])}<tr><td colspan=2><code>{html.escape(s['command'])}</code></td></tr>"
        for s in summary["steps"]
    )
    pictures = "".join(
        f'<figure><img src="{name}" alt="{html.escape(text)}"><figcaption>{html.escape(text)}</figcaption></figure>'
        for name, text in PICTURES.items()
    )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>alice-demo</title>"
        "<style>body{font:16px sans-serif;max-width:60em;margin:2em auto;padding:0 1em}img{max-width:100%}figure{margin:2em 0}"
        "td{padding:.2em 1em .2em 0;vertical-align:top}code{color:#555;font-size:.8em}</style>"
        f"<h1>alice-demo, encoder {html.escape(summary['encoder'])}</h1>"
        f"<p>From unlabeled scans to the segmentation of a new person in {summary['seconds'] / 60:.1f} minutes on a CPU: a demonstration "
        "that every step works, with a tiny encoder and minutes of training, not a result.</p>"
        f"<h2>Dice of {TEST_PERSON}</h2><table>{scores}</table><h2>Pictures</h2>{pictures}"
        f"<h2>What was run (seconds)</h2><table>{steps}</table></html>\n"
    )
