"""Documentation: guides run in a real shell, quoted messages exist, links lead somewhere."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nibabel
import nnunetv2
import numpy as np
import pytest

from alice_nnunet import __version__
from tests.helpers.finetuning import write_case
from tests.helpers.warm_commands import warm_commands

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
HOW_TO = DOCS / "how-to"
SOURCE = [REPOSITORY / name for name in ("alice_nnunet", "pretrain", "trainers")]

# Guides whose sh blocks are run, each in the state in which the one before ended.
GUIDES = (
    "pretrain",
    "fine-tune",
    "compare",
    "share-weights",
    "submit",
    "features",
    "classify",
    "troubleshooting",
)
OTHER_GUIDES = ("cluster",)

PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    REPOSITORY / "CHANGELOG.md",
    *sorted(DOCS.rglob("*.md")),
]

# Arguments that are added to those of a guide: small networks, few steps, two folds.
TINY = ["-preset", "tiny", "-device", "cpu", "-np", "1"]
SMALL_MATCHER = [
    "--set=iterations=2",
    "--set=batch_size=2",
    "--set=points=64",
    "--set=widths=4,4,8,8",
    "--set=channels=4",
    "--set=patch_size=16,32,32",
    "--set=crop_size=20,40,40",
    "--set=voxel=8",
    "--set=step=16",
]
SMALL_ENCODER = [
    "--set=iterations=2",
    "--set=batch_size=2",
    "--set=crop_size=16,32,32",
    "--set=decoder_width=24",
    "--set=decoder_heads=2",
    "--set=head_hidden=32",
    "--set=min_score=0",
]
ADDED = {
    "alice-preprocess": ["-spacing", "3", "3", "3", "-patch", "16", "32", "32", "-np", "1"],
    "alice-embed": [*TINY, *SMALL_MATCHER],
    "alice-pretrain": [*TINY, *SMALL_ENCODER],
    "alice-plan": ["-epochs", "1", "-iterations", "1", "-np", "1"],
    "alice-evaluate": ["-np", "1", "--chill"],  # the validation of one fold lacks cases
    "alice-submit": ["--disable_tta"],
    "nnUNetv2_train": ["-device", "cpu"],
    "nnUNetv2_predict": ["-device", "cpu", "-npp", "0", "-nps", "0", "--disable_tta"],
    "nnUNetv2_find_best_configuration": ["-f", "0", "1"],
    "nnUNetv2_accumulate_crossval_results": ["-f", "0"],
}
SHORT = "--set size=16,32,32 iterations=2 warmup_iterations=0 batch_size=2 workers=0"
CLASSIFY = {"-percent 20 100": f"-percent 20 100 -seeds 2 -np 1 {SHORT}"}
TWO_FOLDS = {"0 1 2 3 4": "0 1", "folds_0_1_2_3_4": "folds_0_1"}


# ---------------------------------------------------------------------------------------------
# The guides run
# ---------------------------------------------------------------------------------------------


def write_unlabeled_people(folder: Path, shipped_ct: dict) -> None:
    """Two people without labels, as a raw dataset."""
    (folder / "imagesTr").mkdir(parents=True)
    for case in ("crlm1004", "cptacpda_c3l00189"):
        (folder / "imagesTr" / f"{case}_0000.nii.gz").symlink_to(shipped_ct[case])

    dataset = {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(dataset))


def write_labeled_people(folder: Path, ct: nibabel.Nifti1Image) -> None:
    """Five crops of one person for training and two for testing: two phases of CT, two regions that
    overlap, and in training an ignore label."""
    for index in range(7):
        split = "Tr" if index < 5 else "Ts"
        box = (
            slice(index, index + 30),
            slice(index, index + 32),
            slice(index % 3, index % 3 + 16),
        )
        voxels = np.asarray(ct.dataobj)[box]

        labels = np.digitize(voxels, (-150, 0)).astype(np.uint8)
        if split == "Tr":
            labels[:4] = 3

        for channel, phase in enumerate((voxels, voxels + np.int16(30))):
            write_case(folder / f"images{split}" / f"case{index}_{channel:04d}.nii.gz", phase)
        write_case(folder / f"labels{split}" / f"case{index}.nii.gz", labels)

    dataset = {
        "channel_names": {"0": "CT", "1": "CT"},
        "file_ending": ".nii.gz",
        "numTraining": 5,
        "regions_class_order": [1, 2],
        "labels": {"background": 0, "body": [1, 2], "dense": [2], "ignore": 3},
    }
    (folder / "dataset.json").write_text(json.dumps(dataset))


def write_scans(folder: Path, ct: nibabel.Nifti1Image) -> None:
    """Three crops of one person."""
    for index in range(3):
        voxels = np.asarray(ct.dataobj)[2 * index :, index:, :][:30, :32, :16]
        write_case(folder / f"scan{index}.nii.gz", voxels)


def write_studies(folder: Path, ct: nibabel.Nifti1Image) -> None:
    """Four studies of each of two kinds, in MosMedData's layout."""
    for index in range(8):
        voxels = np.asarray(ct.dataobj)[index:, index:, :][:30, :32, :16]
        name = f"CT-{index % 2}/study_{index + 1:04d}.nii.gz"
        write_case(folder / "studies" / name, voxels)


