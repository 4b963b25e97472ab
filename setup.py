from pathlib import Path

from setuptools import find_packages, setup


def packages() -> list[str]:
    """Every package of the library, and those of the two folders that lie beside it."""
    found = find_packages(include=["alice_nnunet", "alice_nnunet.*"])

    for folder in ("pretrain", "trainers"):
        inside = find_packages(include=[folder, f"{folder}.*"])
        found += [f"alice_nnunet.{package}" for package in inside]

    return found


if __name__ == "__main__":  # nnU-Net imports every module of the folders it is told to search
    here = Path(__file__).parent
    version = next(
        line.split('"')[1]
        for line in (here / "alice_nnunet/__init__.py").read_text().splitlines()
        if line.startswith("__version__")
    )
    setup(
        name="alice-nnunet",
        version=version,
        description="Pretrain nnU-Net encoders on unlabeled CT by anatomically aligned crops (Alice, ICCV 2023)",
        long_description=(here / "README.md").read_text(encoding="utf-8"),
        long_description_content_type="text/markdown",
        license="Apache-2.0",
        license_files=["LICENSE", "alice_nnunet/demo/volumes/NOTICE"],
        python_requires=">=3.10",
        packages=packages(),
        # trainers/ and pretrain/ lie beside the package; installed, they are inside it.
        package_dir={"alice_nnunet.trainers": "trainers", "alice_nnunet.pretrain": "pretrain"},
        package_data={
            "alice_nnunet": ["py.typed"],
            "alice_nnunet.demo": ["volumes/NOTICE", "volumes/*.nii.gz"],
            "alice_nnunet.submission": ["files/*"],
        },
        install_requires=[
            "nnunetv2>=2.8",  # nnUNet_extTrainer exists from 2.8.0
            "torch>=2.1.2",
            "monai>=1.6",  # the decoders' blocks, surface distances; 1.5's UNETR has other tensors than ours converts to
            "numpy",
            "scipy",
            "blosc2>=3",
            "isal",
            "batchgenerators",
            "acvl-utils",
            "dynamic-network-architectures",
            "SimpleITK",
            "nibabel",
            "matplotlib",
            "tqdm",
            "safetensors",
            "huggingface_hub",  # weights to share
            "packaging",  # the versions of a submission
            "tensorboard",  # scalars and pictures of a pretraining
            "setuptools",  # nnU-Net 2.8 imports distutils, gone from Python 3.12
        ],
        extras_require={"test": ["pytest", "pytest-xdist", "hypothesis"]},
        entry_points={
            "console_scripts": [
                "alice-env=alice_nnunet.commands.env:main",
                "alice-preprocess=alice_nnunet.pretrain.commands.preprocess:main",
                "alice-pretrain=alice_nnunet.pretrain.commands.pretrain:main",
                "alice-embed=alice_nnunet.pretrain.commands.embed:main",
                "alice-plan=alice_nnunet.commands.plan:main",
                "alice-evaluate=alice_nnunet.commands.evaluate:main",
                "alice-export=alice_nnunet.commands.export:main",
                "alice-submit=alice_nnunet.commands.submit:main",
                "alice-demo=alice_nnunet.commands.demo:main",
            ]
        },
    )
