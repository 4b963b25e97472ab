"""The channels of a dataset beside those that an encoder was pretrained on."""

from dataclasses import dataclass

from alice_nnunet.errors import UserError
from alice_nnunet.finetuning.pretrained import EncoderOrigin


@dataclass(frozen=True)
class ChannelMatch:
    """A channel of a dataset and the channel of the pretraining that it stands for.

    Attributes:
        index: of the channel in the dataset.
        scheme: nnU-Net's normalization of it, a class name.
        pretrained_scheme: the normalization of the pretraining's channel.
        pretrained_window: (low, high) in HU that was mapped to 0..1 there; None if there was none.
    """

    index: int
    scheme: str
    pretrained_scheme: str
    pretrained_window: list[float] | None

    @property
    def seen(self) -> bool:
        """Whether the pretraining saw this kind of image; not so a PET beside a CT."""
        return self.scheme == self.pretrained_scheme

    @property
    def window(self) -> list[float] | None:
        """The window that maps this channel to what the encoder knows; None: pass unchanged."""
        return self.pretrained_window if self.seen else None


def match_channels(origin: EncoderOrigin, schemes: list[str]) -> list[ChannelMatch]:
    """Match each channel with its own of the pretraining, or all with the pretraining's only one.

    Args:
        origin: of the encoder.
        schemes: nnU-Net's normalization of each channel.

    Raises:
        UserError: the pretraining has several channels, and not as many as the dataset.
    """
    pretrained = origin.data["channels"]
    if len(pretrained) == 1:
        pretrained = pretrained * len(schemes)

    if len(pretrained) != len(schemes):
        raise UserError(
            f"{origin.path} was pretrained on {len(pretrained)} channels and this dataset has "
            f"{len(schemes)}; use weights of 1 channel or of {len(schemes)}"
        )

    return [
        ChannelMatch(index, scheme, channel["scheme"], channel["window"])
        for index, (scheme, channel) in enumerate(zip(schemes, pretrained))
    ]
