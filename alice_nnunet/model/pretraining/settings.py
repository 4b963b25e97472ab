"""The settings of a method of pretraining, as plain values. This module imports no torch."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from alice_nnunet.settings.ranges import require_block, require_one_of, require_positive

SIZES = (
    "head_hidden",
    "head_bottleneck",
    "channels",
    "decoder_width",
    "decoder_depth",
    "decoder_heads",
    "anatomy_channels",
)


def block_refusal(block: tuple[int, int, int], grid: tuple[int, int, int]) -> str | None:
    """Why units cannot be hidden in blocks of so many along (z, y, x), or None."""
    if all(units % edge == 0 for units, edge in zip(grid, block)):
        return None
    return f"crops have {grid} units (z, y, x), which is no whole number of mask_block {block}"


@dataclass(frozen=True)
class MethodSettings:
    """What the loop asks the settings of any method. Each method has a subclass with its fields.

    The names of the fields are what `--set` takes. None may be a field of `PretrainConfig` or an
    argument of an encoder.

    Attributes:
        run: fields of `PretrainConfig` that the method changes, such as the momentum of its target.
    """

    run: ClassVar[dict[str, Any]] = {}

    @classmethod
    def completed(cls, given: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
        """The fields that are given, and those that follow from the settings of the run.

        Args:
            given: fields that differ from their defaults.
            run: fields of `PretrainConfig` that do.
        """
        return given

    @classmethod
    def refusal(cls, encoder: str, arguments: dict[str, Any]) -> str | None:
        """Why the method cannot train an encoder, or None if it can.

        Args:
            encoder: vit, swin or nnformer.
            arguments: of the encoder, such as crop_size.
        """
        return None

    def spacing_refusal(self, spacing: tuple[float, float, float]) -> str | None:
        """Why the method cannot learn from volumes of a spacing in mm (z, y, x), or None."""
        return None

    def grid_refusal(self, grid: tuple[int, int, int]) -> str | None:
        """Why the method cannot learn from crops of so many units along (z, y, x), or None."""
        return None

    @property
    def vector_channels(self) -> int | None:
        """Channels of the matcher's vectors that the method learns from; None if it needs none."""
        return None

    def with_vector_channels(self, channels: int) -> "MethodSettings":
        """The same settings for vectors with another number of channels."""
        return self

    def without_vectors(self) -> "MethodSettings":
        """The same settings without the term that needs the matcher's vectors."""
        return self

    @property
    def compares_all_pairs(self) -> str | None:
        """What compares every pair of a batch with all others, so that a batch is one part."""
        return None


