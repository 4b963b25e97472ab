"""The pages in docs/: their commands run, in a real shell, and the messages they quote are printed by the code."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import nnunetv2
import pytest

from tests.helpers.finetuning import write_case
from tests.helpers.warm_commands import warm_commands

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
HOW_TO = DOCS / "how-to"
PAGES = (
    "pretrain",
    "fine-tune",
    "compare",
    "share-weights",
    "submit",
    "troubleshooting",
)  # each goes on where the one before ended
TINY = ["-preset", "tiny", "-device", "cpu", "-np", "1"]
PREDICT = ["-device", "cpu", "-npp", "0", "-nps", "0", "--disable_tta"]
SHORT = {  # words after those on the page: small networks, few steps, two folds
    "alice-preprocess": ["-spacing", "3", "3", "3", "-patch", "16", "32", "32", "-np", "1"],
    "alice-embed": [
        *TINY,
        *(
            f"--set={s}"
            for s in (
                "iterations=2",
                "batch_size=2",
                "points=64",
                "widths=4,4,8,8",
                "channels=4",
                "patch_size=16,32,32",
                "crop_size=20,40,40",
                "voxel=8",
                "step=16",
            )
        ),
    ],
    "alice-pretrain": [
        *TINY,
        *(
            f"--set={s}"
            for s in (
                "iterations=2",
                "batch_size=2",
                "crop_size=16,32,32",
                "decoder_width=24",
                "decoder_heads=2",
                "head_hidden=32",
                "min_score=0",
            )
        ),
    ],
    "alice-plan": ["-epochs", "1", "-iterations", "1", "-np", "1"],
    "alice-evaluate": ["-np", "1", "--chill"],  # validation cases of a single fold
    "alice-submit": ["--disable_tta"],
    "nnUNetv2_train": ["-device", "cpu"],
    "nnUNetv2_predict": PREDICT,
    "nnUNetv2_find_best_configuration": ["-f", "0", "1"],
    "nnUNetv2_accumulate_crossval_results": ["-f", "0"],
}
TWO_FOLDS = {"0 1 2 3 4": "0 1", "folds_0_1_2_3_4": "folds_0_1"}


def write_people(raw: Path, ct: nibabel.Nifti1Image, shipped_ct: dict) -> None:
    """Dataset 22, two people without labels, and dataset 7, five crops of one for training and two for testing: two phases of CT,
    two overlapping regions, and in training an ignore label."""
    unlabeled, labeled = raw / "Dataset022_NAME", raw / "Dataset007_NAME"
    (unlabeled / "imagesTr").mkdir(parents=True)
    for case in ("crlm1004", "cptacpda_c3l00189"):
        (unlabeled / "imagesTr" / f"{case}_0000.nii.gz").symlink_to(shipped_ct[case])
    for index in range(7):
        voxels, split = (
            np.asarray(ct.dataobj)[
                index : index + 30, index : index + 32, index % 3 : index % 3 + 16
            ],
            "Tr" if index < 5 else "Ts",
        )
        labels = np.digitize(voxels, (-150, 0)).astype(np.uint8)
        labels[:4] = 3 if split == "Tr" else labels[:4]
        for channel, phase in enumerate((voxels, voxels + np.int16(30))):
            write_case(labeled / f"images{split}" / f"case{index}_{channel:04d}.nii.gz", phase)
        write_case(labeled / f"labels{split}" / f"case{index}.nii.gz", labels)
    (unlabeled / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": "CT"}, "file_ending": ".nii.gz"})
    )
    (labeled / "dataset.json").write_text(
        json.dumps(
            {
                "channel_names": {"0": "CT", "1": "CT"},
                "file_ending": ".nii.gz",
                "numTraining": 5,
                "regions_class_order": [1, 2],
                "labels": {"background": 0, "body": [1, 2], "dense": [2], "ignore": 3},
            }
        )
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory, real_ct, shipped_ct):
    """A folder with nnU-Net's three and IN, and a shell in which the commands are warm and short."""
    root = tmp_path_factory.mktemp("docs")
    for name in ("preprocessed", "results"):
        (root / name).mkdir()
    write_people(root / "raw", real_ct, shipped_ct)
    (root / "IN").symlink_to(root / "raw" / "Dataset007_NAME" / "imagesTs")
    (root / "organs.json").write_text(
        (HOW_TO / "compare.md").read_text().split("```json\n")[1].split("```")[0]
    )
    with warm_commands(root, SHORT) as programs:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("nnUNet", "alice"))}
        results = root / "results"
        yield (
            root,
            {
                **clean,
                "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
                **{
                    f"nnUNet_{name}": str(root / name)
                    for name in ("raw", "preprocessed", "results")
                },
                "CKPT": str(
                    results
                    / "Dataset022_NAME/AlicePretrain__AlicePretrainPlans__3d_fullres/nnformer/checkpoint_final.pth"
                ),
                "MODEL": str(results / "Dataset007_NAME/AliceTrainer__AlicePlans__3d_fullres"),
                "INPUTS": "IN",
                "nnUNet_n_proc_DA": "1",
                "nnUNet_def_n_proc": "1",
                "nnUNet_compile": "f",
                "OMP_NUM_THREADS": "1",
                "HF_HUB_OFFLINE": "1",
            },
        )


