"""The steps of alice-demo. Each one runs the command that a user would type."""

import os
import shlex
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from alice_nnunet.demo.datasets import TEST_PEOPLE, UNLABELED, volumes, write_datasets
from alice_nnunet.demo.page import MATCHED_PEOPLE, Outcome, page
from alice_nnunet.demo.running import Runner
from alice_nnunet.demo.scores import mean_of, predictions, scores_of, segmented
from alice_nnunet.demo.tasks import PLANS, STARTS, TASKS, Start, Task
from alice_nnunet.environment import with_own_trainers
from alice_nnunet.files import write_json_atomically
from alice_nnunet.names import ANATOMY, CONFIGURATION, FINAL, RUNS
from alice_nnunet.pictures import prediction_figure, save_figure


@dataclass(frozen=True)
class Budget:
    """How long the demo trains.

    Attributes:
        pretraining_steps: iterations of alice-pretrain.
        epochs: of each fine-tuning.
        iterations: of each of these epochs.
    """

    pretraining_steps: int
    epochs: int
    iterations: int


class Demo:
    """The demo in one folder.

    Attributes:
        out: folder of all results.
        encoder: name of the encoder.
        budget: how long it trains.
        runner: runs the commands.
    """

    def __init__(self, out: Path, encoder: str, budget: Budget):
        self.out = out
        self.encoder = encoder
        self.budget = budget

        self.started = time.monotonic()
        self.raw = out / "nnUNet_raw"
        self.preprocessed = out / "nnUNet_preprocessed"
        self.results = out / "nnUNet_results"
        self.runner = Runner(out, self.environment())

    def environment(self) -> dict[str, str]:
        """The variables of the commands."""
        programs = str(Path(sys.executable).parent)
        return {
            **os.environ,
            "nnUNet_raw": str(self.raw),
            "nnUNet_preprocessed": str(self.preprocessed),
            "nnUNet_results": str(self.results),
            "nnUNet_extTrainer": with_own_trainers(),
            # Every process of nnU-Net imports torch: without more of them it is fastest here.
            "nnUNet_n_proc_DA": "0",
            "nnUNet_def_n_proc": "1",
            "nnUNet_compile": "f",
            # Processes share the cores: idle threads must not spin.
            "OMP_WAIT_POLICY": "PASSIVE",
            "PATH": os.pathsep.join([programs, os.environ.get("PATH", "")]),
        }

    @property
    def pretraining(self) -> Path:
        """Results folder of alice-pretrain."""
        return self.results / UNLABELED / RUNS / self.encoder

    def fold(self, task: Task, start: Start) -> Path:
        """Results folder of nnUNetv2_train."""
        return self.results / task.dataset / start.model / "fold_0"

    def run(self) -> None:
        """Run all steps in order."""
        self.prepare()
        self.match()
        self.pretrain()
        self.plan()
        for task in TASKS:
            self.finetune(task)
        for task in TASKS:
            self.predict(task)
        self.write_results()

    def prepare(self) -> None:
        """Write the raw datasets and preprocess the unlabeled one."""
        unlabeled = len(volumes()) - len(TEST_PEOPLE)
        print(
            f"Writing nnU-Net raw datasets to {self.raw}: {unlabeled} people without labels for "
            f"pretraining",
            flush=True,
        )
        for task in TASKS:
            print(
                f"  {task.name}: {len(task.training)} people with labels for fine-tuning, "
                f"{len(task.test)} for the test only, in no other step",
                flush=True,
            )
        write_datasets(self.raw)
        self.preprocessed.mkdir()
        self.results.mkdir()

        self.runner.call(
            "Preprocess the unlabeled scans: canonical orientation, window -125..255 HU, 3 mm",
            "alice-preprocess -d 100 -spacing 3 3 3 -patch 32 64 64 -np 2",
        )

    def match(self) -> None:
        """Train the anatomical matcher and draw its matches."""
        self.runner.call(
            "Learn from the same scans where in a body a point lies, and index every scan",
            "alice-embed -d 100 -preset tiny -device cpu -np 2",
        )
        self.runner.call(
            "Find points of one person in another",
            f"alice-embed -d 100 -preset tiny -device cpu --show {' '.join(MATCHED_PEOPLE)}",
        )

    def pretrain(self) -> None:
        steps = self.budget.pretraining_steps
        self.runner.call(
            f"Pretrain the tiny {self.encoder} encoder for {steps} steps",
            f"alice-pretrain -d 100 -encoder {self.encoder} -preset tiny -device cpu "
            f"--set iterations={steps} --set validate_every=100",
        )

    def plan(self) -> None:
        """Plan and preprocess every task as nnU-Net does, once for both starts."""
        weights = shlex.quote(str(self.pretraining / FINAL))
        self.runner.call(
            "Derive nnU-Net plans that match the pretraining, for short trainings: AdamW, its own "
            "learning rate, no augmentation",
            *(
                f"alice-plan -d {task.number} -weights {weights} -n {PLANS} "
                f"-epochs {self.budget.epochs} -iterations {self.budget.iterations} -lr 1e-3 -np 1 "
                f"--set optimizer=AdamW augmentation=none seed=1 val_iterations_per_epoch=2"
                for task in TASKS
            ),
        )

        # Too few people for a split: train on all, and validate on one of them.
        for task in TASKS:
            split = {"train": list(task.training), "val": list(task.training[-1:])}
            path = self.preprocessed / task.dataset / "splits_final.json"
            write_json_atomically(path, [split])

        self.runner.call(
            "Preprocess the labeled scans with those plans (nnU-Net's command)",
            *(
                f"nnUNetv2_preprocess -d {task.number} -plans_name {PLANS} -c {CONFIGURATION} -np 1"
                for task in TASKS
            ),
        )

    def finetune(self, task: Task) -> None:
        """Train from both starts, at the same time."""
        self.runner.call(
            f"Fine-tune on the {len(task.training)} people with labels of {task.name}, from the "
            f"pretrained encoder and from random weights; nnU-Net's own validation uses "
            f"{task.training[-1]}, one of them (nnU-Net's command)",
            *(
                f"nnUNetv2_train {task.number} {CONFIGURATION} 0 -tr {start.trainer} -p {PLANS} "
                f"-device cpu"
                for start in STARTS
            ),
        )

    def predict(self, task: Task) -> None:
        """Segment the test people with both."""
        images = shlex.quote(str(self.raw / task.dataset / "imagesTs"))
        commands = []
        for start in STARTS:
            folder = shlex.quote(str(predictions(self.out, task, start)))
            commands.append(
                f"nnUNetv2_predict -i {images} -o {folder} -d {task.number} -c {CONFIGURATION} "
                f"-f 0 -tr {start.trainer} -p {PLANS} -device cpu --disable_tta -npp 0 -nps 0"
            )

        self.runner.call(
            f"Predict the {task.name} of {', '.join(task.test)}, whom no step has seen, with both "
            f"(nnU-Net's command)",
            *commands,
        )

    def write_results(self) -> None:
        """Compare both starts; write the pictures, summary.json and index.html."""
        first = [segmented(self.out, self.raw, task, task.test[0]) for task in TASKS]
        save_figure(prediction_figure(first), self.out / "prediction.png")
        self.collect_pictures()

        of_tasks = [scores_of(self.out, self.raw, task) for task in TASKS]
        steps = self.runner.steps
        outcome = Outcome(
            encoder=self.encoder,
            seconds=round(time.monotonic() - self.started, 1),
            cpu_seconds=round(sum(step.cpu_seconds for step in steps), 1),
            means=[mean_of(scores) for scores in of_tasks],
            scores=[score for scores in of_tasks for score in scores],
            steps=steps,
        )
        write_json_atomically(self.out / "summary.json", asdict(outcome))
        (self.out / "index.html").write_text(page(outcome), encoding="utf-8")
        self.print_results(outcome)

    def collect_pictures(self) -> None:
        """Copy the pictures that the commands have drawn to the folder of the page."""
        matches = "matches_{}_{}.png".format(*MATCHED_PEOPLE)
        pictures = {
            "matches.png": self.preprocessed / UNLABELED / ANATOMY / matches,
            "pair.png": self.pretraining / "pair.png",
            "reconstruction.png": self.pretraining / "reconstruction.png",
            "pretraining.png": self.pretraining / "progress.png",
        }
        for task in TASKS:
            for start in STARTS:
                name = f"finetuning_{task.name}_{start.name}.png"
                pictures[name] = self.fold(task, start) / "progress.png"

        for name, source in pictures.items():
            shutil.copyfile(source, self.out / name)

    def print_results(self, outcome: Outcome) -> None:
        """Print every score, what follows from them, and where the page is."""
        starts = "".join(f"{start.title:>20}" for start in STARTS)
        print(f"\nDice of people whom no training has seen\n{'':24}{starts}")
        for score in outcome.scores:
            print(f"{score.person:12}{score.label:12}{score.pretrained:20.3f}{score.random:20.3f}")
        print()
        for mean in outcome.means:
            print(mean.words)
        print(
            f"This was a demonstration of {outcome.seconds / 60:.0f} minutes on a CPU, with one "
            f"seed and few people, not a result. Open {self.out / 'index.html'}",
            flush=True,
        )
