"""The choices of the method that the paper leaves open or ablates, as plain values."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """Defaults are the project's; README.md says where and why they depart from the paper.

    Raises ValueError on construction where a value is out of range.
    """

    mask_ratio: float = 0.75  # hidden share of the online views u, r
    target_mask_ratio: float = 0.0  # hidden share of the target views w, v (Table 10)
    similarity: str = "cosine"  # l_s of Eqs. 2 and 5: cosine, infonce (Table 7) or dino (centering)
    temperature: float = 0.2  # of infonce
    predictor: bool = True  # on the online side of Eqs. 2 and 5; without it the equations collapse
    ema_casa: bool = True  # T from an EMA copy of CASA; False: one CASA for S and T, as printed
    center_teacher: bool = (
        True  # cosine: T less its running mean, so that a T equal everywhere matches nothing
    )
    head: str = "dino"  # phi and psi: dino or byol (BN MLP)
    head_hidden: int = 2048
    head_bottleneck: int = 256
    channels: int = 256  # C of H, Y, S and T
    decoder_width: int = 512
    decoder_depth: int = 4
    decoder_heads: int = 16
    weight_r: float = (
        10.0  # loss weights; 0 switches a term off (Table 11). The paper sums (1, 1, 1)
    )
    weight_dv: float = 1.0
    weight_st: float = 1.0
    online_flips: bool = False  # flip the online views too, not only the target's

    def __post_init__(self):
        for name in ("mask_ratio", "target_mask_ratio"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        for name, allowed in (
            ("similarity", ("cosine", "infonce", "dino")),
            ("head", ("dino", "byol")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )
        weights = (self.weight_r, self.weight_dv, self.weight_st)
        if min(weights) < 0 or max(weights) == 0:
            raise ValueError(
                f"weight_r, weight_dv and weight_st must not be negative nor all zero, got {weights}"
            )
        if self.weight_r > 0 and self.mask_ratio == 0:
            raise ValueError(
                "mask_ratio 0 leaves nothing to reconstruct: set weight_r=0 too, or hide something"
            )
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        for name in (
            "head_hidden",
            "head_bottleneck",
            "channels",
            "decoder_width",
            "decoder_depth",
            "decoder_heads",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.decoder_width % self.decoder_heads:
            raise ValueError(
                f"decoder_width must be a multiple of decoder_heads, got {self.decoder_width} and {self.decoder_heads}"
            )

    def centers(self, term: str) -> bool:
        """Whether the target side of a term, dv or st, is taken less its running mean."""
        return self.similarity == "dino" or (
            self.similarity == "cosine" and self.center_teacher and term == "st"
        )
