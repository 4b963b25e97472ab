"""The methods of pretraining by name: `alice-pretrain -method NAME`.

This module imports no torch: the commands list the methods in their help. A new method is a page in
`alice_nnunet.model.methods` and an entry here.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from alice_nnunet.model.pretraining.settings import MethodSettings

if TYPE_CHECKING:
    from alice_nnunet.model.encoders.base import Encoder
    from alice_nnunet.model.pretraining.method import PretrainingMethod

PAGES = "alice_nnunet.model.methods"
DEFAULT = "alice"


@dataclass(frozen=True)
class Entry:
    """Where a method is.

    Attributes:
        title: as its authors call it, with the reference.
        method: class, in the page that has the method's name.
        settings: class of its settings.
        settings_module: where that class is, if not on the page.
    """

    title: str
    method: str
    settings: str
    settings_module: str | None = None


METHODS = {
    "alice": Entry(
        "Alice (Jiang et al., ICCV 2023)",
        "Alice",
        "AliceSettings",
        "alice_nnunet.model.pretraining.settings",
    ),
    "byol": Entry("BYOL (Grill et al., NeurIPS 2020)", "BYOL", "BYOLSettings"),
    "dino": Entry("DINO (Caron et al., ICCV 2021)", "DINO", "DINOSettings"),
    "cmae": Entry("CMAE (Huang et al., TPAMI 2023)", "CMAE", "CMAESettings"),
    "ibot": Entry("iBOT (Zhou et al., ICLR 2022)", "IBOT", "IBOTSettings"),
    "mae": Entry("MAE (He et al., CVPR 2022)", "MAE", "MAESettings"),
    "moco_v3": Entry("MoCo v3 (Chen et al., ICCV 2021)", "MoCoV3", "MoCoSettings"),
    "semmae": Entry("SemMAE (Li et al., NeurIPS 2022)", "SemMAE", "SemMAESettings"),
    "sim": Entry("Siamese image modeling (Tao et al., CVPR 2023)", "SIM", "SIMSettings"),
    "tang": Entry("Swin UNETR's pretraining (Tang et al., CVPR 2022)", "Tang", "TangSettings"),
}


def settings_class(name: str) -> type[MethodSettings]:
    """The class of a method's settings."""
    entry = METHODS[name]
    module = import_module(entry.settings_module or f"{PAGES}.{name}")
    return getattr(module, entry.settings)


def build_method(
    name: str, encoder: Encoder, in_channels: int, settings: MethodSettings
) -> PretrainingMethod:
    """A method with random weights around an encoder."""
    return getattr(import_module(f"{PAGES}.{name}"), METHODS[name].method)(
        encoder, in_channels, settings
    )
