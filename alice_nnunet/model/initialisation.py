"""How weights start. Use with `module.apply(...)`."""

from torch import nn


def truncated_normal(module: nn.Module) -> None:
    """Start linear layers as ViT and UNETR do: truncated normal of 0.02, zero biases.

    A convolution (the patch projection) starts as a linear layer with Xavier's weights (MAE).
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv3d):
        nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))


def xavier_uniform(module: nn.Module) -> None:
    """Start linear layers and convolutions with Xavier's uniform weights (MAE), linear biases at 0.

    Narrow layers need it. In the first stages of Swin and nnFormer, weights of 0.02 (right for a
    width of 768) leave all tokens nearly alike. In the heads of a narrow network, torch's default
    biases drown the features, and every token gets the same output before the first step.

    Biases of convolutions keep torch's default. Air is 0, and where a token of air stays 0, each
    layer norm multiplies its gradient by 300.
    """
    if isinstance(module, (nn.Linear, nn.Conv3d)):
        nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
