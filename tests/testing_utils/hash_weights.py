"""Random weights that can be made again anywhere: every number is a hash of its tensor's name and its place in it.

The reference vectors were made with these, so that a test needs no weight files: it regenerates the weights of a module
of any size and compares what comes out with a few recorded numbers.
"""

import math
import zlib
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

CHUNK = 1 << 20
SPECTRAL_ROUNDS = 10


def hash_values(name: str, shape: Iterable[int]) -> np.ndarray:
    """Numbers in [-1, 1), float64: CRC-32 of the name, a Weyl sequence, and murmur3's finaliser in 32 bits."""
    shape = tuple(shape)
    count, seed = math.prod(shape), zlib.crc32(name.encode())
    values = np.empty(count)
    for start in range(0, count, CHUNK):
        index = np.arange(start, min(start + CHUNK, count), dtype=np.uint64)
        h = ((index * 0x9E3779B1 + seed) & 0xFFFFFFFF).astype(np.uint32)
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            h = (h ^ (h >> np.uint32(shift))) * np.uint32(factor)
        values[start : start + CHUNK] = (h ^ (h >> np.uint32(16))) / 2.0**32 * 2 - 1
    return values.reshape(shape)


def hash_input(name: str, shape: Iterable[int]) -> Tensor:
    """Numbers in [-1, 1) as float32."""
    return torch.from_numpy(hash_values(name, shape)).float()


def hash_tensor(key: str, shape: Iterable[int], prefix: str) -> Tensor:
    """Weights of one tensor, scaled by what its key's last part says it is.

    Raises:
        ValueError: If the last part has no rule.
    """
    shape, leaf = tuple(shape), key.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return torch.tensor(1)
    u = hash_values(prefix + key, shape)
    if leaf.startswith(("null_", "start_")):
        u *= math.sqrt(3)
    elif leaf in ("weight", "weight_orig", "in_proj_weight", "embedding_table") and len(shape) >= 2:
        u *= math.sqrt(3 / math.prod(shape[1:]))
    elif leaf == "weight":
        u = 1 + 0.2 * u
    elif leaf in ("bias", "in_proj_bias", "running_mean"):
        u *= 0.1
    elif leaf == "running_var":
        u = 1 + 0.5 * u
    elif leaf in ("gamma", "beta"):
        u *= 0.3
    else:
        raise ValueError(f"`key` must end in a kind of weight that has a rule, got {key!r}.")
    return torch.from_numpy(u).float()


def spectral_weight(key: str, shape: Iterable[int], prefix: str) -> Tensor:
    """Folded weight of a convolution under spectral norm: `weight_orig` over a norm that has not quite converged.

    Args:
        key (`str`): Of the folded weight, `....weight`.
        shape (`Iterable[int]`): Its shape.
        prefix (`str`): Of the hash.
    """
    weight = hash_tensor(f"{key}_orig", shape, prefix)
    matrix = weight.double().flatten(1)
    u = torch.from_numpy(hash_values(f"{prefix}{key}_u", (len(matrix),)))
    u = u / u.norm()
    for _ in range(SPECTRAL_ROUNDS):
        v = matrix.T @ u
        v = v / v.norm()
        u = matrix @ v
        u = u / u.norm()
    return weight / torch.dot(u.float(), weight.flatten(1) @ v.float())


def fill_with_hash(
    module: nn.Module, prefix: str, spectral: Iterable[str] = (), scaled: Mapping[str, float] | None = None
) -> nn.Module:
    """Give every tensor of a module its hash weights.

    Args:
        module (`torch.nn.Module`): Any; changed in place.
        prefix (`str`): What stands before the keys in the hash, such as `"full/motion_extractor/"`.
        spectral (`Iterable[str]`): Names of layers whose weights are divided by their spectral norm, last part.
        scaled (`Mapping[str, float]`, *optional*): Factors by key.
    """
    spectral, scaled, state = set(spectral), scaled or {}, {}
    for key, value in module.state_dict().items():
        layer, _, leaf = key.rpartition(".")
        normed = leaf == "weight" and layer.rsplit(".", 1)[-1] in spectral
        state[key] = (spectral_weight if normed else hash_tensor)(key, value.shape, prefix) * scaled.get(key, 1)
    module.load_state_dict(state)
    return module
