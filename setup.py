from pathlib import Path

from setuptools import find_packages, setup

PAPER = (
    "https://openaccess.thecvf.com/content/ICCV2023/html/Jiang_Anatomical_Invariance_Modeling_and_"
    "Semantic_Alignment_for_Self-supervised_Learning_in_ICCV_2023_paper.html"
)

# Lower bounds are what the packages below require of each other, or what is said beside them.
DEPENDENCIES = [
    "nnunetv2>=2.8",  # nnUNet_extTrainer exists from 2.8.0
    "torch>=2.8",  # of monai 1.6
    "monai>=1.6",  # 1.5's UNETR has other tensors than the ones that ours converts to
    "numpy>=1.26",
    "scipy>=1.11.1",
    "scikit-learn>=1.3",  # nnU-Net requires it without a bound; the organ probe's ridge classifier
    "blosc2>=3.3.2",
    "isal>=1.6",
    "batchgenerators>=0.25.1",
    "batchgeneratorsv2>=0.3.2",
    "SimpleITK>=2.3",
    "nibabel>=5.2",
    "matplotlib>=3.8",
    "tqdm>=4.66",
    "filelock>=3.13",
    "safetensors>=0.4.3",
    "huggingface_hub>=0.30",  # weights to share
    "packaging>=23.2",  # the versions of a submission
    # Not imported here by name:
    "acvl-utils>=0.2.6",  # nnU-Net's resampling and cropping need it
    "dynamic-network-architectures>=0.4.4",  # nnU-Net's networks need it
    "tensorboard>=2.17",  # torch.utils.tensorboard needs it: scalars and pictures of a pretraining
    "setuptools>=70",  # nnU-Net 2.8 imports distutils, which Python 3.12 no longer has
]

TEST_DEPENDENCIES = [
    "pytest",
    "pytest-xdist>=3.7",  # --no-loadscope-reorder
    "hypothesis",
    "scikit-image",
    "ruff",
    "mypy",
    "codespell",
]

# Independent implementations, which some tests compare with where they are installed
COMPARED_WITH = ["lightly"]

# alice-NAME -> module of its main().
COMMANDS = {
    "alice-env": "alice_nnunet.commands.env",
    "alice-check": "alice_nnunet.commands.check",
    "alice-preprocess": "alice_nnunet.pretrain.commands.preprocess",
    "alice-embed": "alice_nnunet.pretrain.commands.embed",
    "alice-pretrain": "alice_nnunet.pretrain.commands.pretrain",
    "alice-plan": "alice_nnunet.commands.plan",
    "alice-evaluate": "alice_nnunet.commands.evaluate",
    "alice-classify": "alice_nnunet.commands.classify",
    "alice-features": "alice_nnunet.commands.features",
    "alice-export": "alice_nnunet.commands.export",
    "alice-submit": "alice_nnunet.commands.submit",
    "alice-demo": "alice_nnunet.commands.demo",
}

CLASSIFIERS = [
    "Development Status :: 4 - Beta",
    "Environment :: Console",
    "Intended Audience :: Science/Research",
    "Intended Audience :: Healthcare Industry",
    "Operating System :: POSIX :: Linux",
    "Programming Language :: Python :: 3",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
    "Topic :: Scientific/Engineering :: Image Recognition",
    "Topic :: Scientific/Engineering :: Medical Science Apps.",
    "Typing :: Typed",
]


def packages() -> list[str]:
    """Every package of the library, and those of the two folders that lie beside it."""
    found = find_packages(include=["alice_nnunet", "alice_nnunet.*"])

    for folder in ("pretrain", "trainers"):
        inside = find_packages(include=[folder, f"{folder}.*"])
        found += [f"alice_nnunet.{package}" for package in inside]

    return found


def version(package: Path) -> str:
    """The value of __version__ in a package, which is not imported."""
    for line in (package / "__init__.py").read_text(encoding="utf-8").splitlines():
        if line.startswith("__version__"):
            return line.split('"')[1]
    raise ValueError(f"no __version__ in {package}")


if __name__ == "__main__":  # nnU-Net imports every module of the folders it is told to search
    here = Path(__file__).parent
    setup(
        name="alice-nnunet",
        version=version(here / "alice_nnunet"),
        description=(
            "Pretrain nnU-Net encoders on unlabeled CT by anatomically aligned crops "
            "(Alice, ICCV 2023)"
        ),
        long_description=(here / "README.md").read_text(encoding="utf-8"),
        long_description_content_type="text/markdown",
        license="Apache-2.0",
        license_files=["LICENSE", "alice_nnunet/demo/volumes/NOTICE"],
        project_urls={"Paper": PAPER, "nnU-Net": "https://github.com/MIC-DKFZ/nnUNet"},
        classifiers=CLASSIFIERS,
        keywords=["CT", "segmentation", "self-supervised learning", "nnU-Net", "pretraining"],
        python_requires=">=3.10",
        packages=packages(),
        # trainers/ and pretrain/ lie beside the package; installed, they are inside it.
        package_dir={"alice_nnunet.trainers": "trainers", "alice_nnunet.pretrain": "pretrain"},
        package_data={
            "alice_nnunet": ["py.typed"],
            "alice_nnunet.demo": ["volumes/NOTICE", "volumes/*.nii.gz", "volumes/*/*.nii.gz"],
            "alice_nnunet.submission": ["files/*"],
        },
        install_requires=DEPENDENCIES,
        extras_require={"test": TEST_DEPENDENCIES, "compare": COMPARED_WITH},
        entry_points={
            "console_scripts": [f"{name}={module}:main" for name, module in COMMANDS.items()]
        },
    )
