"""What alice-embed reports of its scans: on real CT, one of them twice and one cut short."""

import json

import nibabel
import numpy as np
import pytest
import torch

from alice_nnunet.checks.findings import Decisions
from alice_nnunet.data.partners import Partners
from alice_nnunet.model.presets import CROPS
from alice_nnunet.pretrain.datasets.preprocessing import preprocess_dataset
from alice_nnunet.pretrain.embedding import coverage
from alice_nnunet.pretrain.embedding.config import embed_config
from alice_nnunet.pretrain.embedding.indexing import index_volumes
from alice_nnunet.pretrain.embedding.job import embed

SETTINGS = ["iterations=4", "batch_size=2", "points=200", "voxel=8", "step=12", "save_every=4"]
SETTINGS += ["patch_size=16,32,32", "crop_size=20,40,40", "validation_share=0"]


CASES = ["a", "again", "coverage", "mirrored", "slab", "turned"]


@pytest.fixture(scope="module")
def anatomy(tmp_path_factory, shipped_ct):
    """The folder of an index of two people, a copy of one, and 20 mm of the other.

    One of them is there mirrored, and upside down, too. One case has the name of another file in
    the folder.
    """
    root = tmp_path_factory.mktemp("nnunet")
    images = root / "raw" / "Dataset033_Cover" / "imagesTr"
    images.mkdir(parents=True)
    description = {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
    (images.parent / "dataset.json").write_text(json.dumps(description))

    for case, source in (
        ("a", "crlm1004"),
        ("again", "crlm1004"),
        ("coverage", "cptacpda_c3l00189"),
    ):
        (images / f"{case}_0000.nii.gz").symlink_to(shipped_ct[source])
    whole = nibabel.load(shipped_ct["cptacpda_c3l00189"])
    height = round(20 / whole.header.get_zooms()[2])
    nibabel.save(whole.slicer[:, :, :height], images / "slab_0000.nii.gz")

    scan = nibabel.load(shipped_ct["crlm1004"])
    voxels = np.asarray(scan.dataobj)
    for case, axes in (("mirrored", (0,)), ("turned", (1, 2))):
        flipped = nibabel.Nifti1Image(np.flip(voxels, axes), scan.affine)
        nibabel.save(flipped, images / f"{case}_0000.nii.gz")

    with pytest.MonkeyPatch.context() as patch:
        for name in ("raw", "preprocessed", "results"):
            patch.setenv(f"nnUNet_{name}", str(root / name))
        crops = CROPS["tiny"]
        preprocess_dataset(
            33,
            1,
            spacing=crops.spacing,
            patch_size=crops.size,
            decisions=Decisions(accept=frozenset({"fragment"})),
        )
        embed(embed_config("33", "tiny", SETTINGS), "cpu", 1)
        yield root / "preprocessed" / "Dataset033_Cover" / "AlicePretrainPlans_anatomy"


def test_everything_that_is_promised_is_there(anatomy):
    report = json.loads((anatomy / "coverage.json").read_text())
    table = Partners.load(anatomy / "partners.npz")
    assert list(report["scans"]) == table.cases.tolist() == CASES
    assert report["same_content"] == [["a", "again"]]
    assert report["threshold"] == pytest.approx(table.threshold, abs=1e-4)
    assert (anatomy / "coverage.png").stat().st_size > 10_000

    slab = report["scans"]["slab"]
    assert slab["body_mm"][0] == pytest.approx(20, abs=5)
    for case, reason in report["without_partner"].items():
        assert report["scans"][case]["partners"] == 0
        assert ("fragment" in reason) == (case == "slab")


def test_a_scan_that_lies_another_way_round_matches_none_as_if_it_did_not(anatomy):
    report = json.loads((anatomy / "coverage.json").read_text())
    mirrored = {case for case, entry in report["scans"].items() if entry["mirrored"]}
    turned = {case for case, entry in report["scans"].items() if entry["upside_down"]}
    assert mirrored == {"mirrored"} and turned == {"turned"}
    assert "left and right exchanged" in report["without_partner"]["mirrored"]
    assert "upside down" in report["without_partner"]["turned"]
    assert {"a", "coverage"} & set(report["without_partner"]) == set()


def test_it_is_made_once_and_again_where_the_index_has_changed(anatomy, monkeypatch):
    volumes = anatomy.parent / "AlicePretrainPlans_3d_fullres"
    before = (anatomy / "partners.npz").read_bytes()
    made = []
    compute = coverage.compute_coverage
    monkeypatch.setattr(
        coverage, "compute_coverage", lambda *words: made.append(words) or compute(*words)
    )

    index_volumes(volumes, anatomy, torch.device("cpu"))
    assert not made
    (anatomy / "partners.npz").unlink()
    index_volumes(volumes, anatomy, torch.device("cpu"))
    assert len(made) == 1
    again = Partners.load(anatomy / "partners.npz")
    (anatomy / "before.npz").write_bytes(before)
    for name, value in vars(Partners.load(anatomy / "before.npz")).items():
        assert np.array_equal(getattr(again, name), value, equal_nan=name == "positions")

    coverage.update_coverage(volumes, anatomy, ["a", "coverage", "slab"])
    assert len(made) == 2


@pytest.mark.parametrize(
    ("more", "has_copy", "reason"),
    [
        ({}, False, "no other scan does"),
        ({}, True, "another case holds the same scan, which it is never paired with"),
        ({"mirrored": True}, True, "left and right exchanged"),
    ],
)
def test_a_copy_is_not_called_a_part_that_no_other_scan_shows(more, has_copy, reason):
    entry = {"upside_down": False, "mirrored": False, **more}
    assert reason in coverage.why_unmatched([300.0, 300.0, 300.0], entry, has_copy)
