"""The method on one page (Alice, Sec. 3).

Shapes: B pairs, N tokens of a crop, V visible ones, E width of the encoder, C width of the projections.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from alice_nnunet.model.losses import (
    cosine_loss,
    dino_loss,
    info_nce_loss,
    moments,
    reconstruction_loss,
    spread,
)
from alice_nnunet.model.casa import CASA
from alice_nnunet.model.decoder import Decoder
from alice_nnunet.model.heads import BatchNormMLP, DinoHead, Predictor, init_head
from alice_nnunet.model.method import Method
from alice_nnunet.ranks import gather_rows, rank


@dataclass
class Views:
    """One crop of each pair, Q or K, as the two branches see it."""

    online: Tensor  # (B, C, D, H, W): u of Q or r of K; the branch sees only the tokens in keep
    keep: Tensor  # (B, V)
    masked: Tensor  # (B, N), True where hidden: the complement of keep
    target: Tensor  # (B, C, D, H, W): w of Q or v of K, strongly augmented, intact
    target_keep: Tensor | None  # (B, V'), or None for all tokens

    def rows(self, part: slice) -> "Views":
        """Those of some of the crops."""
        target_keep = None if self.target_keep is None else self.target_keep[part]
        return Views(
            self.online[part], self.keep[part], self.masked[part], self.target[part], target_keep
        )


@dataclass
class Branches:
    """One crop of each pair, Q or K, after both branches."""

    visible: Tensor  # V: (B, V, E), online encoder
    predicted: Tensor  # (B, N, voxels of a token), online decoder
    projected: Tensor  # H: (B, N, C), phi of the online decoder
    target: Tensor  # Y: (B, N, C), psi of the target encoder; no gradient
    student: Tensor  # S: (B, V, C), CASA of V and H
    teacher: Tensor  # T: (B, V, C), CASA of V and Y; no gradient


@dataclass
class Output:
    """What a step logs and optimises. loss is the weighted sum of the losses.

    losses, moments and target_means of equal parts of a batch average to those of the batch.
    """

    loss: Tensor
    losses: dict[str, Tensor]  # l_r, l_dv, l_st of Eqs. 1, 2, 5
    moments: dict[str, Tensor]  # (2, C) of cls (target), S and T, see losses.py, and
    vectors: dict[str, int]  # over how many vectors
    target_means: dict[str, Tensor]  # (C,) of Y (dv) and T (st), what the centers follow
    crop: Tensor  # (B, C, D, H, W), Q as the online branch had it,
    masked: Tensor  # (B, N), what of it was hidden,
    predicted: Tensor  # (B, N, voxels of a token), and its reconstruction

    @property
    def spreads(self) -> dict[str, Tensor]:
        """Of cls, S and T; under 0.1 means collapse."""
        return {name: spread(values, self.vectors[name]) for name, values in self.moments.items()}


class Alice(nn.Module):
    """Online encoder, decoder, phi, CASA and predictors, and the EMA target of encoder, phi (psi) and CASA."""

    def __init__(self, encoder: nn.Module, in_channels: int, method: Method):
        super().__init__()
        self.method, self.unit = method, encoder.unit
        voxels = in_channels * encoder.unit[0] * encoder.unit[1] * encoder.unit[2]
        width, c = encoder.width, method.channels
        self.encoder = encoder
        self.decoder = Decoder(
            width,
            encoder.grid,
            voxels,
            method.decoder_width,
            method.decoder_depth,
            method.decoder_heads,
        )
        self.phi = (
            DinoHead(width, method.head_hidden, method.head_bottleneck, c)
            if method.head == "dino"
            else BatchNormMLP(width, method.head_hidden, c)
        )
        self.casa = CASA(width, c)
        self.predictors = nn.ModuleDict(
            {term: Predictor(c, method.head_hidden) for term in ("dv", "st") if method.predictor}
        )
        for module in (self.phi, self.casa, self.predictors):
            module.apply(init_head)
        self.target_encoder, self.psi = copy.deepcopy(self.encoder), copy.deepcopy(self.phi)
        self.target_casa = copy.deepcopy(self.casa) if method.ema_casa else None
        for module in (*self.targets(), *self.untrained()):
            module.requires_grad_(False)
        for term in ("dv", "st"):
            if method.centers(term):
                self.register_buffer(f"center_{term}", torch.zeros(c))

    def forward(self, query: Views, key: Views) -> Output:
        """The three losses for aligned crops Q and K of different people (Fig. 2)."""
        q, k = self.branches(query), self.branches(key)
        l_r = self.reconstruction(q, query) + self.reconstruction(k, key)  # Eq. 1
        y_q, y_k = self.center("dv", q.target.mean(1), k.target.mean(1))
        cls_q, cls_k = self.predict("dv", q.projected.mean(1), k.projected.mean(1))
        l_dv = self.similarity(cls_q, y_k) + self.similarity(cls_k, y_q)  # Eq. 2
        t_q, t_k = self.center("st", q.teacher, k.teacher)
        s_q, s_k = self.predict("st", q.student, k.student)
        l_st = self.similarity(s_q, t_q) + self.similarity(s_k, t_k)  # Eq. 5
        weighted = (
            (self.method.weight_r, l_r),
            (self.method.weight_dv, l_dv),
            (self.method.weight_st, l_st),
        )
        both = {
            "cls": torch.cat([y_q, y_k]),
            "S": torch.cat([q.student, k.student]),
            "T": torch.cat([t_q, t_k]),
        }
        mean = lambda a, b: torch.cat([a, b]).float().mean((0, 1))
        return Output(
            loss=sum(weight * loss for weight, loss in weighted if weight),
            losses={"l_r": l_r, "l_dv": l_dv, "l_st": l_st},
            moments={name: moments(features) for name, features in both.items()},
            vectors={name: features.shape[:-1].numel() for name, features in both.items()},
            target_means={"dv": mean(q.target, k.target), "st": mean(q.teacher, k.teacher)},
            crop=query.online,
            masked=query.masked,
            predicted=q.predicted.detach(),
        )

    def branches(self, views: Views) -> Branches:
        """Both branches for one crop of each pair (Secs. 3.1 to 3.3)."""
        visible = self.encoder(views.online, views.keep)  # V
        predicted, tokens = self.decoder(visible, views.keep)
        projected = self.phi(tokens)  # H
        student = self.casa(visible, projected)  # S, Eqs. 3 and 4
        with torch.no_grad():
            target = self.psi(self.target_encoder(views.target, views.target_keep))  # Y
            teacher = (self.target_casa or self.casa)(visible, target)  # T, Eqs. 3 and 4
        return Branches(visible, predicted, projected, target, student, teacher)

    def reconstruction(self, branches: Branches, views: Views) -> Tensor:
        """One half of Eq. 1."""
        if self.method.weight_r == 0:
            return torch.zeros((), device=views.online.device)
        return reconstruction_loss(branches.predicted, views.online, views.masked, self.unit)

    def predict(self, term: str, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """The online side of term (dv or st) through its predictor, where the method has one."""
        if not self.method.predictor:
            return query, key
        return self.predictors[term](query), self.predictors[term](key)

    def center(self, term: str, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """The target side of term less its running mean over tokens and steps, where the method centers it (DINO)."""
        if not self.method.centers(term):
            return query, key
        center = getattr(self, f"center_{term}")
        return query.float() - center, key.float() - center

    def similarity(self, student: Tensor, teacher: Tensor) -> Tensor:
        """l_s of Eq. 2, vectors (B, C), and Eq. 5, (B, V, C)."""
        if self.method.similarity == "cosine":
            return cosine_loss(student, teacher)
        if self.method.similarity == "infonce":
            own = teacher.flatten(0, -2)
            if not self.training:  # one process validates, and the others would not answer it
                return info_nce_loss(student, own, self.method.temperature)
            return info_nce_loss(
                student, own, self.method.temperature, gather_rows(own), rank() * len(own)
            )
        return dino_loss(student, teacher)

    def targets(self) -> list[nn.Module]:
        """The modules that follow by EMA and never get a gradient."""
        return [m for m in (self.target_encoder, self.psi, self.target_casa) if m is not None]

    def untrained(self) -> list[nn.Module]:
        """The modules that serve only terms of weight 0: no gradient reaches them."""
        r, dv, st = (
            weight > 0
            for weight in (self.method.weight_r, self.method.weight_dv, self.method.weight_st)
        )
        unused = [] if r else [self.decoder.to_voxels]
        unused += [] if dv or st else [self.phi, self.decoder.to_tokens]
        unused += [] if st else [self.casa]
        return unused + [
            predictor
            for term, predictor in self.predictors.items()
            if not {"dv": dv, "st": st}[term]
        ]

    @torch.no_grad()
    def update_target(self, momentum: float, target_means: dict[str, Tensor]) -> None:
        """target = momentum * target + (1 - momentum) * online (Sec. 3.1); the centers follow their means by a tenth."""
        online = [self.encoder, self.phi] + ([self.casa] if self.target_casa is not None else [])
        targets = [p for module in self.targets() for p in module.parameters()]
        torch._foreach_lerp_(
            targets, [p for module in online for p in module.parameters()], 1 - momentum
        )
        for term, mean in target_means.items():
            if self.method.centers(term):
                getattr(self, f"center_{term}").lerp_(mean.float(), 0.1)
