"""From a portrait to an avatar that looks like it before any training: mesh, colours, hair and shoulders.

Not in the paper, which trains Gaussians of no colour for 200,000 iterations. Here the mesh is laid on the portrait and
wears it; what the portrait hides is taken from the face's other side, else from the nearest that is seen; hair and
shoulders are blown up from the silhouette (`shell.py`). VASA-1's frames then teach the rest.
"""

import dataclasses
import math
import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vasa_hf.data.synthetic.raster import rasterize
from vasa_hf.gaussians.binding import TriangleFrames, local_from_world, triangle_frames, world_from_local
from vasa_hf.gaussians.scene import Gaussians
from vasa_hf.geometry.crops import WHOLE_PICTURE_BOX
from vasa_hf.geometry.landmarks import rows
from vasa_hf.geometry.rotations import matrix_from_euler
from vasa_hf.head.driving import place_from_picture
from vasa_hf.head.fit import FittedHead, personal_head
from vasa_hf.head.loading import load_parametric_head, name_head
from vasa_hf.head.parametric import ParametricHead
from vasa_hf.models.gaussian_avatar_vasa3d import WIDTHS, Vasa3DGaussianAvatar
from vasa_hf.motion import POSE_DIM
from vasa_hf.processors.image import FaceCrop
from vasa_hf.processors.matte import cut_out
from vasa_hf.training.avatar.hair_shell import PortraitMaps, is_hair, make_shell, shell_size

MOST_YAW_RAD = 0.7  # a portrait turned further shows too little of the other half
BACKGROUNDS = (0.9, 0.1)  # greys; two of them tell what is opaque
_MIRROR_CM = 0.5  # as near must the other side be seen
_FACING = 0.4  # a Gaussian is seen if its normal turns to the camera by this cosine or more
_MIDDLE_CM = 4.5  # half width of the middle of the face, whose steep parts are lips and nose, not its rim
_SHELL_SHARE = 0.3  # of the Gaussians, at most
_THINNED = 3  # triangles of scalp and neck for a Gaussian
_TEETH, _MOUTH = (0.80, 0.76, 0.70), (0.30, 0.11, 0.11)


@dataclasses.dataclass
class AvatarStart:
    """What the training of an avatar starts from.

    Attributes:
        avatar (`Vasa3DGaussianAvatar`): Coloured; `fit_motion` is done.
        portraits (`list` of `Portrait`): The person before plain backgrounds, prepared for VASA-1.
        backgrounds (`torch.Tensor` of shape `(n, 3)`): Their colours, in [0, 1].
        motion (`torch.Tensor` of shape `(motion_dim,)`): The portrait's own.
        shown (`torch.Tensor` of shape `(gaussians,)`): bool, which of the mesh's Gaussians the portrait shows.
        image (`torch.Tensor` of shape `(4, size, size)`): The person cut out: RGB and alpha in [0, 1].
    """

    avatar: Vasa3DGaussianAvatar
    portraits: list[Any]
    backgrounds: Tensor
    motion: Tensor
    shown: Tensor
    picture: Tensor


