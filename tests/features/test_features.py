"""alice-features: maps against MONAI's sliding window, their places in mm, colours, neighbours."""

import csv
import json
import os
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference
from safetensors.numpy import load_file

import alice_nnunet
from alice_nnunet.commands.features import main
from alice_nnunet.features import extract
from alice_nnunet.features.maps import blended, scan_features
from alice_nnunet.features.neighbours import nearest_scans
from alice_nnunet.features.pictures import fit_colours
from alice_nnunet.features.scans import PreparedScan
from tests.helpers.finetuning import write_case, write_checkpoint

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("weights") / "c.pth")


@pytest.fixture(scope="module")
def scans(tmp_path_factory, real_ct) -> Path:
    """One scan in two orientations, another one, a file that is none."""
    folder = tmp_path_factory.mktemp("scans")
    voxels = np.asarray(real_ct.dataobj)
    write_case(folder / "lps_0000.nii.gz", voxels[:37, :35, :21])
    write_case(folder / "pir.nii.gz", voxels[:37, :35, :21], "PIR")
    write_case(folder / "other.nii.gz", voxels[5:40, :30, 4:24])
    (folder / "broken.nii.gz").write_bytes(b"nothing")
    (folder / "notes.txt").write_text("no scan")
    return folder


@pytest.fixture(scope="module")
def features(tmp_path_factory, weights, scans) -> Path:
    out = tmp_path_factory.mktemp("out") / "features"
    main([str(scans), str(out), "-weights", str(weights), "--pca", "--nearest", "2"])
    return out


def test_maps_are_monais_sliding_window(weights):
    """MONAI slides over a volume of token numbers, and its network encodes the voxels there."""
    encoder, _ = alice_nnunet.load_encoder(weights)
    image = torch.rand(1, 1, 32, 48, 64, generator=torch.Generator().manual_seed(0))
    places = torch.stack(torch.meshgrid(*map(torch.arange, (2, 3, 4)), indexing="ij"))

    def encode(tokens: torch.Tensor) -> torch.Tensor:
        z, y, x = (16 * tokens[0, :, 0, 0, 0].int()).tolist()
        return encoder.features(image[..., z : z + 16, y : y + 32, x : x + 32])[-1]

    with torch.no_grad():
        expected = sliding_window_inference(
            places[None].float(), (1, 2, 2), 1, encode, overlap=0.5, mode="gaussian"
        )
        found = blended(encoder, image, (16, 32, 32), CPU)[-1]
    assert torch.allclose(found, expected[0], atol=1e-5)


@pytest.mark.parametrize("name", ["vit", "swin", "nnformer"])
def test_one_window_is_what_the_encoder_says(name, tmp_path):
    encoder, _ = alice_nnunet.load_encoder(write_checkpoint(tmp_path / "c.pth", encoder=name))
    image = torch.rand(1, 16, 32, 32, generator=torch.Generator().manual_seed(0))
    image[..., 16:] = 0  # air
    scan = PreparedScan(image, np.diag([-3.0, -3, 3, 1]), (3.0, 3.0, 3.0))
    found = scan_features(encoder, scan, CPU)

    with torch.no_grad():
        expected = encoder.features(image[None])
    for ours, theirs in zip(found.maps, expected, strict=True):
        assert torch.allclose(ours.values, theirs[0], atol=1e-5)
        assert ours.spacing == tuple(3 * n / m for n, m in zip((16, 32, 32), theirs.shape[2:]))

    half = expected[-1].shape[-1] // 2  # of the positions along x have content
    content = expected[-1][0, ..., : max(1, half)]
    assert torch.allclose(found.vector, content.flatten(1).mean(1), atol=1e-5)