def nnunet_folders(root: Path) -> dict[str, str]:
    """nnU-Net's three variables, for folders in root."""
    return {f"nnUNet_{name}": str(root / name) for name in ("raw", "preprocessed", "results")}


@pytest.fixture(scope="module")
def place(tmp_path_factory, real_ct, shipped_ct):
    """A folder with nnU-Net's three and IN, and variables under which commands are quick."""
    root = tmp_path_factory.mktemp("docs")
    results = root / "results"
    (root / "preprocessed").mkdir()
    results.mkdir()

    write_unlabeled_people(root / "raw" / "Dataset022_NAME", shipped_ct)
    write_labeled_people(root / "raw" / "Dataset007_NAME", real_ct)
    (root / "IN").symlink_to(root / "raw" / "Dataset007_NAME" / "imagesTs")
    write_scans(root / "scans", real_ct)
    write_studies(root / "COVID19_1110", real_ct)
    (root / "organs.json").write_text(fences(HOW_TO / "compare.md", "json")[0])

    pretraining = results / "Dataset022_NAME/AlicePretrain__AlicePretrainPlans__3d_fullres"
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("nnUNet", "alice"))}

    with warm_commands(root, ADDED) as programs:
        variables = {
            **clean,
            **nnunet_folders(root),
            "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "CKPT": str(pretraining / "nnformer/checkpoint_final.pth"),
            "MODEL": str(results / "Dataset007_NAME/AliceTrainer__AlicePlans__3d_fullres"),
            "INPUTS": "IN",
            "nnUNet_n_proc_DA": "1",
            "nnUNet_def_n_proc": "1",
            "nnUNet_compile": "f",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        yield root, variables


def fences(page: Path, kind: str) -> list[str]:
    """The blocks of a page between ```kind and ```."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def run_script(script: str, folder: Path, variables: dict[str, str]) -> tuple[int, str]:
    """Run lines of bash. Returns the exit code and everything that was printed."""
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env=variables,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def printed(place) -> dict[str, str]:
    """What the commands of each guide printed."""
    root, variables = place
    printed = {}

    for guide in GUIDES:
        blocks = fences(HOW_TO / f"{guide}.md", "sh")
        script = "\n".join(["set -euo pipefail", *blocks])
        for whole, part in (TWO_FOLDS | CLASSIFY).items():
            script = script.replace(whole, part)

        code, printed[guide] = run_script(script, root, variables)
        assert code == 0, f"{guide}: {printed[guide][-3000:]}"

    return printed


def test_every_guide_is_run_and_every_other_block_is_known():
    """Commands that cannot run here (Docker, SLURM, the hub) are indented."""
    assert {page.stem for page in HOW_TO.glob("*.md")} == {*GUIDES, *OTHER_GUIDES}

    for page in DOCS.rglob("*.md"):
        kinds = {block.split("\n")[0] for block in page.read_text().split("\n```")[1::2]}
        assert kinds <= {"sh", "json", "text"}, page

        run = page.parent == HOW_TO and page.stem in GUIDES
        assert run or "sh" not in kinds, page


def test_the_guides_lead_from_scans_to_a_model_and_its_evaluation(place, printed):
    root, _ = place

    assert "finished after 2 steps" in printed["pretrain"]
    assert "resuming from step 2" in printed["pretrain"]

    assert printed["fine-tune"].count("encoder tensors from") == 2
    assert "Not loaded: none" in printed["fine-tune"]
    predictions = {path.name for path in (root / "OUT_PP").glob("*.nii.gz")}
    assert predictions == {"case5.nii.gz", "case6.nii.gz"}

    for words in ("2 cases, organs of Dataset007_NAME", "body ", "dense ", "Wilcoxon"):
        assert words in printed["compare"]
    comparison = json.loads((root / "comparison" / "alice_comparison.json").read_text())
    assert comparison["ignore_label"] == 3
    assert (root / "predicted" / "ensemble" / "case5.nii.gz").is_file()

    assert (root / "shared" / "model.safetensors").is_file()
    assert "2 cases: all there" in printed["submit"]
    assert "3 scans encoded, 0 left out: features" in printed["features"]
    assert (root / "features" / "nearest.html").is_file()
    assert "classified less classified_scratch" in printed["classify"]
    assert "3 scans, 0 left out, 2 models" in printed["classify"]
    assert "Loaded" in printed["troubleshooting"]


def test_the_zip_predicts_the_same_where_nothing_else_is(place, printed):
    """nnUNet_results is new, and the checkpoint of the pretraining is gone with everything else."""
    root, variables = place
    for name in ("results", "preprocessed"):
        (root / name).rename(root / f"gone_{name}")

    script = """
        set -e
        eval $(alice-env)
        nnUNetv2_install_pretrained_model_from_zip model.zip
        nnUNetv2_predict -i IN -o FRESH -d 7 -c 3d_fullres -f 0 1 -tr AliceTrainer -p AlicePlans
    """
    try:
        code, output = run_script(script, root, {**variables, **nnunet_folders(root / "fresh")})
    finally:
        for name in ("results", "preprocessed"):
            (root / f"gone_{name}").rename(root / name)
    assert code == 0, output[-3000:]

    for case in ("case5.nii.gz", "case6.nii.gz"):
        fresh = nibabel.load(root / "FRESH" / case)
        before = nibabel.load(root / "OUT" / case)
        assert np.array_equal(fresh.dataobj, before.dataobj)
        assert np.array_equal(fresh.affine, before.affine)


# ---------------------------------------------------------------------------------------------
# What the pages say is true of the code
# ---------------------------------------------------------------------------------------------


def text_of(node: ast.AST) -> str | None:
    """The text of a string in the source, with one NUL for each value that is put into it."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) or "\0" for part in node.values)
    return None


@pytest.fixture(scope="module")
def texts() -> set[str]:
    """Every string in the source of the package, and in nnU-Net's search for trainers."""
    files = [file for folder in SOURCE for file in folder.rglob("*.py")]
    files.append(Path(nnunetv2.__path__[0]) / "utilities" / "find_objects.py")

    nodes = (node for file in files for node in ast.walk(ast.parse(file.read_text())))
    return {text for node in nodes if (text := text_of(node))}


def test_every_message_that_is_quoted_is_in_the_code(texts):
    of_torch = {"torch._dynamo ...", "CUDA out of memory"}
    blocks = fences(HOW_TO / "troubleshooting.md", "text")
    quoted = {line for block in blocks for line in block.splitlines()}
    assert len(quoted) > 15 and of_torch <= quoted

    cluster = (HOW_TO / "cluster.md").read_text()
    searched = re.findall(r'grep -q "(.+?)"', cluster)
    assert len(searched) == 1

    for line in (quoted - of_torch) | set(searched):
        pattern = re.compile(".*".join(map(re.escape, line.split("..."))), re.DOTALL)
        assert any(pattern.search(text) for text in texts), line


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def check_target(page: Path, target: str) -> None:
    """Fail unless a link, relative to page's folder, leads to a file (and heading) that exists."""
    name, _, anchor = target.partition("#")
    linked = page.parent / name if name else page
    assert linked.exists(), f"{page.name}: {target}"
    assert not anchor or anchor in anchors(linked), f"{page.name}: {target}"


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s:]+)\)", page.read_text()):
            check_target(page, target)