@dataclass(frozen=True)
class AliceSettings(MethodSettings):
    """The settings of Alice.

    The defaults are the project's; docs/explanation/differences-from-the-paper.md says where and
    why they depart from the paper.

    Raises:
        ValueError: a value is out of range.
    """

    # Views
    mask_ratio: float = 0.75  # hidden share of the online views u, r
    mask_block: tuple[int, int, int] = (1, 1, 1)  # units hidden together, along (z, y, x)
    target_mask_ratio: float = 0.0  # hidden share of the target views w, v (Table 10)
    reconstruct: str = "content"  # tokens of l_r (Eq. 1): content (of more than one value) or all
    # What l_r brings to mean 0 and variance 1 in each token: channel (each for itself), token (all
    # channels together) or none (raw values).
    normalise: str = "channel"  # targets of l_r: each channel, the whole token, or none

    # Similarity l_s of Eqs. 2 and 5
    similarity: str = "cosine"  # cosine, infonce (Table 7) or dino (with centering)
    temperature: float = 0.1  # of infonce, and of l_dv by place
    predictor: bool = True  # on the online side; without it the equations collapse
    ema_casa: bool = True  # T from an EMA copy of CASA; False: one CASA for S and T, as printed
    # With cosine, subtract the running mean from T: a T that is equal everywhere matches nothing.
    center_teacher: bool = True

    # What l_dv compares. place: each visible token of the encoder with its place in the other crop,
    # by infonce among the same place of other crops. crop: means over crops (Eq. 2).
    dv_by: str = "place"  # what l_dv compares: place, token by token, or crop (Eq. 2)
    memory: int = 64  # with dv_by place: crops of earlier steps to tell the matched one from

    # Networks
    head: str = "dino"  # phi and psi: dino or byol (MLP with batch norm)
    head_hidden: int = 2048  # width of the hidden layers of phi and psi
    head_bottleneck: int = 256  # width of their last hidden layer, l2-normalised (dino)
    channels: int = 256  # width C of H, Y, S and T
    decoder_width: int = 512  # width of a token in the online decoder
    decoder_depth: int = 4  # its transformer blocks
    decoder_heads: int = 16  # attention heads of each block

    # Weights of the losses; 0 switches a term off (Table 11) and computes nothing for it. The paper
    # sums l_r, l_dv and l_st with weights (1, 1, 1).
    weight_r: float = 10.0  # of l_r, reconstruction (Eq. 1)
    weight_dv: float = 1.0  # of l_dv, between two people (Eq. 2)
    weight_st: float = 0.0  # of l_st, token by token (Eq. 5)
    # Of l_an, not in the paper: visible tokens name the matcher's vector of their place in the
    # other person. 0 where it is not given and weight_dv is 0 or the matcher has no vectors.
    weight_an: float = 2.0
    anatomy_channels: int = 32  # of the matcher's vectors; the index says where it is not given

    online_intensity: float = 0.0  # light change of online views: factor 1 +- it, shift +- it
    online_part: float = 1.0  # smallest edge of what online views show, over the crop's
    online_flips: bool = False  # flip the online views too, not only the target's
    target_flips: bool = False  # flip the target views: to l_dv a left kidney is then a right one
    flip_axes: str = "zyx"  # axes along which views are flipped, where they are

    def __post_init__(self):
        for name in ("mask_ratio", "target_mask_ratio"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")

        require_block(self, "mask_block")
        require_one_of(self, "reconstruct", ("content", "all"))
        require_one_of(self, "normalise", ("channel", "token", "none"))
        require_one_of(self, "similarity", ("cosine", "infonce", "dino"))
        require_one_of(self, "head", ("dino", "byol"))
        require_one_of(self, "dv_by", ("crop", "place"))
        require_positive(self, "temperature", *SIZES)

        weights = (self.weight_r, self.weight_dv, self.weight_st, self.weight_an)
        if min(weights) < 0 or max(weights) == 0:
            raise ValueError(
                "weight_r, weight_dv, weight_st and weight_an must be at least 0, and one of them "
                f"positive, got {weights}"
            )
        if self.weight_r > 0 and self.mask_ratio == 0:
            raise ValueError(
                "mask_ratio 0 leaves nothing to reconstruct: set weight_r=0 as well, "
                "or a larger mask_ratio"
            )

        if not 0 <= self.online_intensity < 1:
            raise ValueError(f"online_intensity must be in [0, 1), got {self.online_intensity}")
        if not 0 < self.online_part <= 1:
            raise ValueError(f"online_part must be in (0, 1], got {self.online_part}")
        if not self.flip_axes or set(self.flip_axes) - set("zyx"):
            raise ValueError(f"flip_axes must be some of z, y and x, got {self.flip_axes!r}")
        if self.memory < 0:
            raise ValueError(f"memory must be at least 0, got {self.memory}")
        if self.compares_by_place and (self.target_mask_ratio or self.online_flips):
            raise ValueError(
                "dv_by place needs whole target views and online views that are not flipped: set "
                "target_mask_ratio=0 and online_flips=false, or dv_by=crop"
            )
        if self.weight_an > 0 and self.online_flips:
            raise ValueError(
                "weight_an needs online views that are not flipped: set online_flips=false or "
                "weight_an=0"
            )

        if self.decoder_width % self.decoder_heads:
            raise ValueError(
                "decoder_width must be a multiple of decoder_heads, "
                f"got {self.decoder_width} and {self.decoder_heads}"
            )

    @classmethod
    def completed(cls, given: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
        """Tokens name the matcher's vectors (weight_an) only where that is asked for or sensible.

        Only matcher embedding has vectors, and weight_dv=0 asks for a run that compares no people:
        with weight_st=0, for reconstruction alone.
        """
        has_vectors = run.get("matcher", "embedding") == "embedding"
        if has_vectors and given.get("weight_dv", 1) > 0:
            return given
        return {"weight_an": 0.0, **given}

    def grid_refusal(self, grid: tuple[int, int, int]) -> str | None:
        return block_refusal(self.mask_block, grid)

    @property
    def vector_channels(self) -> int | None:
        return self.anatomy_channels if self.weight_an > 0 else None

    def with_vector_channels(self, channels: int) -> "MethodSettings":
        return replace(self, anatomy_channels=channels)

    def without_vectors(self) -> "MethodSettings":
        return replace(self, weight_an=0.0)

    @property
    def compares_all_pairs(self) -> str | None:
        if self.similarity == "infonce" or self.head == "byol":
            return "similarity infonce or head byol"
        return None

    @property
    def compares_by_place(self) -> bool:
        """Whether l_dv is computed, token by token."""
        return self.weight_dv > 0 and self.dv_by == "place"

    @property
    def compares(self) -> bool:
        """Whether a term compares the branches. Without one, nothing needs the target branch."""
        return self.weight_dv > 0 or self.weight_st > 0

    @property
    def compares_crops(self) -> bool:
        """Whether a term compares what the online decoder makes of crops, H."""
        return self.weight_st > 0 or (self.weight_dv > 0 and self.dv_by == "crop")

    def predicts(self, term: str) -> bool:
        """Whether the online side of a term (dv or st) goes through a predictor.

        InfoNCE by place needs none against collapse.
        """
        return self.predictor and not (term == "dv" and self.dv_by == "place")

    def centers(self, term: str) -> bool:
        """Whether the target side of a term (dv, st or an) has its running mean subtracted."""
        if term == "an":
            return self.weight_an > 0
        if term == "dv" and self.dv_by == "place":
            return self.weight_dv > 0
        if self.similarity == "dino":
            return True
        return self.similarity == "cosine" and self.center_teacher and term == "st"