def test_a_position_lies_in_the_middle_of_its_voxels(weights, scans):
    encoder, prepare = alice_nnunet.load_encoder(weights)
    scan = prepare.scan(scans / "other.nii.gz")
    of_stage = scan_features(encoder, scan, CPU).maps[-1]
    assert of_stage.values.shape[1:] == tuple(-(-n // 16) for n in scan.image.shape[1:])

    corners = nibabel.affines.apply_affine(scan.affine, [(16, 0, 0), (31, 15, 15)])
    found = nibabel.affines.apply_affine(of_stage.affine, (1, 0, 0))
    assert np.allclose(found, corners.mean(0))


def test_two_orientations_give_the_same_features_at_the_same_places(features):
    with np.load(features / "lps.npz") as lps, np.load(features / "pir.npz") as pir:
        assert lps.files == pir.files and "stage3" in lps.files
        for name in lps.files:
            assert np.allclose(lps[name], pir[name], atol=1e-4), name


def test_bad_files_are_listed_and_not_fatal(features, scans, weights, capsys):
    report = json.loads((features / "alice_features.json").read_text())
    assert set(report["scans"]) == {"lps", "pir", "other"}
    assert "cannot be read" in report["failed"]["broken"]

    with pytest.raises(SystemExit) as stopped:
        main(
            [str(scans / "broken.nii.gz"), str(features.parent / "none"), "-weights", str(weights)]
        )
    assert stopped.value.code == 2
    assert "none of 1 scans" in capsys.readouterr().err


def test_neighbours_and_pictures(features):
    with (features / "nearest.csv").open() as file:
        rows = {(row["scan"], row["rank"]): row for row in csv.DictReader(file)}
    assert rows["lps", "1"]["neighbour"] == "pir"
    assert float(rows["lps", "1"]["similarity"]) > 0.999

    page = (features / "nearest.html").read_text()
    assert page.count("<section>") == 3 and page.count("data:image/png;base64,") == 3
    assert {path.name for path in features.glob("*.png")} == {"lps.png", "pir.png", "other.png"}


def test_neighbours_are_the_largest_cosines():
    rng = np.random.default_rng(0)
    vectors = {f"s{i}": rng.normal(5, 1, 7) for i in range(6)}
    centred = np.stack(list(vectors.values())) - np.mean(list(vectors.values()), 0)
    lengths = np.linalg.norm(centred, axis=1)
    cosines = centred @ centred.T / np.outer(lengths, lengths)
    np.fill_diagonal(cosines, -2)

    for i, (name, found) in enumerate(nearest_scans(vectors, 3).items()):
        order = np.argsort(-cosines[i])[:3]
        assert name == f"s{i}" and [n.name for n in found] == [f"s{j}" for j in order]
        assert np.allclose([n.similarity for n in found], cosines[i, order])
    assert len(nearest_scans(vectors, 99)["s0"]) == 5


def test_colours_are_the_principal_components():
    rng = np.random.default_rng(0)
    tokens = rng.normal(0, 1, (200, 5)) * (9, 4, 2, 0.1, 0.1)
    coloured = fit_colours(tokens).of(tokens.T[:, :, None])[:, 0]
    for component in range(3):
        relation = np.corrcoef(coloured[:, component], tokens[:, component])[0, 1]
        assert abs(relation) > 0.95  # the ends are clipped


def test_safetensors_and_kept_stages(weights, scans, tmp_path, features):
    out = tmp_path / "out"
    options = ["-weights", str(weights), "-format", "safetensors", "-stages", "last"]
    main([str(scans / "other.nii.gz"), str(out), *options])
    found = load_file(out / "other.safetensors")
    with np.load(features / "other.npz") as expected:
        last = max(name for name in expected.files if name.startswith("stage"))[:6]
        maps = {last, f"{last}_affine", f"{last}_spacing"}
        assert set(found) == {"vector", "weights_sha256", *maps}
        for name, array in found.items():
            assert np.allclose(array, expected[name], atol=1e-3)
    assert not list(out.glob("*.partial"))


def test_scans_that_are_encoded_are_not_encoded_again(
    scans, features, weights, tmp_path, monkeypatch, capsys
):
    folder, out = tmp_path / "scans", tmp_path / "out"
    shutil.copytree(scans, folder)
    encoded = []
    encode = extract.scan_features

    def count(encoder, scan, device):
        encoded.append(scan)
        return encode(encoder, scan, device)

    monkeypatch.setattr(extract, "scan_features", count)
    words = [str(folder), str(out), "-weights", str(weights), "--pca", "--nearest", "2"]
    main(words)
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    assert len(encoded) == 3

    (out / "nearest.csv").unlink()
    main(words)
    assert len(encoded) == 3
    assert "3 scans encoded (3 of them by an earlier run), 1 left out" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first

    os.utime(folder / "other.nii.gz")  # it has changed since
    main(words)
    assert len(encoded) == 4
    main([*words[:4], "-stages", "last"])  # other maps
    assert len(encoded) == 7


def test_other_weights_do_not_write_into_the_folder(scans, features, tmp_path, capsys):
    other = write_checkpoint(tmp_path / "other.pth", seed=1)
    out = tmp_path / "copy"
    shutil.copytree(features, out)
    with pytest.raises(SystemExit):
        main([str(scans), str(out), "-weights", str(other)])
    assert "other weights" in capsys.readouterr().err
