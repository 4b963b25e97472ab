"""load_encoder: the encoder of a checkpoint or folder, and scans prepared as in its pretraining."""

import textwrap
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

import alice_nnunet
from alice_nnunet.datasets.raw_dataset import RawDataset
from alice_nnunet.errors import UserError
from alice_nnunet.model.encoders.registry import build_encoder
from alice_nnunet.pretrain.datasets.pretrain_plans import make_plans
from tests.helpers.finetuning import SPACING, pretraining_checkpoint, write_case

README = Path(__file__).parents[2] / "README.md"


def save(path: Path, **arguments) -> dict:
    checkpoint = pretraining_checkpoint(**arguments)
    torch.save(checkpoint, path)
    return checkpoint


@pytest.fixture(scope="module")
def scan(tmp_path_factory, real_ct) -> Path:
    """A real CT of odd sizes, with voxels of 2.5 x 3.5 x 4 mm (x, y, z)."""
    voxels = np.asarray(real_ct.dataobj)[:37, :35, :29]
    path = tmp_path_factory.mktemp("scan") / "scan.nii.gz"
    write_case(path, voxels, spacing=(4.0, 3.5, 2.5))
    return path


def readme_code() -> str:
    """The lines of the README from the import of load_encoder to the features."""
    lines = README.read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if "import load_encoder" in line)
    end = next(i for i, line in enumerate(lines) if "features = encoder.features" in line)
    return textwrap.dedent("\n".join(lines[start : end + 1]))


@pytest.mark.parametrize("name", ["vit", "swin", "nnformer"])
def test_the_readme_gives_the_features_of_the_checkpoints_encoder(
    name, scan, tmp_path, monkeypatch
):
    checkpoint = save(tmp_path / "c.pth", encoder=name)
    monkeypatch.chdir(scan.parent)
    found: dict = {"path": tmp_path / "c.pth"}
    with torch.no_grad():
        exec(readme_code(), found)

    encoder = build_encoder(name, checkpoint["config"]["encoder_arguments"]).eval()
    for key, tensor in checkpoint["network_weights"].items():
        if not key.endswith("attention.bias"):  # offsets that no crop had are filled
            assert torch.equal(found["encoder"].state_dict()[key], tensor), key

    prepared = found["prepare"]("scan.nii.gz")
    assert all(n % u == 0 for n, u in zip(prepared.shape[2:], encoder.unit))
    coarse = found["features"][-1]
    assert coarse.shape == (
        1,
        encoder.width,
        *(n // u for n, u in zip(prepared.shape[2:], encoder.unit)),
    )
    assert torch.isfinite(coarse).all() and not found["encoder"].training

    encoder.load_state_dict(found["encoder"].state_dict())
    with torch.no_grad():
        for ours, expected in zip(found["features"], encoder.features(prepared), strict=True):
            assert torch.equal(ours, expected)


def test_a_scan_is_prepared_as_alice_preprocess_does(scan, tmp_path):
    save(tmp_path / "c.pth")
    _, prepare = alice_nnunet.load_encoder(tmp_path / "c.pth")

    content = {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
    raw = RawDataset("Dataset022_X", content, {"scan": [scan]}, {})
    plans = make_plans(raw, tuple(SPACING), (16, 32, 32))
    manager = PlansManager(plans)
    image, properties = NibabelIOWithReorient().read_images([str(scan)])
    expected, *_ = DefaultPreprocessor(verbose=False).run_case_npy(
        image,
        None,
        properties,
        manager,
        manager.get_configuration("3d_fullres"),
        content,
    )

    found = prepare.scan(scan).image.numpy()
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-5
    assert np.array_equal(prepare(scan)[0, 0][tuple(slice(n) for n in found.shape[1:])], found[0])


def test_a_scan_in_another_orientation_is_the_same_at_the_same_place(scan, tmp_path, real_ct):
    save(tmp_path / "c.pth")
    _, prepare = alice_nnunet.load_encoder(tmp_path / "c.pth")
    expected = prepare.scan(scan)

    for codes in ("RAS", "PIR", "SLA"):
        voxels = np.asarray(real_ct.dataobj)[:37, :35, :29]
        write_case(tmp_path / f"{codes}.nii.gz", voxels, codes, (4.0, 3.5, 2.5))
        found = prepare.scan(tmp_path / f"{codes}.nii.gz")
        assert torch.equal(found.image, expected.image)
        assert np.allclose(found.affine, expected.affine)


def test_the_affine_covers_the_box_of_the_file(scan, tmp_path):
    save(tmp_path / "c.pth")
    _, prepare = alice_nnunet.load_encoder(tmp_path / "c.pth")
    prepared = prepare.scan(scan)

    file = nibabel.as_closest_canonical(nibabel.load(scan))
    for faces in (lambda size: (-0.5, -0.5, -0.5), lambda size: [n - 0.5 for n in size]):
        ours = nibabel.affines.apply_affine(prepared.affine, faces(prepared.image.shape[:0:-1]))
        files = nibabel.affines.apply_affine(file.affine, faces(file.shape))
        assert np.allclose(ours, files, atol=1e-3)


def test_tensors_that_do_not_fit_are_named(tmp_path):
    checkpoint = pretraining_checkpoint()
    del checkpoint["network_weights"]["norm.bias"]
    torch.save(checkpoint, tmp_path / "c.pth")
    with pytest.raises(UserError, match=r"norm\.bias is missing"):
        alice_nnunet.load_encoder(tmp_path / "c.pth")


def test_images_that_cannot_be_used_are_refused(scan, tmp_path):
    save(tmp_path / "c.pth")
    _, prepare = alice_nnunet.load_encoder(tmp_path / "c.pth")
    write_case(tmp_path / "air.nii.gz", np.full((30, 30, 30), -1000, np.int16))
    with pytest.raises(ValueError, match="only air"):
        prepare(tmp_path / "air.nii.gz")
    with pytest.raises(ValueError, match="1 channels"):
        prepare(scan, scan)
    with pytest.raises(AttributeError, match="nothing"):
        _ = alice_nnunet.nothing
