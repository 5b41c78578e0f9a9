"""Positions of tokens and their rotary embedding.

Every token has a triple of integers (axis 0, row, column). Text token k sits at (k, k, k). Images follow, references
first and the noisy image last: each has a constant on axis 0 and counts its rows and columns from 0. The first image
starts where the text ends, each next one max(rows, columns) of its predecessor further (OmniGen2, arXiv 2506.18871,
"Omni-RoPE").
"""

from collections.abc import Sequence

import torch

THETA = 10000.0

GridSize = tuple[int, int]


def image_position_ids(start: int, size: GridSize) -> torch.Tensor:
    """Positions of one image's patches, row by row.

    Args:
        start: the image's constant on axis 0.
        size: (rows, columns) in patches.

    Returns:
        int64 [rows * columns, 3] on the CPU.
    """
    rows, columns = size
    ids = torch.empty(rows, columns, 3, dtype=torch.int64)
    ids[..., 0] = start
    ids[..., 1] = torch.arange(rows)[:, None]
    ids[..., 2] = torch.arange(columns)[None, :]
    return ids.view(-1, 3)


def sample_position_ids(text_length: int, image_sizes: Sequence[GridSize]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Positions of one sample: its text, and its images in order (references, then the noisy image).

    Args:
        text_length: number of the sample's own text tokens, padding left out.
        image_sizes: (rows, columns) of every image in patches.

    Returns:
        int64 [text_length, 3], and one int64 [rows * columns, 3] per image, on the CPU.
    """
    text = torch.arange(text_length)[:, None].expand(-1, 3)
    images, start = [], text_length
    for size in image_sizes:
        images.append(image_position_ids(start, size))
        start += max(size)
    return text, images


def check_position_ids(position_ids: torch.Tensor, axes_lens: Sequence[int]) -> None:
    """Raise ValueError when a position [tokens, 3] lies outside the published range of its axis."""
    for axis, (largest, limit) in enumerate(zip(position_ids.amax(dim=0).tolist(), axes_lens, strict=True)):
        if largest >= limit:
            raise ValueError(
                f"axes_lens[{axis}] is {limit}, but this batch needs {largest + 1} positions on axis {axis}: "
                "use a shorter text, smaller or fewer images, or a model with a larger axes_lens"
            )


def rotary_frequencies(position_ids: torch.Tensor, axes_dim: Sequence[int], device: torch.device | str) -> torch.Tensor:
    """Cosine and sine of every token's rotation angles.

    The angles are computed in float64 from the integers each time: a model keeps no table, so it can be created on the
    meta device, moved and sharded freely.

    Args:
        position_ids: integers [tokens, axes].
        axes_dim: even number of channels of each axis; they sum to the size of an attention head.
        device: where the result goes.

    Returns:
        float32 [tokens, 1, sum(axes_dim) / 2, 2]; the second dimension broadcasts over heads.
    """
    # MPS has no float64
    where = torch.device("cpu") if torch.device(device).type == "mps" else torch.device(device)
    positions = position_ids.to(where).double()
    angles = []
    for axis, dim in enumerate(axes_dim):
        frequencies = THETA ** -(torch.arange(0, dim, 2, dtype=torch.float64, device=where) / dim)
        angles.append(positions[:, axis, None] * frequencies)
    angle = torch.cat(angles, dim=-1).unsqueeze(1)
    return torch.stack((angle.cos(), angle.sin()), dim=-1).float().to(device)


def apply_rotary(hidden_states: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """Rotate adjacent channel pairs (x0 + i x1) of [tokens, heads, head_dim]; float32 inside, input dtype out.

    As a product of complex numbers, which is one pass over memory where real ones are seven. torch.compile, which fuses
    these, has no complex numbers.
    """
    pairs = hidden_states.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():
        (real, imaginary), (cos, sin) = pairs.unbind(-1), rotation.unbind(-1)
        rotated = torch.stack((real * cos - imaginary * sin, real * sin + imaginary * cos), dim=-1)
    else:
        rotated = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rotation))
    return rotated.flatten(-2).to(hidden_states.dtype)
