"""The steps of alice-demo. Each one runs the command that a user would type."""

import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

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
from alice_nnunet.demo.page import MATCHED_PEOPLE, page
from alice_nnunet.environment import with_own_trainers
from alice_nnunet.errors import UserError
from alice_nnunet.evaluation.scores import dice
from alice_nnunet.files import write_json_atomically
from alice_nnunet.names import ANATOMY, CONFIGURATION, FINAL, RUNS
from alice_nnunet.pictures import prediction_figure, save_figure

LINES_OF_A_FAILURE = 15  # of the log, shown when a command fails


class Demo:
    """The demo in one folder.

    Attributes:
        out: folder of all results.
        encoder: name of the encoder.
        pretraining_steps: iterations of alice-pretrain.
        epochs: epochs of the fine-tuning.
        iterations: iterations of each of these epochs.
        steps: what was run so far: reason, command line, seconds.
    """

    def __init__(
        self, out: Path, encoder: str, pretraining_steps: int, epochs: int, iterations: int
    ):
        self.out = out
        self.encoder = encoder
        self.pretraining_steps = pretraining_steps
        self.epochs = epochs
        self.iterations = iterations

        self.steps: list[dict] = []
        self.started = time.monotonic()
        self.raw = out / "nnUNet_raw"
        self.preprocessed = out / "nnUNet_preprocessed"
        self.results = out / "nnUNet_results"

        programs = str(Path(sys.executable).parent)
        self.environment = {
            **os.environ,
            "nnUNet_raw": str(self.raw),
            "nnUNet_preprocessed": str(self.preprocessed),
            "nnUNet_results": str(self.results),
            "nnUNet_extTrainer": with_own_trainers(),
            # Every process of nnU-Net imports torch, so that one of each kind is fastest here.
            "nnUNet_n_proc_DA": "1",
            "nnUNet_def_n_proc": "1",
            "nnUNet_compile": "f",
            # nnU-Net's processes share two cores: idle threads must not spin.
            "OMP_WAIT_POLICY": "PASSIVE",
            "PATH": os.pathsep.join([programs, os.environ.get("PATH", "")]),
        }

    @property
    def pretraining(self) -> Path:
        """Results folder of alice-pretrain."""
        return self.results / UNLABELED / RUNS / self.encoder

    @property
    def model(self) -> Path:
        """Results folder of nnUNetv2_train."""
        return self.results / LABELED / f"AliceTrainer__AlicePlans__{CONFIGURATION}"

    def run(self) -> None:
        """Run all steps in order."""
        self.prepare()
        self.match()
        self.pretrain()
        self.finetune()
        self.predict()
        self.write_results(self.evaluate())

    def call(self, reason: str, command: str) -> None:
        """Print the reason, run one command and append its output to log.txt.

        Raises UserError with the last lines of the output if the command fails.
        """
        print(f"\n{reason}\n  $ {command}", flush=True)
        started = time.monotonic()

        with (self.out / "log.txt").open("a+") as log:
            log.write(f"\n$ {command}\n")
            log.flush()
            start_of_output = log.tell()

            code = subprocess.run(
                shlex.split(command),
                env=self.environment,
                cwd=self.out,
                stdout=log,
                stderr=subprocess.STDOUT,
            ).returncode

            log.seek(start_of_output)
            last_lines = log.read().strip().splitlines()[-LINES_OF_A_FAILURE:]

        seconds = time.monotonic() - started
        self.steps.append({"why": reason, "command": command, "seconds": round(seconds, 1)})

        if code:
            raise UserError(
                f"this command ended with code {code}: {command}\n"
                f"Its last lines ({self.out / 'log.txt'} has all):\n" + "\n".join(last_lines)
            )
        print(f"  done in {seconds:.0f} s", flush=True)

    def prepare(self) -> None:
        """Write the raw datasets and preprocess the unlabeled one."""
        print(
            f"Writing two nnU-Net raw datasets to {self.raw}: {len(volumes()) - 1} people without "
            f"labels for pretraining, {len(TRAINING_PEOPLE)} people with labels for fine-tuning, "
            f"and {TEST_PERSON} for prediction",
            flush=True,
        )
        write_datasets(self.raw)
        self.preprocessed.mkdir()
        self.results.mkdir()

        self.call(
            "Preprocess the unlabeled scans: canonical orientation, window -125..255 HU, 3 mm",
            "alice-preprocess -d 100 -spacing 3 3 3 -patch 32 64 64 -np 2",
        )

    def match(self) -> None:
        """Train the anatomical matcher and draw its matches."""
        self.call(
            "Learn from the same scans where in a body a point lies, and index every scan",
            "alice-embed -d 100 -preset tiny -device cpu -np 2",
        )
        self.call(
            "Find points of one person in another",
            f"alice-embed -d 100 -preset tiny -device cpu --show {' '.join(MATCHED_PEOPLE)}",
        )

    def pretrain(self) -> None:
        self.call(
            f"Pretrain the tiny {self.encoder} encoder for {self.pretraining_steps} steps",
            f"alice-pretrain -d 100 -encoder {self.encoder} -preset tiny -device cpu "
            f"--set iterations={self.pretraining_steps} --set validate_every=100",
        )

    def finetune(self) -> None:
        """Plan, preprocess and train as nnU-Net does, from the pretrained encoder."""
        weights = shlex.quote(str(self.pretraining / FINAL))
        self.call(
            "Derive nnU-Net plans that match the pretraining, for a short training: "
            "AdamW, its own learning rate, no augmentation",
            f"alice-plan -d 101 -weights {weights} -epochs {self.epochs} "
            f"-iterations {self.iterations} -lr 1e-3 -np 2 "
            f"--set optimizer=AdamW augmentation=none seed=1",
        )

        # Two people are too few for a split: train on both, and validate on one of them.
        split = {"train": list(TRAINING_PEOPLE), "val": list(TRAINING_PEOPLE[1:])}
        write_json_atomically(self.preprocessed / LABELED / "splits_final.json", [split])

        self.call(
            "Preprocess the labeled scans with those plans (nnU-Net's command)",
            f"nnUNetv2_preprocess -d 101 -plans_name AlicePlans -c {CONFIGURATION} -np 2",
        )
        self.call(
            f"Fine-tune on both labeled people; nnU-Net's own validation uses "
            f"{TRAINING_PEOPLE[1]}, one of them (nnU-Net's command)",
            f"nnUNetv2_train 101 {CONFIGURATION} 0 -tr AliceTrainer -p AlicePlans -device cpu",
        )

    def predict(self) -> None:
        """Segment the test person."""
        images = shlex.quote(str(self.raw / LABELED / "imagesTs"))
        prediction = shlex.quote(str(self.out / "prediction"))
        self.call(
            f"Predict {TEST_PERSON}, whom no step has seen (nnU-Net's command)",
            f"nnUNetv2_predict -i {images} -o {prediction} -d 101 -c {CONFIGURATION} -f 0 "
            f"-tr AliceTrainer -p AlicePlans -device cpu --disable_tta -npp 1 -nps 1",
        )

    def evaluate(self) -> dict[str, float]:
        """Draw prediction and reference. Returns the Dice of each label."""
        raw = self.raw / LABELED
        image, spacing = canonical(raw / "imagesTs" / f"{TEST_PERSON}_0000.nii.gz")
        reference, _ = canonical(raw / "labelsTs" / f"{TEST_PERSON}.nii.gz")
        predicted, _ = canonical(self.out / "prediction" / f"{TEST_PERSON}.nii.gz")

        window = np.clip((image + 125) / 380, 0, 1)
        figure = prediction_figure(window, predicted, reference, spacing, list(LABELS))
        save_figure(figure, self.out / "prediction.png")

        return {
            name: dice(predicted == number, reference == number)
            for number, name in enumerate(LABELS, 1)
        }

    def write_results(self, scores: dict[str, float]) -> None:
        """Collect the pictures and write summary.json and index.html. scores: Dice per label."""
        seconds = time.monotonic() - self.started

        matches = "matches_{}_{}.png".format(*MATCHED_PEOPLE)
        pictures = {
            "matches.png": self.preprocessed / UNLABELED / ANATOMY / matches,
            "pair.png": self.pretraining / "pair.png",
            "reconstruction.png": self.pretraining / "reconstruction.png",
            "pretraining.png": self.pretraining / "progress.png",
            "finetuning.png": self.model / "fold_0" / "progress.png",
        }
        for name, source in pictures.items():
            shutil.copyfile(source, self.out / name)

        summary = {
            "encoder": self.encoder,
            "dice": {name: round(score, 4) for name, score in scores.items()},
            "seconds": round(seconds, 1),
            "steps": self.steps,
        }
        write_json_atomically(self.out / "summary.json", summary)
        (self.out / "index.html").write_text(page(summary), encoding="utf-8")

        scores_text = ", ".join(f"{name} {score:.2f}" for name, score in scores.items())
        print(f"\nDice of {TEST_PERSON}: {scores_text}")
        print(
            f"This was a demonstration of {seconds / 60:.0f} minutes on a CPU, not a result. "
            f"Open {self.out / 'index.html'}",
            flush=True,
        )