def test_every_page_can_be_found_from_the_front_page():
    """From README.md, or from the indexes in docs/."""
    indexes = [REPOSITORY / "README.md", DOCS / "README.md", DOCS / "results" / "README.md"]
    found = set()
    for index in indexes:
        for target in re.findall(r"\]\(([^)\s:#]+)\)", index.read_text()):
            found.add((index.parent / target).resolve())

    assert set(DOCS.rglob("*.md")) <= {*found, DOCS / "README.md"}
    for guide in GUIDES:
        assert f"docs/how-to/{guide}.md" in (REPOSITORY / "README.md").read_text(), guide


def test_pages_that_the_code_names_exist(texts):
    named = {name for text in texts for name in re.findall(r"docs/[\w/.-]+\.md(?:#[\w-]+)?", text)}
    assert named
    for name in named:
        check_target(REPOSITORY / "README.md", name)


def test_files_that_the_pages_name_exist():
    """Paths in backticks that begin with a folder of the repository."""
    for page in PAGES:
        if page.name == "CHANGELOG.md":  # old names stay there
            continue
        for name in re.findall(
            r"`((?:alice_nnunet|pretrain|trainers|benchmarks|tests|docs)/[\w/.-]*)`",
            page.read_text(),
        ):
            known = (REPOSITORY / name).exists() or "NAME" in name
            assert known, f"{page.name}: {name}"


def test_changelog_and_citation_have_the_version_of_the_package():
    changelog = (REPOSITORY / "CHANGELOG.md").read_text()
    assert re.findall(r"^## \[(\d.+)\]", changelog, re.MULTILINE)[0] == __version__

    citation = (REPOSITORY / "CITATION.cff").read_text()
    assert re.findall(r"^version: (.+)$", citation, re.MULTILINE) == [__version__]


def test_the_front_page_is_short():
    text = (REPOSITORY / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert len(text.encode()) <= 8192


def test_lines_of_text_are_wrapped():
    """At 120 columns, except tables, blocks, links that cannot be broken, and pictures."""
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        for line in text.splitlines():
            free = line.startswith(("|", "    ", "[", "!"))
            assert free or len(line) <= 120, f"{page.name}: {line}"