def fences(page: Path, kind: str) -> list[str]:
    """The blocks of a page between ```kind and ```."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", page.read_text(), re.M | re.S)


@pytest.fixture(scope="module")
def walked(place) -> dict[str, str]:
    """What the commands of each page printed."""
    root, variables = place
    printed = {}
    for page in PAGES:
        script = "\n".join(["set -euo pipefail", *fences(HOW_TO / f"{page}.md", "sh")])
        for whole, part in TWO_FOLDS.items():
            script = script.replace(whole, part)
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=root,
            env=variables,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert done.returncode == 0, f"{page}: {done.stdout[-3000:]}"
        printed[page] = done.stdout
    return printed


def test_every_page_is_walked_and_every_other_block_is_known():
    """Commands that cannot run here (Docker, SLURM, the hub) are indented."""
    for path in DOCS.rglob("*.md"):
        kinds = {block.split("\n")[0] for block in path.read_text().split("\n```")[1::2]}
        assert kinds <= {"sh", "json", "text"} and (path.stem in PAGES or "sh" not in kinds), (
            path.stem
        )


def test_the_pages_walk_from_scans_to_a_model_and_its_evaluation(place, walked):
    root, _ = place
    assert (
        "finished after 2 steps" in walked["pretrain"]
        and "going on from step 2" in walked["pretrain"]
    )
    assert (
        walked["fine-tune"].count("encoder tensors from") == 2
        and "Not loaded: none" in walked["fine-tune"]
    )
    assert {p.name for p in (root / "OUT_PP").glob("*.nii.gz")} == {"case5.nii.gz", "case6.nii.gz"}
    for word in ("2 cases, organs of Dataset007_NAME", "body ", "dense ", "Wilcoxon"):
        assert word in walked["compare"]
    assert (
        json.loads((root / "comparison" / "alice_comparison.json").read_text())["ignore_label"] == 3
    )
    assert (root / "predicted" / "ensemble" / "case5.nii.gz").is_file()
    assert (root / "shared" / "model.safetensors").is_file() and "2 cases: all there" in walked[
        "submit"
    ]
    assert "Loaded" in walked["troubleshooting"]


def test_the_zip_predicts_the_same_where_nothing_else_is(place, walked):
    """nnUNet_results is new and the pretraining's checkpoint is gone, with everything that training had."""
    root, variables = place
    for name in ("results", "preprocessed"):
        (root / name).rename(root / f"gone_{name}")
    words = "-d 7 -c 3d_fullres -f 0 1 -tr AliceTrainer -p AlicePlans"
    script = f"set -e; eval $(alice-env); nnUNetv2_install_pretrained_model_from_zip model.zip; nnUNetv2_predict -i IN -o FRESH {words}"
    try:
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=root,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={
                **variables,
                **{
                    f"nnUNet_{name}": str(root / "fresh")
                    for name in ("raw", "preprocessed", "results")
                },
            },
        )
    finally:
        for name in ("results", "preprocessed"):
            (root / f"gone_{name}").rename(root / name)
    assert done.returncode == 0, done.stdout[-3000:]
    for case in ("case5.nii.gz", "case6.nii.gz"):
        fresh, before = (nibabel.load(root / folder / case) for folder in ("FRESH", "OUT"))
        assert np.array_equal(fresh.dataobj, before.dataobj) and np.array_equal(
            fresh.affine, before.affine
        )


def text_of(node: ast.AST) -> str | None:
    """The text of a string in the source, with one NUL for each value that is put into it."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    return (
        "".join(text_of(part) or "\0" for part in node.values)
        if isinstance(node, ast.JoinedStr)
        else None
    )


def test_every_message_that_is_quoted_is_in_the_code():
    folders = [REPOSITORY / name for name in ("alice_nnunet", "pretrain", "trainers")]
    files = [
        *(file for folder in folders for file in folder.rglob("*.py")),
        Path(nnunetv2.__path__[0]) / "utilities" / "find_objects.py",
    ]
    texts = {
        text
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if (text := text_of(node))
    }
    others = {"torch._dynamo ...", "CUDA out of memory"}  # torch's
    quoted = [
        line
        for block in fences(HOW_TO / "troubleshooting.md", "text")
        for line in block.splitlines()
    ]
    assert len(quoted) > 15 and others <= set(quoted)
    for line in set(quoted) - others:
        pattern = re.compile(".*".join(map(re.escape, line.split("..."))), re.S)
        assert any(pattern.search(text) for text in texts), line


def test_links_lead_somewhere():
    for page in (REPOSITORY / "README.md", *DOCS.rglob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).is_file(), f"{page.name}: {target}"
    for page in PAGES:
        assert f"docs/how-to/{page}.md" in (REPOSITORY / "README.md").read_text(), page
