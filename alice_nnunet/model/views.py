"""The four views of a pair of crops (Alice, Secs. 3 and 4.2): masked for the online branch,
augmented for the target.

Shapes: B crops, C channels, D H W voxels in (z, y, x) order, N tokens, V visible tokens.

All random numbers are drawn here, from the generator that is passed in. What was drawn is then
applied to the whole batch on the crops' device. With a generator of the CPU the numbers are the
same for every device, and sizes that depend on them are known without waiting for it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from alice_nnunet.data.rotation import rotation_matrices
from alice_nnunet.geometry import Spacing, Triple, grid_of, triple
from alice_nnunet.model.pretraining.settings import AliceSettings
from alice_nnunet.model.tokens import masked_from, random_keep, random_keep_blocks

AXES = "zyx"
LARGEST_ANGLES = (30.0, 15.0, 15.0)  # degrees about z, y, x
SCALE_RANGE = (0.8, 1.25)  # size of the anatomy in the view over its size in the crop
INTENSITY_SCALE = 0.1  # factor 1 +- 0.1
INTENSITY_SHIFT = 0.1  # in units of the window


@dataclass
class CropViews:
    """What a method makes of B crops. Every field has a row for each crop, or is None."""

    def __len__(self) -> int:
        """B."""
        return next(len(v) for _, v in items(self) if v is not None)

    def rows(self: "AnyViews", part: slice) -> "AnyViews":
        """The views of some of the crops."""
        return type(self)(**{name: None if v is None else v[part] for name, v in items(self)})


def items(views: CropViews) -> list[tuple[str, Tensor | None]]:
    """Names and values of the fields."""
    return [(field.name, getattr(views, field.name)) for field in fields(views)]


AnyViews = TypeVar("AnyViews", bound=CropViews)


def joined(query: AnyViews, key: AnyViews) -> AnyViews:
    """The views of both crops of each pair as those of twice as many crops, queries first."""
    both: dict[str, Tensor | None] = {}
    for (name, of_query), (_, of_key) in zip(items(query), items(key)):
        missing = of_query is None or of_key is None
        both[name] = None if missing else torch.cat([of_query, of_key])  # type: ignore[list-item]
    return type(query)(**both)


@dataclass
class Views(CropViews):
    """One crop of each pair, Q or K, as the two branches of Alice see it."""

    online: Tensor  # (B, C, D, H, W): u of Q or r of K; the branch sees only the tokens in keep
    keep: Tensor  # (B, V) indices of the visible tokens, on the generator's device
    masked: Tensor  # (B, N), True where hidden: the complement of keep
    # (B, C, D, H, W): w of Q or v of K, strongly augmented, intact; None if no term needs it
    target: Tensor | None
    target_keep: Tensor | None  # (B, V') indices that the target branch sees, None for all tokens
    moved: (
        Tensor  # (B, 3, 3) from coordinates of the target view to those of the crop, see at_places
    )
    # (B, N, A): the matcher's vectors at the crop's tokens, 0 outside the body; None if unused
    anatomy: Tensor | None = None
    # (B, N, 3): where the online view's tokens lie in the crop, see token_middles; None if the
    # view shows the whole crop
    places: Tensor | None = None


@dataclass
class Augmentation:
    """Drawn parameters of the strong augmentation, one row for each crop."""

    angles: Tensor  # (B, 3) radians about z, y, x
    scale: Tensor  # (B,)
    flips: Tensor  # (B, 3) -1 where the (z, y, x) axis is mirrored, else 1
    factor: Tensor  # (B,) intensity factor
    shift: Tensor  # (B,) intensity shift

    def rows(self, part: slice) -> "Augmentation":
        """The parameters for some of the crops."""
        return Augmentation(
            angles=self.angles[part],
            scale=self.scale[part],
            flips=self.flips[part],
            factor=self.factor[part],
            shift=self.shift[part],
        )


def draw_flips(batch: int, generator: torch.Generator, axes: str = AXES) -> Tensor:
    """Draw -1 or 1 with even odds for each of the axes, (B, 3); 1 for the others.

    The numbers of an axis do not depend on which others there are.
    """
    drawn = torch.randint(0, 2, (batch, 3), generator=generator, device=generator.device) * 2.0 - 1
    kept = torch.tensor([axis not in axes for axis in AXES], device=drawn.device)
    return drawn.masked_fill(kept, 1.0)


def draw_intensity(batch: int, largest: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw factors, 1 +- largest, and shifts, 0 +- largest in units of the window, (B,) each."""
    uniform = torch.rand(batch, 2, generator=generator, device=generator.device) * 2 - 1
    return 1 + largest * uniform[:, 0], largest * uniform[:, 1]