@torch.no_grad()
def start_avatar(
    talking_face: Any,
    image: Any,
    *,
    num_gaussians: int = 20_000,
    face: int | None = None,
    output_size: int | None = None,
    head: str | os.PathLike | None = None,
    from_scratch: bool = False,
    **config: Any,
) -> AvatarStart:
    """Make an avatar of a portrait.

    Args:
        talking_face (`VasaTalkingFacePipeline`): VASA-1.
        image (`str`, `os.PathLike`, `PIL.Image.Image`, `np.ndarray` or `torch.Tensor`): The portrait.
        num_gaussians (`int`, *optional*, defaults to 20,000): Of the avatar, about this many.
        face (`int`, *optional*): Which face, 0 is the largest.
        output_size (`int`, *optional*): Side of VASA-1's frames in pixels.
        head (`str` or `os.PathLike`, *optional*): File of the parametric head, see `load_parametric_head`.
        from_scratch (`bool`, *optional*, defaults to False): The paper's start: the mean head in grey, random M^e and
            M^p.
        **config: Other arguments of `Vasa3DGaussianAvatar`.

    Raises:
        ValueError: If there is no face that can be animated, or it is turned away by more than 40 degrees.
    """
    found = talking_face.prepare_portrait(image, face=face, output_size=output_size).crop
    crop, size = found.image, found.image.shape[-1]
    picture = ((crop.float().cpu() + 1) / 2).clamp(0, 1)
    faces = talking_face.face_analyzer.detect(crop)
    if not faces:
        raise ValueError("`image` must show a face in its crop, too, found none: give a portrait with a larger face.")
    yaw = float(faces[0].pose[0])
    if abs(yaw) > MOST_YAW_RAD:
        raise ValueError(
            f"`image` must show the face turned by less than {MOST_YAW_RAD:.1f} radians, got {abs(yaw):.2f}: "
            "the half that is not seen cannot be made up."
        )
    landmarks = faces[0].landmarks / size
    mean_head = load_parametric_head(head)
    person, fitted = personal_head(mean_head, landmarks, matrix_from_euler(*faces[0].pose[:3]))
    colours, alpha = cut_out(picture, *_where_the_person_is(person, fitted, landmarks, size))
    alpha = alpha * _within_picture(found)
    portraits = [_plain(talking_face, (alpha * colours + (1 - alpha) * grey).clamp(0, 1)) for grey in BACKGROUNDS]
    motion = torch.stack([portrait.motion[0].cpu() for portrait in portraits]).mean(0)

    generator = torch.Generator().manual_seed(0)
    transformer = talking_face.motion_transformer
    spread = torch.randn(512, 1, len(motion), generator=generator).clamp(-3, 3)
    motions = motion + (transformer.denormalize(spread) - transformer.denormalize(0 * spread))[:, 0].float().cpu()
    backgrounds = torch.tensor(BACKGROUNDS)[:, None].expand(-1, 3).contiguous()
    cut = torch.cat([colours, alpha[None]])
    if from_scratch:
        avatar = Vasa3DGaussianAvatar.from_head(mean_head, num_gaussians, head_name=name_head(head), **config)
        avatar.measure_motion(motions)
        avatar.own_motion.copy_(motion)
        shown = torch.zeros(len(avatar.triangles), dtype=torch.bool)
        return AvatarStart(avatar, portraits, backgrounds, motion, shown, cut)

    avatar = _bare_avatar(person, num_gaussians, head_name=name_head(head), **config)
    avatar.set_place(
        place_from_picture(avatar.place, motion[:POSE_DIM], fitted.rotation, fitted.translation, fitted.scale)
    )
    with torch.enable_grad():
        avatar.fit_motion(motions, landmark_displacements(talking_face, portraits[0], motion), generator=generator)
    avatar.own_motion.copy_(motion)
    _wear_own_expression(avatar, fitted)
    seen = _colour(avatar, fitted, colours, alpha)
    _add_shell(avatar, motion, colours, alpha, num_gaussians - len(seen), seen)
    shown = F.pad(seen, (0, len(avatar.triangles) - len(seen)))
    return AvatarStart(avatar, portraits, backgrounds, motion, shown, cut)


