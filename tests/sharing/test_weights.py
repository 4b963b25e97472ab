"""What -weights and alice_weights take: a file, an exported folder, a repository in the cache."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from alice_nnunet.checkpoint import unfinished
from alice_nnunet.errors import UserError
from alice_nnunet.files import file_sha256
from alice_nnunet.finetuning.pretrained import load_pretrained
from alice_nnunet.sharing.exported import write_exported
from alice_nnunet.sharing.weights import find_weights, weights_sha256
from tests.helpers.finetuning import pretraining_checkpoint, write_checkpoint

COMMIT = "a1" * 20
OTHER = "b2" * 20
FIND = """
import json, sys
from alice_nnunet.errors import UserError
from alice_nnunet.sharing.weights import find_weights

found = []
for given in sys.argv[1:]:
    try:
        found.append(find_weights(given))
    except UserError as error:
        found.append(f"error: {error}")
print(json.dumps(found))
"""


def cached(cache: Path, commit: str, seed: int) -> None:
    """Put an exported encoder in the hub's cache: a snapshot whose files are links to blobs."""
    exported = cache / f"exported{seed}"
    exported.mkdir()
    write_exported(exported, pretraining_checkpoint(seed), {})

    repository = cache / "models--some-team--alice-vit"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir(exist_ok=True)
    for file in exported.iterdir():
        blob = repository / "blobs" / file_sha256(file)
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))


@pytest.fixture
def cache(tmp_path):
    """A stand-in of the hub's cache: main is one commit, the tag v2 another."""
    hub = tmp_path / "home" / "hub"
    hub.mkdir(parents=True)
    cached(hub, COMMIT, 0)
    cached(hub, OTHER, 1)

    refs = hub / "models--some-team--alice-vit" / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    (refs / "v2").write_text(OTHER)
    return tmp_path


def find_offline(folder: Path, *given: str) -> list[str]:
    """find_weights in a process of its own: the hub's client reads its variables at import."""
    environment = {**os.environ, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", FIND, *given],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_repositories_in_the_cache_and_not(cache):
    main, also_main, tag, commit, absent, revision = find_offline(
        cache,
        "some-team/alice-vit",
        "some-team/alice-vit@main",
        "some-team/alice-vit@v2",
        f"some-team/alice-vit@{OTHER}",
        "some-team/nothing",
        "some-team/alice-vit@v9",
    )

    snapshots = cache / "home" / "hub" / "models--some-team--alice-vit" / "snapshots"
    assert main == also_main == str(snapshots / COMMIT)
    assert tag == commit == str(snapshots / OTHER)
    assert weights_sha256(main) == file_sha256(snapshots / COMMIT / "model.safetensors")
    assert weights_sha256(main) != weights_sha256(tag)

    for text, name in ((absent, "some-team/nothing"), (revision, "some-team/alice-vit@v9")):
        assert text.startswith(f"error: {name} is not a file or folder here")
        assert "hf download" in text and str(cache / "home" / "hub") in text
        assert "\n" not in text


def test_what_is_here_comes_before_the_hub(cache):
    (cache / "some-team" / "alice-vit").mkdir(parents=True)
    assert find_offline(cache, "some-team/alice-vit") == [str(cache / "some-team" / "alice-vit")]


@pytest.mark.parametrize(
    "given",
    ["c.pth", "./runs/c", "/runs/c.pth", "runs/c.pth", "runs/vit/c", "runs/x.safetensors", "~/c"],
)
def test_names_of_files_never_go_to_the_hub(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "alice_nnunet.sharing.weights.snapshot_download",
        lambda *a, **k: pytest.fail("asked the hub"),
    )
    assert find_weights(given) == str(tmp_path / os.path.normpath(given))


def test_the_hubs_own_errors_are_one_line(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"'a--b/c'|a--b/c is not a file") as caught:
        find_weights("a--b/c")  # a name that the hub does not allow
    assert "\n" not in str(caught.value)


def test_sha256_of_files_and_folders(tmp_path):
    path = write_checkpoint(tmp_path / "c.pth")
    assert weights_sha256(str(path)) == file_sha256(path)
    with pytest.raises(UserError, match=r"no model.safetensors"):
        weights_sha256(str(tmp_path))
    with pytest.raises(UserError, match="no checkpoint at"):
        weights_sha256(str(tmp_path / "none.pth"))


def test_a_results_folder_means_its_final_checkpoint(tmp_path):
    run = tmp_path / "runs" / "vit"
    run.mkdir(parents=True)
    write_checkpoint(run / "checkpoint_latest.pth")
    with pytest.raises(UserError, match=r"has not ended: .* give .*checkpoint_latest.pth to take"):
        find_weights(str(run))

    write_checkpoint(run / "checkpoint_final.pth")
    assert find_weights(str(run)) == str(run / "checkpoint_final.pth")
    assert load_pretrained(run).path == str(run / "checkpoint_final.pth")

    with pytest.raises(UserError, match=r"no checkpoint at .*There are: .*vit/checkpoint_final"):
        find_weights(str(run.parent))


def test_a_run_that_has_saved_nothing_is_no_exported_folder(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=f"no checkpoint at {tmp_path}/checkpoint_final.pth"):
        find_weights(str(tmp_path))


def test_an_unfinished_pretraining_is_told_by_its_step(tmp_path):
    checkpoint = pretraining_checkpoint()
    assert unfinished(checkpoint) is None  # of one that does not say how many steps it has

    checkpoint["config"]["iterations"] = 80
    torch.save(checkpoint, tmp_path / "c.pth")
    assert load_pretrained(tmp_path / "c.pth").unfinished == "step 7 of 80"