def draw_parts(batch: int, smallest: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw a part of each crop, of the crop's proportions and anywhere in it (resized crops, MAE).

    Args:
        batch: number of crops B.
        smallest: edge of a part over that of the crop, at least; 1 at most.
        generator: source of random numbers.

    Returns:
        (B,) edges of the parts over those of the crops, and (B, 3) where their middles lie in the
        crops, (x, y, z) in half sizes.
    """
    uniform = torch.rand(batch, 4, generator=generator, device=generator.device)
    edge = smallest + (1 - smallest) * uniform[:, 0]
    return edge, (uniform[:, 1:] * 2 - 1) * (1 - edge)[:, None]


def enlarge(crops: Tensor, edge: Tensor, middle: Tensor) -> Tensor:
    """Parts of crops, enlarged to their size. Between voxels they are interpolated.

    Args:
        crops: (B, C, D, H, W).
        edge: (B,), see draw_parts.
        middle: (B, 3), see draw_parts.
    """
    scaled = torch.eye(3, device=edge.device) * edge[:, None, None]
    affine = torch.cat([scaled, middle[..., None]], -1).to(crops.device, non_blocking=True)
    grid = F.affine_grid(affine, list(crops.shape), align_corners=False).to(crops.dtype)
    return F.grid_sample(crops, grid, mode="bilinear", padding_mode="border", align_corners=False)


def draw_augmentation(batch: int, generator: torch.Generator, flips: str = AXES) -> Augmentation:
    """Draw random resized rotation, flips, intensity scale and shift (Alice, Sec. 4.2).

    Args:
        batch: number of crops B.
        generator: source of random numbers.
        flips: axes that may be mirrored. Whichever they are, the other numbers stay the same.
    """
    device = generator.device
    uniform = torch.rand(batch, 6, generator=generator, device=device) * 2 - 1  # in [-1, 1)

    largest_angles = torch.tensor(LARGEST_ANGLES, device=device).deg2rad()
    low, high = (math.log(scale) for scale in SCALE_RANGE)

    return Augmentation(
        angles=uniform[:, :3] * largest_angles,
        scale=(low + (high - low) * (uniform[:, 3] + 1) / 2).exp(),
        flips=draw_flips(batch, generator, flips),
        factor=1 + INTENSITY_SCALE * uniform[:, 4],
        shift=INTENSITY_SHIFT * uniform[:, 5],
    )


def view_to_crop(drawn: Augmentation, size: Triple, spacing: Spacing) -> Tensor:
    """Where a point of the augmented view comes from in the crop.

    Args:
        drawn: one row for each crop.
        size: voxels of a crop (z, y, x).
        spacing: mm (z, y, x).

    Returns:
        (B, 3, 3), for coordinates (x, y, z) in half sizes of the crop, -1 to 1.
    """
    extent = [voxels * mm for voxels, mm in zip(size, spacing)]  # mm (z, y, x)
    length = torch.tensor(extent[::-1], device=drawn.angles.device)  # mm (x, y, z)

    # From output to input coordinates: first in mm, then in half sizes of the crop.
    matrix = (
        rotation_matrices(drawn.angles)
        * drawn.flips.flip(1)[:, None, :]
        / drawn.scale[:, None, None]
    )
    return matrix * length[None, None, :] / length[None, :, None]


def augment(
    crops: Tensor, drawn: Augmentation, spacing: Spacing, windowed: Sequence[int] = ()
) -> Tensor:
    """Apply the drawn augmentation. The rotation is in mm, so its angles are true angles.

    Args:
        crops: (B, C, D, H, W).
        drawn: one row for each crop.
        spacing: mm (z, y, x).
        windowed: channels that are a window of HU as 0 to 1. They stay in it, and what is at its
            floor, as air is, stays there: no shift of HU lifts air into the window.

    Returns:
        (B, C, D, H, W). What lies beyond the crop is 0 before intensities change.
    """
    matrix = view_to_crop(drawn, triple(crops.shape[2:]), spacing)
    affine = F.pad(matrix, (0, 1)).to(crops.device, non_blocking=True)  # no translation
    grid = F.affine_grid(affine, list(crops.shape), align_corners=False).to(crops.dtype)
    moved = F.grid_sample(crops, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    return change_intensity(moved, drawn.factor, drawn.shift, windowed)


def change_intensity(
    crops: Tensor, factor: Tensor, shift: Tensor, windowed: Sequence[int] = ()
) -> Tensor:
    """Each crop times its factor, plus its shift.

    Args:
        crops: (B, C, D, H, W).
        factor: (B,).
        shift: (B,), in units of the window.
        windowed: see augment.
    """
    factor = factor.to(crops, non_blocking=True).view(-1, 1, 1, 1, 1)
    shift = shift.to(crops, non_blocking=True).view(-1, 1, 1, 1, 1)
    changed = crops * factor + shift

    for channel in windowed:
        in_window = changed[:, channel].clamp(0, 1)
        changed[:, channel] = torch.where(crops[:, channel] > 0, in_window, 0)
    return changed


def shifted(crops: Tensor, shift: Tensor) -> Tensor:
    """Crops a little aside, without turning them. What lies beyond a crop is 0.

    Args:
        crops: (B, C, D, H, W).
        shift: (B, 3), along (z, y, x) in sides of the crop.

    Returns:
        (B, C, D, H, W): what was at a place plus the shift is at the place.
    """
    moved = 2 * shift.flip(-1)  # affine_grid counts (x, y, z), from -1 to 1
    matrix = torch.eye(3, device=shift.device).expand(len(shift), 3, 3)
    affine = torch.cat([matrix, moved[..., None]], -1).to(crops.device, non_blocking=True)

    grid = F.affine_grid(affine, list(crops.shape), align_corners=False).to(crops.dtype)
    return F.grid_sample(crops, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def token_middles(grid: Triple) -> Tensor:
    """Where the middles of a crop's tokens lie, (N, 3) in half sizes, z slowest."""
    along = [(torch.arange(n) + 0.5) / n * 2 - 1 for n in grid]
    z, y, x = torch.meshgrid(*along, indexing="ij")
    return torch.stack([x, y, z], -1).view(-1, 3)


def at_places(
    tokens: Tensor, matrix: Tensor, grid: Triple, places: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What an augmented view's tokens say about places of the crop.

    Coordinates are (x, y, z) in half sizes of the crop, from -1 to 1.

    The view's rotation, scale and flips are undone. Between the middles of tokens they are
    interpolated.

    Args:
        tokens: (B, N, C) of the view.
        matrix: (B, 3, 3), takes coordinates of the view to those of the crop.
        grid: tokens along (z, y, x).
        places: (B, N, 3) in the crop; None for the middles of the crop's tokens.

    Returns:
        read: (B, N, C), one vector for each place.
        shown: (B, N), whether the view shows it.
    """
    b, n, _ = tokens.shape

    if places is None:
        places = token_middles(grid).expand(b, n, 3)
    gone_to = torch.linalg.solve(matrix, places.to(matrix).mT).mT  # (B, N, 3) in the view
    gone_to = gone_to.to(tokens.device, torch.float32, non_blocking=True)

    shown = (gone_to.abs() <= 1).all(-1)
    return read_between(tokens.float(), gone_to, grid), shown


def read_between(tokens: Tensor, places: Tensor, grid: Triple) -> Tensor:
    """Values at places between the middles of tokens, interpolated, (B, N, C).

    Args:
        tokens: (B, N, C).
        places: (B, N, 3), (x, y, z) in half sizes, on the tokens' device.
        grid: tokens along (z, y, x).
    """
    b, _, c = tokens.shape
    volume = tokens.transpose(1, 2).reshape(b, c, *grid)
    read = F.grid_sample(
        volume,
        places.view(b, *grid, 3),
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    return read.flatten(2).transpose(1, 2)


def vectors_at(vectors: Tensor, places: Tensor | None, grid: Triple) -> Tensor:
    """The matcher's vectors at places of a crop, interpolated among those in the body.

    Args:
        vectors: (B, N, A) at the crop's tokens, 0 outside the body.
        places: (B, N, 3), see token_middles; None for the tokens' own.
        grid: tokens along (z, y, x).

    Returns:
        (B, N, A); 0 where more than half of what surrounds a place is outside the body.
    """
    if places is None:
        return vectors

    places = places.to(vectors.device, torch.float32, non_blocking=True)
    in_body = vectors.any(-1, keepdim=True).float()
    share = read_between(in_body, places, grid)
    read = read_between(vectors.float(), places, grid) / share.clamp(min=0.5)
    return torch.where(share > 0.5, read, 0).to(vectors.dtype)


def flip(crops: Tensor, flips: Tensor) -> Tensor:
    """Mirror each crop along the axes where `flips`, (B, 3), is -1."""
    for axis in range(3):
        mirrored = (flips[:, axis] < 0).view(-1, 1, 1, 1, 1).to(crops.device, non_blocking=True)
        crops = torch.where(mirrored, crops.flip(axis + 2), crops)
    return crops


def make_views(
    crops: Tensor,
    unit: Triple,
    spacing: Spacing,
    method: AliceSettings,
    generator: torch.Generator,
    rank: int = 0,
    world: int = 1,
    windowed: Sequence[int] = (),
) -> Views:
    """Make the views u, w of Q or r, v of K.

    The crops may be one of several equal parts of a batch. Numbers are drawn for the whole batch,
    so a crop's views do not depend on how the batch is divided.

    Args:
        crops: (B, C, D, H, W).
        unit: voxels hidden or shown together (z, y, x).
        spacing: mm (z, y, x).
        method: says what to hide and whether to flip.
        generator: source of all random numbers.
        rank: number of this part of the batch.
        world: number of parts.
        windowed: channels that are a window of HU as 0 to 1, see augment.
    """
    batch = len(crops) * world
    grid = grid_of(crops.shape[2:], unit)
    tokens = math.prod(grid)
    own = slice(len(crops) * rank, len(crops) * (rank + 1))

    # Online branch. Each draw takes numbers from the generator, so their order matters.
    online = crops
    if method.online_flips:
        online = flip(crops, draw_flips(batch, generator, method.flip_axes)[own])
    keep = random_keep_blocks(batch, grid, method.mask_block, method.mask_ratio, generator)[own]

    # Target branch
    axes = method.flip_axes if method.target_flips else ""
    augmentation = draw_augmentation(batch, generator, axes).rows(own)
    target = augment(crops, augmentation, spacing, windowed) if method.compares else None
    target_keep = None
    if method.target_mask_ratio:
        target_keep = random_keep(batch, tokens, method.target_mask_ratio, generator)[own]

    # Drawn last, so that all other numbers are the same without it.
    if method.online_intensity:
        factor, shift = draw_intensity(batch, method.online_intensity, generator)
        online = change_intensity(online, factor[own], shift[own], windowed)

    places = None
    if method.online_part < 1:
        edge, middle = draw_parts(batch, method.online_part, generator)
        online = enlarge(online, edge[own], middle[own])
        places = token_middles(grid).to(edge.device) * edge[own, None, None] + middle[own, None]

    moved = view_to_crop(augmentation, triple(crops.shape[2:]), spacing)
    masked = masked_from(keep, tokens).to(crops.device, non_blocking=True)
    return Views(online, keep, masked, target, target_keep, moved, places=places)