def _bare_avatar(person: ParametricHead, total: int, **config: Any) -> Vasa3DGaussianAvatar:
    """Gaussians on the mesh alone, most of them on the face: the shell will hide scalp and neck."""
    fine = person.omega_face
    hidden = int((~fine).sum())
    on_face = round((1 - _SHELL_SHARE) * total) - hidden // _THINNED
    if on_face < int(fine.sum()):
        least = round((int(fine.sum()) + hidden // _THINNED) / (1 - _SHELL_SHARE)) + 1
        raise ValueError(f"`num_gaussians` must be at least {least} for the triangles of this head, got {total}.")
    avatar = Vasa3DGaussianAvatar.from_head(person, on_face + hidden, on_face / (on_face + hidden), **config)
    coarse = ~fine[avatar.triangles]
    kept = ~coarse | (coarse.cumsum(0) % _THINNED == 0)
    avatar.scales[coarse] += 0.5 * math.log(_THINNED)
    rows_of = {name: torch.nn.Parameter(value[kept]) for name, value in avatar.gaussian_parameters.items()}
    avatar.set_gaussians(rows_of, avatar.triangles[kept])
    return avatar


def _wear_own_expression(avatar: Vasa3DGaussianAvatar, fitted: FittedHead) -> None:
    """Shift M^e so that the portrait's own motion gives the expression that the fit found in the portrait."""
    found, _ = avatar.head_parameters(avatar.own_motion[None])
    named = fitted.expression @ avatar.head.named  # [E + 3], jaw last
    wanted = torch.cat([named[:-3], found[0, -9:-3], named[-3:]])
    avatar.motion_to_expression[-1].bias += wanted - found[0]


def _plain(talking_face: Any, picture: Tensor) -> Any:
    """An image that is the crop already, prepared for VASA-1."""
    size = picture.shape[-1]
    return talking_face.prepare_portrait(picture, box=[size * share for share in WHOLE_PICTURE_BOX], output_size=size)


def landmark_displacements(talking_face: Any, portrait: Any, motion: Tensor, step: float = 1.5) -> Tensor:
    """How far the landmarks of the frontal face move for one unit of each channel of z_dyn: `(K, 162, 2)`.

    Measured by the detector in VASA-1's frames of the portrait, each channel moved to both sides.

    Args:
        talking_face (`VasaTalkingFacePipeline`): VASA-1.
        portrait (`Portrait`): The person.
        motion (`torch.Tensor` of shape `(motion_dim,)`): The portrait's own.
        step (`float`, *optional*, defaults to 1.5): How far, in standard deviations of each channel.
    """
    analyzer, transformer = talking_face.face_analyzer, talking_face.motion_transformer
    zero = torch.zeros(1, 1, len(motion))
    deviation = (transformer.denormalize(zero + 1) - transformer.denormalize(zero))[0, 0].float().cpu()
    moves = step * torch.diag(deviation)[POSE_DIM:]
    frames = talking_face.render(portrait, torch.cat([motion + moves, motion - moves]), output_type="pt").frames
    seen, size = [], frames.shape[-1]
    box = analyzer.detect(portrait.crop.image)[0].box
    for frame in frames:
        (face,) = analyzer.measure(frame * 2 - 1, box[None])
        seen.append(face.landmarks / size)
    up, down = torch.stack(seen).chunk(2)
    rotation = matrix_from_euler(*motion[:3])[:2, :2]
    difference = (up - down) / motion[POSE_DIM - 1] @ torch.linalg.inv(rotation).mT
    return difference / (2 * step * deviation[POSE_DIM:, None, None])


# --- what is seen of the mesh -----------------------------------------------------------------------------------------


def _where_the_person_is(person, fitted: FittedHead, landmarks: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Pixels that are the person's for sure, and likely ones: bool `(size, size)` each."""
    placed = size * fitted.project(fitted.vertices)
    sure, head = torch.zeros(2, size * size, dtype=torch.bool)
    sure[rasterize(placed, person.faces[person.region("face")], size)[0]] = True
    head[rasterize(placed, person.faces[person.region("face", "scalp")], size)[0]] = True
    sure, head = sure.view(size, size), head.view(size, size)
    reach = max(round(0.18 * float(head.sum().sqrt())), 1)
    likely = F.max_pool2d(head.float()[None], 2 * reach + 1, 1, reach)[0] > 0
    chin = size * landmarks[rows(152)[0], 1]
    y, x = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    middle, half = size * landmarks[:, 0].mean(), size * (landmarks[:, 0].amax() - landmarks[:, 0].amin()) / 2
    # Shoulders widen from the neck downwards.
    body = (y > chin) & ((x - middle).abs() < 0.7 * half + 2.2 * (y - chin))
    return -F.max_pool2d(-sure.float()[None], 5, 1, 2)[0] > 0.5, likely | body


def _within_picture(crop: FaceCrop) -> Tensor:
    """1 where the crop shows the image, softly 0 beyond its edge, `(size, size)`."""
    height, width = crop.image_size
    corners = crop.crop_from_image.float() @ torch.tensor([[0.0, width], [0.0, height], [1.0, 1.0]])
    (x0, x1), (y0, y1) = corners[:2].tolist()
    size = crop.image.shape[-1]
    axis = (torch.arange(size) + 0.5) / size
    inside = [(size * torch.minimum(axis - low, high - axis) / 2).clamp(0, 1) for low, high in ((y0, y1), (x0, x1))]
    # Where the crop ends within the image there is no edge.
    for one, low, high in zip(inside, (y0, x0), (y1, x1), strict=True):
        one[(axis - max(low, 0.0) < 2 / size) & (low <= 0)] = 1.0
        one[(min(high, 1.0) - axis < 2 / size) & (high >= 1)] = 1.0
    return inside[0][:, None] * inside[1]


def _colour(avatar: Vasa3DGaussianAvatar, fitted: FittedHead, colours: Tensor, alpha: Tensor) -> Tensor:
    """Give the mesh's Gaussians the portrait's colours; which of them it shows, bool `(N,)`."""
    head, size = avatar.head, alpha.shape[-1]
    placed = fitted.project(fitted.vertices)
    unit = float(fitted.scale)
    means = _in_world(avatar, triangle_frames(placed, head.faces)).means  # fractions of the image
    skin = head.faces[head.region("face", "scalp", "neck")]  # teeth and eyeballs may stick out of a fitted face
    pixels, hit, weights = rasterize(placed * size, skin, size)
    nearest = torch.full((size * size,), torch.inf)
    nearest[pixels] = (placed[skin[hit], 2] * weights).sum(1)
    nearest = -F.max_pool2d(-nearest.view(1, 1, size, size), 3, 1, 1)
    depth = _look_up(nearest[0].nan_to_num(posinf=1e3), means[:, :2], "nearest")[:, 0]
    frames = triangle_frames(placed, head.faces)
    facing = -frames.rotation[avatar.triangles, 2, 1]
    rim = 2 * (size // 64) + 1  # the outermost pixels are mixed with what is behind
    inner = -F.max_pool2d(-alpha[None], rim, 1, rim // 2)
    covered = _look_up(inner, means[:, :2])[:, 0]
    eyes = head.region("left_eye", "right_eye")[avatar.triangles]
    slack = unit * torch.where(eyes, 0.02, 0.9)  # centimetres
    middle = _in_world(avatar, triangle_frames(head.template, head.faces)).means[:, 0].abs() < _MIDDLE_CM
    seen = (facing > torch.where(middle, 0.5, 1.0) * _FACING) & (means[:, 2] < depth + slack) & (covered > 0.9)
    inside = head.region("mouth", "teeth")[avatar.triangles]
    seen &= ~inside
    found = _look_up(colours, means[:, :2])
    avatar.colors.copy_(_fill(avatar, found, seen, facing))
    lightness = (found[seen & head.region("face")[avatar.triangles]].mean() / 0.5).clamp(0.5, 1.2)
    teeth = head.region("teeth")[avatar.triangles]
    avatar.colors[inside] = torch.tensor(_MOUTH) * lightness
    avatar.colors[teeth] = torch.tensor(_TEETH) * lightness
    _pull_in(avatar, means, frames, inner[0])
    return seen


def _pull_in(avatar: Vasa3DGaussianAvatar, means: Tensor, frames: TriangleFrames, alpha: Tensor) -> None:
    """Bring Gaussians that lie next to the person, whose skull is smaller than the mesh's, to the silhouette."""
    triangles = avatar.triangles
    middle = means[avatar.head.region("scalp")[triangles]].mean(0)
    inwards = torch.linspace(1.0, 0.5, 21)[:, None, None]
    tried = middle + inwards * (means - middle)
    inside = _look_up(alpha[None], tried[..., :2].flatten(0, 1)).view(len(inwards), -1) > 0.6
    inside |= (tried[..., :2] < 0.01).any(-1) | (tried[..., :2] > 0.99).any(-1)  # the crop does not tell
    best = inside.float().argmax(0)
    moved = tried.gather(0, best[None, :, None].expand(1, -1, 3))[0] - frames.origin[triangles]
    local = (frames.rotation[triangles].mT @ moved[..., None])[..., 0] / frames.scale[triangles, None]
    avatar.means.copy_(torch.where((best > 0)[:, None], local, avatar.means))


def _fill(avatar: Vasa3DGaussianAvatar, colours: Tensor, seen: Tensor, facing: Tensor) -> Tensor:
    """Colours `(N, 3)`; those that are not seen from the other side's, else from the nearest that is."""
    head = avatar.head
    rest = _in_world(avatar, triangle_frames(head.template, head.faces)).means
    region = head.regions[avatar.triangles]
    region = torch.where(head.region("left_eye", "right_eye")[avatar.triangles], -1, region)
    mirrored = rest * rest.new_tensor([-1.0, 1.0, 1.0])
    result = colours.clone()
    for number in region.unique():
        mine = region == number
        source = (mine & seen).nonzero()[:, 0]
        if not len(source):  # such as a scalp that is all hidden
            source = seen.nonzero()[:, 0]
        missing = (mine & ~seen).nonzero()[:, 0]
        if not len(missing) or not len(source):
            continue
        for part in missing.split(1024):
            here, reach = _nearest_colours(rest[part], rest[source], colours[source], facing[source])
            there, gap = _nearest_colours(mirrored[part], rest[source], colours[source], facing[source])
            # Light comes from one side: near what is seen its colour continues, the other side's is for what is far.
            share = ((reach - 1.5) / 2).clamp(0, 1) * (gap < _MIRROR_CM)
            result[part] = here + share * (there - here)
    return result


def _nearest_colours(points: Tensor, known: Tensor, colours: Tensor, facing: Tensor) -> tuple[Tensor, Tensor]:
    """Colours [N, 3] of the nearest known points, the farther the smoother, and the distance [N, 1]."""
    distance = torch.cdist(points, known)
    nearest = distance.amin(1, keepdim=True)
    weight = torch.exp((nearest.square() - distance.square()) / (2 * (0.3 + 0.5 * nearest).square()))
    weight = weight * facing.square()  # skin seen at a low angle is dark
    return weight @ colours / weight.sum(1, keepdim=True), nearest


def _in_world(avatar: Vasa3DGaussianAvatar, frames: TriangleFrames) -> Gaussians:
    local = Gaussians(
        avatar.means, F.normalize(avatar.quats, dim=-1), avatar.scales.exp(), avatar.opacities, avatar.colors
    )
    return world_from_local(local, avatar.triangles, frames)


def _look_up(picture: Tensor, places: Tensor, mode: str = "bilinear") -> Tensor:
    """Values [N, C] of an image [C, S, S] at places [N, 2] in fractions of it."""
    grid = (2 * places - 1)[None, :, None]
    return F.grid_sample(picture[None], grid, mode, "border", align_corners=False)[0, :, :, 0].T


# --- hair and shoulders -----------------------------------------------------------------------------------------------


def _add_shell(
    avatar: Vasa3DGaussianAvatar, motion: Tensor, colours: Tensor, alpha: Tensor, budget: int, seen: Tensor
) -> None:
    """Add the shell's Gaussians, each bound to the triangle of scalp or neck that is nearest."""
    posed = avatar.pose_head(*avatar.head_parameters(motion[None])).vertices[0]
    camera, head = avatar.portrait_camera, avatar.head
    middle = avatar.canonical_origin + torch.tensor([0.0, 0.0, 9.0])  # between the ears, about
    middle_depth = float(_carry(avatar, posed, middle)[2]) + avatar.config.camera_distance_cm
    grid, count = alpha.shape[-1], budget + 1
    while count > budget and grid > 32:  # once with too many, then as fine as the budget allows
        grid = max(min(int(grid * (0.98 * budget / count) ** 0.5), grid - 1), 32)
        maps = _maps(avatar, posed, colours, alpha, grid, middle_depth)
        count = shell_size(maps)
    shell, hair = make_shell(maps, middle_depth / float(camera.focal[0, 0]) / grid)
    depth = middle_depth - shell.means[:, 2]
    xy = (shell.means[:, :2] - camera.center) / camera.focal * depth[:, None]
    placed = Gaussians(
        torch.cat([xy, depth[:, None] - avatar.config.camera_distance_cm], 1),
        shell.quats,
        shell.scales,
        shell.opacities,
        shell.colors,
    )
    frames = triangle_frames(posed, head.faces)
    triangles = torch.empty(len(shell), dtype=torch.long)
    for mask, names in ((hair, ("scalp",)), (~hair, ("neck",))):
        allowed = head.region(*names).nonzero()[:, 0]
        mine = mask.nonzero()[:, 0]
        for part in mine.split(1024):
            triangles[part] = allowed[torch.cdist(placed.means[part], frames.origin[allowed]).argmin(1)]
    # What the portrait hides of the scalp has the colour of the hair over it, and so has what it hides of face and neck
    # where hair is nearer than skin that is seen: else skin shines through between the shell's front and back.
    over = hair & is_hair(maps, shell.colors.T)
    over = over if over.any() else hair
    means = _in_world(avatar, frames).means
    skin = means[seen & head.region("face", "neck")[avatar.triangles]]
    hidden = (~seen & head.region("scalp", "face", "neck")[avatar.triangles]).nonzero()[:, 0]
    for part in hidden.split(1024):
        colour, to_hair = _nearest_colours(means[part], placed.means[over], shell.colors[over], torch.ones(()))
        to_skin = torch.cdist(means[part], skin).amin(1, keepdim=True)
        covered = head.region("scalp")[avatar.triangles[part]][:, None] | (to_hair < to_skin)
        avatar.colors[part] = torch.where(covered, colour, avatar.colors[part])
    local = local_from_world(placed, triangles, frames)
    rows_of = {
        "means": local.means,
        "quats": local.quats,
        "scales": local.scales.clamp_min(1e-6).log(),
        "opacities": local.opacities.clamp(0.02, 0.98).logit(),
        "colors": local.colors,
    }
    joined = {name: torch.nn.Parameter(torch.cat([getattr(avatar, name), rows_of[name]])) for name in WIDTHS}
    avatar.set_gaussians(joined, torch.cat([avatar.triangles, triangles]))


def _carry(avatar: Vasa3DGaussianAvatar, posed: Tensor, point: Tensor) -> Tensor:
    """Where a point of the skull at rest is in the posed head."""
    triangle = torch.cdist(point[None], avatar.head.template[avatar.head.faces[:, 0]])
    triangle = triangle.masked_fill(~avatar.head.region("scalp"), torch.inf).argmin()[None]
    one = torch.ones(1, 4)
    at = Gaussians(point[None], one, one[:, :3], one[:, 0], one[:, :3])
    at = local_from_world(at, triangle, triangle_frames(avatar.head.template, avatar.head.faces))
    return world_from_local(at, triangle, triangle_frames(posed, avatar.head.faces)).means[0]


def _maps(
    avatar: Vasa3DGaussianAvatar, posed: Tensor, colours: Tensor, alpha: Tensor, grid: int, middle_depth: float
) -> PortraitMaps:
    head = avatar.head
    pixels, depth = avatar.portrait_camera.project(posed, (grid, grid))
    seen = torch.cat([pixels[0], depth[0, :, None]], 1)
    where, hit, weights = rasterize(seen, head.faces, grid)
    height = torch.full((grid * grid,), torch.nan)
    height[where] = middle_depth - (seen[head.faces[hit], 2] * weights).sum(1)
    trusted = torch.zeros(2, grid * grid, dtype=torch.bool)
    trusted[0, where] = ~head.region("scalp", "neck")[hit]
    trusted[1, where] = head.region("neck")[hit]
    small = F.interpolate(torch.cat([colours, alpha[None]])[None], (grid, grid), mode="area")[0]
    # Discs are wider than a pixel: with the outermost left out they end where the person does. Else the fit would make
    # the rim transparent, and one would look through it from the side.
    small[3:] = -F.max_pool2d(-small[3:], 3, 1, 1)
    lip, chin = (float(seen[head.landmarks[rows(point)[0]], 1]) for point in (0, 152))
    return PortraitMaps(
        colours=small[:3],
        alpha=small[3],
        height_cm=height.view(grid, grid),
        face=trusted[0].view(grid, grid),
        neck=trusted[1].view(grid, grid),
        floating_row=lip,
        chin_row=chin,
    )
