"""Alice on one page (Jiang et al., ICCV 2023, Sec. 3).

Shapes: B pairs, N tokens of a crop, V visible ones, E width of the encoder, C width of the
projections.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from alice_nnunet.model.casa import CASA
from alice_nnunet.model.decoder import Decoder
from alice_nnunet.model.encoders.base import Encoder
from alice_nnunet.model.heads import AnatomyHead, BatchNormMLP, DinoHead, Predictor
from alice_nnunet.model.initialisation import xavier_uniform
from alice_nnunet.model.losses import (
    anatomy_loss,
    cosine_loss,
    dino_loss,
    has_content,
    info_nce_loss,
    place_info_nce_loss,
    reconstruction_loss,
)
from alice_nnunet.model.pretraining.method import (
    Drawing,
    Output,
    PretrainingMethod,
    Reconstruction,
    follow,
    partners_of,
    token_voxels,
    untrainable,
)
from alice_nnunet.model.pretraining.settings import AliceSettings
from alice_nnunet.model.tokens import put_tokens, take_tokens
from alice_nnunet.model.views import Views, at_places, joined, make_views, vectors_at
from alice_nnunet.ranks import gather_rows, mean_over_ranks, rank, world

CENTER_STEP = 0.1  # share of a step's mean in the running means that centering subtracts (DINO)

# At the top of the log
ON_RECONSTRUCTION = (
    "l_r is the reconstruction of hidden voxels: it falls from about 2 and shows that something is "
    "learned"
)
ON_PLACES = (
    "l_dv asks each token which of many crops is the matched one, by what lies at its place: it "
    "falls slowly"
)
ON_VECTORS = (
    "l_an is the error in naming the matcher's vector of a place: it falls from the first steps on"
)
ON_CROPS = (
    "l_st and l_dv compare two people: they often start low, while all features are alike, and "
    "rise while the spreads open. A spread of S under 0.1 is normal in the first few hundred steps"
)


@dataclass
class Branches:
    """Crops after both branches."""

    visible: Tensor  # V: (B, V, E), online encoder
    predicted: Tensor  # (B, N, voxels of a token), online decoder
    # The rest is missing where every term that needs it has weight 0.
    projected: Tensor = None  # type: ignore[assignment]  # H: (B, N, C), phi of the online decoder
    target: Tensor = None  # type: ignore[assignment]  # Y: (B, N, C), psi, target; no gradient
    student: Tensor = None  # type: ignore[assignment]  # S: (B, V, C), CASA of V and H
    teacher: Tensor = None  # type: ignore[assignment]  # T: (B, V, C), CASA of V, Y; no gradient

    def halves(self) -> "tuple[Branches, Branches]":
        """Those of the first half of the crops, and of the second."""
        halves: tuple[list, list] = ([], [])
        for field in fields(self):
            tensor = getattr(self, field.name)
            for half, part in zip(halves, (None, None) if tensor is None else tensor.chunk(2)):
                half.append(part)
        return Branches(*halves[0]), Branches(*halves[1])


@dataclass
class StepKeys:
    """What a whole step's tokens are told apart from, by place. Parts of a batch share it.

    Attributes:
        vectors: (K, N, C), keys of all crops of the step, of all processes, see `Alice.own_keys`.
            First all Q, then all K, each in the order of processes and parts.
        rows: (2 B,), which of them are a part's own crops, Q and then K.
        asked: (), tokens of a part that have a key, the mean over all parts and processes.
    """

    vectors: Tensor
    rows: Tensor
    asked: Tensor


class Alice(PretrainingMethod):
    """The online and the target branch.

    The online branch has an encoder, a decoder, phi, CASA and predictors. The target branch has
    EMA copies of the encoder, of phi (called psi) and of CASA.

    The features whose spread is logged are cls (target; of l_dv), S and T (of l_st). The rank is
    also that of H (of l_dv or l_st) and V.

    Args:
        encoder: with random weights.
        in_channels: image channels.
        settings: of the method.
    """

    compared = ("cls", "S", "T")
    center_an: Tensor
    memory: Tensor

    def __init__(self, encoder: Encoder, in_channels: int, settings: AliceSettings):
        super().__init__(encoder, in_channels, settings)
        self.method = method = settings
        width = encoder.width
        channels = method.channels

        # Online branch
        self.decoder = Decoder(
            encoder_width=width,
            grid=encoder.grid,
            voxels=token_voxels(encoder.unit, in_channels),
            width=method.decoder_width,
            depth=method.decoder_depth,
            heads=method.decoder_heads,
        )
        self.phi: nn.Module
        if method.head == "dino":
            self.phi = DinoHead(width, method.head_hidden, method.head_bottleneck, channels)
        else:
            self.phi = BatchNormMLP(width, method.head_hidden, channels)
        self.casa = CASA(width, channels)

        self.predictors = nn.ModuleDict()
        for term in ("dv", "st"):
            if method.predicts(term):
                self.predictors[term] = Predictor(channels, method.head_hidden)

        self.anatomy: nn.Module | None = None
        if method.weight_an:
            self.anatomy = AnatomyHead(width, method.anatomy_channels)

        self.phi.apply(xavier_uniform)
        self.casa.apply(xavier_uniform)
        self.predictors.apply(xavier_uniform)

        # Target branch: it starts as a copy of the online branch.
        self.target_encoder = copy.deepcopy(self.encoder)
        self.psi = copy.deepcopy(self.phi)
        self.target_casa = copy.deepcopy(self.casa) if method.ema_casa else None
        places = math.prod(encoder.grid)
        by_place = method.compares_by_place
        for term in ("dv", "st"):
            if method.centers(term):
                shape = (places, channels) if term == "dv" and by_place else (channels,)
                self.register_buffer(f"center_{term}", torch.zeros(shape))
        if method.weight_an:
            # The last element is the share of tokens in the body.
            self.register_buffer("center_an", torch.zeros(method.anatomy_channels + 1))
        if by_place:
            # Keys of the last crops of earlier steps, newest first; 0 where there are none yet.
            self.register_buffer("memory", torch.zeros(method.memory, places, channels))

        untrainable(*self.targets(), *self.untrained())

        self.terms = ("l_r", "l_dv", "l_st") + (("l_an",) if method.weight_an else ())
        self.hints = hints_for(method)

    @property
    def weights(self) -> dict[str, float]:
        method = self.method
        return {
            "l_r": method.weight_r,
            "l_dv": method.weight_dv,
            "l_st": method.weight_st,
            "l_an": method.weight_an,
        }

    def make_views(self, crops: Tensor, drawing: Drawing, vectors: Tensor | None = None) -> Views:
        """u and w of Q, r and v of K (Secs. 3 and 4.2)."""
        views = make_views(
            crops,
            self.unit,
            drawing.spacing,
            self.method,
            drawing.generator,
            drawing.part,
            drawing.parts,
            drawing.windowed,
        )
        views.anatomy = vectors
        return views

    def forward(self, query: Views, key: Views, shared: StepKeys | None = None) -> Output:
        """The losses for aligned crops Q and K of different people (Fig. 2).

        Args:
            query: Q.
            key: K.
            shared: keys of the step where Q and K are a part of its pairs, see `share`.
        """
        q, k = self.branches_of_both(query, key)

        method = self.method
        losses: dict[str, Tensor] = {}
        features: dict[str, Tensor] = {}
        target_means: dict[str, Tensor] = {}
        keys: Tensor | None = None

        # Sec. 3.1: reconstruct what is hidden in both crops
        content_q = has_content(query.online, self.unit)
        content_k = has_content(key.online, self.unit)
        if method.weight_r:
            losses["l_r"] = self.reconstruction(q, query, content_q)  # Eq. 1
            losses["l_r"] = losses["l_r"] + self.reconstruction(k, key, content_k)

        # Sec. 3.2: the same body part in two people looks alike as a whole
        if method.compares_by_place:
            targets = self.center("dv", torch.cat([q.target, k.target]))
            if shared is None:
                shared = self.keys_of_step([self.own_keys(targets, query, key)])[0]
            losses["l_dv"] = self.invariance_by_place(q, k, query, key, shared)
            keys = shared.vectors
            features["cls"] = targets.mean(1)
            target_means["dv"] = torch.cat([q.target, k.target]).float().mean(0)
        elif method.weight_dv:
            cls_q = self.predict("dv", q.projected.mean(1))
            cls_k = self.predict("dv", k.projected.mean(1))
            y_q = self.center("dv", q.target.mean(1))
            y_k = self.center("dv", k.target.mean(1))
            losses["l_dv"] = self.similarity(cls_q, y_k) + self.similarity(cls_k, y_q)  # Eq. 2
            features["cls"] = torch.cat([y_q, y_k])
            target_means["dv"] = mean_token(q.target, k.target)

        # Sec. 3.3: what the visible tokens find in the reconstructed crop, they find in the intact
        if method.weight_st:
            s_q = self.predict("st", q.student)
            s_k = self.predict("st", k.student)
            t_q = self.center("st", q.teacher)
            t_k = self.center("st", k.teacher)
            losses["l_st"] = self.similarity(s_q, t_q) + self.similarity(s_k, t_k)  # Eq. 5
            features["S"] = torch.cat([q.student, k.student])
            features["T"] = torch.cat([t_q, t_k])
            target_means["st"] = mean_token(q.teacher, k.teacher)

        # Not in the paper: what the matcher knows of a place, the encoder learns
        if self.anatomy is not None and query.anatomy is not None:
            losses["l_an"] = self.naming(q, k, query, key)
            target_means["an"] = self.anatomy_mean(query, key)

        ranked: dict[str, Tensor] = {}
        if method.compares_crops:
            ranked["H"] = torch.cat([q.projected, k.projected])
        ranked["V"] = torch.cat([q.visible, k.visible])

        return self.output(
            losses,
            content=torch.cat([content_q, content_k]),
            compared=features,
            ranked=ranked,
            running=target_means,
            remembered=keys,
            reconstruction=Reconstruction(
                query.online, query.masked, q.predicted.detach(), method.normalise
            ),
        )

    def branches_of_both(self, query: Views, key: Views) -> tuple[Branches, Branches]:
        """Both branches for Q and for K, which go through the networks together."""
        if self.separately:
            return self.branches(query), self.branches(key)
        return self.branches(joined(query, key), kinds=2).halves()

    def branches(self, views: Views, kinds: int = 1) -> Branches:
        """Both branches (Secs. 3.1 to 3.3), as far as terms need them.

        Args:
            views: of crops.
            kinds: 2 if they are Q and, after those, K; 1 if they are one of both.
        """
        visible = self.encoder(views.online, views.keep)  # V
        predicted, tokens = self.decoder(visible, views.keep)
        branches = Branches(visible, predicted)
        if not self.method.compares:
            return branches

        assert views.target is not None
        if self.method.compares_crops:
            branches.projected = self.project(self.phi, tokens, kinds)  # H
        with torch.no_grad():
            encoded = self.target_encoder(views.target, views.target_keep)
            branches.target = self.project(self.psi, encoded, kinds)  # Y

        if self.method.weight_st:
            branches.student = self.casa(visible, branches.projected)  # S, Eqs. 3 and 4
            with torch.no_grad():
                target_casa = self.casa if self.target_casa is None else self.target_casa
                branches.teacher = target_casa(visible, branches.target)  # T, Eqs. 3 and 4
        return branches

    def project(self, head: nn.Module, tokens: Tensor, kinds: int) -> Tensor:
        """phi or psi of tokens, (B, N, E) -> (B, N, C).

        The batch norm of BYOL's head is over crops of one kind, Q or K.
        """
        if self.method.head == "byol":
            return torch.cat([head(part) for part in tokens.chunk(kinds)])
        return head(tokens)

    def reconstruction(self, branches: Branches, views: Views, content: Tensor) -> Tensor:
        """Reconstruction loss of one of the two crops, a half of Eq. 1.

        Args:
            branches: of the crop.
            views: of the crop.
            content: (B, N), whether a token has more than one value. Others say nothing: their
                target is zeros, which the decoder finds from the visible air around them.
        """
        if views.keep.shape[1] == views.masked.shape[1]:
            raise ValueError("Eq. 1 needs at least one hidden token, got none")
        only_content = self.method.reconstruct == "content"
        counted = views.masked & content if only_content else views.masked
        return reconstruction_loss(
            branches.predicted, views.online, counted, self.unit, self.method.normalise
        )

    def invariance_by_place(
        self, q: Branches, k: Branches, query: Views, key: Views, step_keys: StepKeys
    ) -> Tensor:
        """Eq. 2 for each visible token, which finds its place in the other person, among all crops.

        Q and K are aligned, so tokens at the same place of both show about the same body part. The
        student is phi of the encoder's token.
        """
        visible = torch.cat([q.visible, k.visible])  # (2 B, V, E)
        keep = torch.cat([query.keep, key.keep])  # (2 B, V)
        masked = torch.cat([query.masked, key.masked])  # (2 B, N)

        projected = self.phi(visible).float()  # (2 B, V, C)
        nothing = projected.new_zeros(()).expand(*masked.shape, projected.shape[-1])
        students = put_tokens(projected, keep, nothing)  # (2 B, N, C)

        match = partners_of(step_keys.rows)
        losses = place_info_nce_loss(
            students,
            torch.cat([step_keys.vectors, self.memory]),
            match=match,
            own=step_keys.rows,
            temperature=self.method.temperature,
        )  # (2 B, N)

        asked = step_keys.vectors[match].any(-1) & ~masked
        return 2 * torch.where(asked, losses, 0).sum() / step_keys.asked.clamp(min=1)

    def own_keys(self, targets: Tensor, query: Views, key: Views) -> tuple[Tensor, Tensor]:
        """What the target views of these crops say about the places of the other's online tokens.

        What the augmentation moved is moved back. A place that a view does not show has no key.

        Args:
            targets: (2 B, N, C), psi of both crops' target views, centered at each place.
            query: views of Q.
            key: views of K.

        Returns:
            keys: (2 B, N, C); 0 where there is none.
            asked: (), visible tokens whose place the other person's view shows.
        """
        moved = torch.cat([query.moved, key.moved])
        masked = torch.cat([query.masked, key.masked])  # (2 B, N)
        asking = None  # where the tokens lie that ask: those of the other online view
        if query.places is not None and key.places is not None:
            asking = torch.cat([key.places, query.places])

        read, shown = at_places(targets, moved, self.encoder.grid, asking)
        asked = partners_of(shown) & ~masked
        return read * shown[..., None], asked.sum().float()

    def keys_of_step(self, parts: list[tuple[Tensor, Tensor]]) -> list[StepKeys]:
        """The keys of a whole step for each of its equal parts.

        Args:
            parts: `own_keys` of each part.
        """
        halves = [keys.chunk(2) for keys, _ in parts]
        keys = torch.cat([half for kind in zip(*halves) for half in kind])
        asked = torch.stack([number for _, number in parts]).mean()

        processes = 1
        if self.training:  # Validation runs in one process. The others would not answer.
            processes = world()
            keys = gather_rows(keys).unflatten(0, (processes, 2, -1)).transpose(0, 1).flatten(0, 2)
            asked = mean_over_ranks(asked)

        rows = torch.arange(len(keys), device=keys.device).view(2, processes, len(parts), -1)
        of_parts = rows[:, rank() if self.training else 0].unbind(1)
        return [StepKeys(keys, own.flatten(), asked) for own in of_parts]

    @torch.no_grad()
    def share(self, parts: list[tuple[Views, Views]]) -> list[StepKeys] | list[None]:
        """The keys of the whole step for each of its parts.

        It costs a pass of the target encoder, so that a step's result does not depend on how many
        parts it is computed in.
        """
        if len(parts) == 1 or not self.method.compares_by_place:
            return [None] * len(parts)

        own = []
        for query, key in parts:
            both = joined(query, key)
            encoded = self.target_encoder(both.target, both.target_keep)
            targets = self.center("dv", self.project(self.psi, encoded, kinds=2))
            own.append(self.own_keys(targets, query, key))
        return self.keys_of_step(own)

    def naming(self, q: Branches, k: Branches, query: Views, key: Views) -> Tensor:
        """l_an: visible tokens name the matcher's vector at their place in the other person.

        Vectors are taken less their mean over the body: without that they are alike everywhere.
        """
        assert self.anatomy is not None and query.anatomy is not None and key.anatomy is not None
        body = self.center_an[:-1] / self.center_an[-1].clamp(min=1e-6)

        loss = q.visible.new_zeros(())
        for branches, view, own, other in (
            (q, query, query.anatomy, key.anatomy),
            (k, key, key.anatomy, query.anatomy),
        ):
            own_vectors = vectors_at(own, view.places, self.encoder.grid)
            vectors = vectors_at(other, view.places, self.encoder.grid)  # (B, N, A)

            in_both = in_body(own_vectors) * in_body(vectors)  # (B, N)
            there = take_tokens(in_both[..., None], view.keep)[..., 0]  # (B, V)
            vectors = take_tokens(vectors - body, view.keep)  # (B, V, A)
            loss = loss + anatomy_loss(self.anatomy(branches.visible), vectors, there)
        return loss

    def anatomy_mean(self, query: Views, key: Views) -> Tensor:
        """Mean over all tokens of the matcher's vectors and of being in the body, (A + 1,)."""
        vectors = torch.cat([query.anatomy, key.anatomy])  # type: ignore[list-item]
        return torch.cat([vectors, in_body(vectors)[..., None]], -1).mean((0, 1))

    def predict(self, term: str, features: Tensor) -> Tensor:
        """Online features of a term (dv or st) after its predictor, if the method has one."""
        return self.predictors[term](features) if self.method.predicts(term) else features

    def center(self, term: str, features: Tensor) -> Tensor:
        """Target features of a term (dv or st), centered if the method centers them.

        Centering subtracts the running mean over tokens and steps (DINO).
        """
        if not self.method.centers(term):
            return features
        return features.float() - getattr(self, f"center_{term}")

    def similarity(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss l_s of Eq. 2, for vectors (B, C), and of Eq. 5, for (B, V, C)."""
        if self.method.similarity == "cosine":
            return cosine_loss(student, teacher)
        if self.method.similarity == "dino":
            return dino_loss(student, teacher)

        own = teacher.flatten(0, -2)
        temperature = self.method.temperature
        if not self.training:
            # Validation runs in one process. The others would not answer a call to gather.
            return info_nce_loss(student, own, temperature)
        everyones = gather_rows(own)
        return info_nce_loss(student, own, temperature, everyones, first=rank() * len(own))

    def targets(self) -> list[nn.Module]:
        """The modules of the target branch: they follow by EMA and never get a gradient."""
        targets: list[nn.Module] = [self.target_encoder, self.psi]
        if self.target_casa is not None:
            targets.append(self.target_casa)
        return targets

    def sources(self) -> list[nn.Module]:
        """The online modules that `targets` follow, in the same order."""
        sources: list[nn.Module] = [self.encoder, self.phi]
        if self.target_casa is not None:
            sources.append(self.casa)
        return sources

    def untrained(self) -> list[nn.Module]:
        """The online modules that only serve terms of weight 0: no gradient reaches them."""
        method = self.method
        unused: list[nn.Module] = []

        if method.weight_r == 0:
            unused.append(self.decoder.to_voxels)
        if not method.compares:
            unused.append(self.phi)
        if not method.compares_crops:
            assert self.decoder.to_tokens is not None
            unused.append(self.decoder.to_tokens)
        if method.weight_st == 0:
            unused.append(self.casa)

        if method.predicts("dv") and method.weight_dv == 0:
            unused.append(self.predictors["dv"])
        if method.predicts("st") and method.weight_st == 0:
            unused.append(self.predictors["st"])
        return unused

    @torch.no_grad()
    def after_step(
        self,
        momentum: float,
        running: Mapping[str, Tensor],
        remembered: Tensor | None = None,
    ) -> None:
        """Move the target branch towards the online branch, and the centers towards their means.

        Args:
            momentum: target = momentum * target + (1 - momentum) * online (Sec. 3.1).
            running: mean of Y (dv), (C,) or by place (N, C), of T (st), (C,), and of the matcher's
                vectors (an), see `anatomy_mean`: what the centers follow.
            remembered: (2 B, N, C), keys of the whole step, which the next steps remember if l_dv
                goes by place; they push the oldest out.
        """
        follow(self.targets(), self.sources(), momentum)

        for term, mean in running.items():
            if self.method.centers(term):
                center = getattr(self, f"center_{term}")
                center.lerp_(mean.float(), CENTER_STEP)

        if remembered is not None:
            kept = torch.cat([remembered.to(self.memory.dtype), self.memory])
            self.memory.copy_(kept[: len(self.memory)])

    def recomputed(self) -> list[nn.Module]:
        return [self.encoder, self.decoder]


def hints_for(method: AliceSettings) -> tuple[str, ...]:
    """How the values of the terms that are computed are read."""
    hints = []
    if method.weight_r:
        hints.append(ON_RECONSTRUCTION)
    if method.compares_by_place:
        hints.append(ON_PLACES)
    if method.compares_crops:
        hints.append(ON_CROPS)
    if method.weight_an:
        hints.append(ON_VECTORS)
    return tuple(hints)


def mean_token(query: Tensor, key: Tensor) -> Tensor:
    """Mean over all crops and tokens of Q and K, (B, N, C) each -> (C,)."""
    return torch.cat([query, key]).float().mean((0, 1))


def in_body(vectors: Tensor) -> Tensor:
    """1 where the matcher has a vector, 0 outside the body, (..., A) -> (...)."""
    return vectors.any(-1).float()
