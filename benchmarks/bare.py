"""Import this checkout on a machine that has torch and numpy, and few of the other packages.

Only what needs a package then fails, with the package's name. To import this module is enough, also
in the processes that multiprocessing starts.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

REPOSITORY = Path(__file__).resolve().parents[1]

# What this package imports beside torch, numpy and what torch itself requires.
PACKAGES = (
    "SimpleITK",
    "acvl_utils",
    "batchgenerators",
    "batchgeneratorsv2",
    "blosc2",
    "dynamic_network_architectures",
    "huggingface_hub",
    "isal",
    "matplotlib",
    "monai",
    "nibabel",
    "nnunetv2",
    "packaging",
    "safetensors",
    "scipy",
    "sklearn",
    "tensorboard",
    "tqdm",
)


class AbsentType(type):
    """The type of Absent, whose attributes and items are Absent again."""

    def __getattr__(cls, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return absent(cls.package)

    def __getitem__(cls, key):
        return absent(cls.package)

    def __call__(cls, *arguments, **keywords):
        raise ModuleNotFoundError(f"{cls.package} is not installed", name=cls.package)


class Absent(metaclass=AbsentType):
    """Stands for whatever is imported of a package that is absent. To call it fails."""

    package = ""


def absent(package: str) -> type[Absent]:
    """What stands for everything in a package."""
    return AbsentType("Absent", (Absent,), {"package": package})


class AbsentModule(ModuleType):
    """A module of a package that is absent."""

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return absent(self.__name__)


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a module that is absent, as an AbsentModule.

    Args:
        packages: that are absent.
    """

    def __init__(self, packages: list[str]):
        self.packages = packages

    def find_spec(self, name, path=None, target=None):
        of_tensorboard = name == "torch.utils.tensorboard" and "tensorboard" in self.packages
        if of_tensorboard or name.partition(".")[0] in self.packages:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return AbsentModule(spec.name)

    def exec_module(self, module):
        pass


def use_checkout() -> list[str]:
    """Make the packages of this checkout importable, whatever is installed.

    Returns:
        The packages that are absent.
    """
    if str(REPOSITORY) not in sys.path:
        sys.path.insert(0, str(REPOSITORY))

    packages = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if packages:
        sys.meta_path.insert(0, StandIns(packages))

    # pretrain/ lies beside the package; installed, it is inside it.
    package = importlib.import_module("alice_nnunet")
    if importlib.util.find_spec("alice_nnunet.pretrain") is None:
        package.__path__.append(str(REPOSITORY))
    return packages


ABSENT = tuple(use_checkout())
