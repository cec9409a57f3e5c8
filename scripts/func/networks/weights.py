"""The networks: their recipes, and weights read from and written to files.

``babyai`` is the published network, MONAI's residual ``UNet`` without normalisation; reconstruction runs it in the
exact fast form of ``func.networks.published``, which needs no MONAI. ``compact`` is this repository's own, in
``func.networks.compact``.
A file of published weights is a bare state_dict; ours carry their recipe, configuration and training record with them.
"""

from __future__ import annotations

import contextlib
import ctypes
import pickle
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from func.errors import BabyAIError
from func.networks.published import FoldedUNet, can_fold, pruned, pruned_shapes, unet_shapes
from func.scans.files import atomic
from func.scans.provenance import digest

RECIPES = {
    "babyai": {
        "spatial_dims": 3,
        "in_channels": 2,
        "out_channels": 1,
        "channels": (32, 64, 128, 256, 512, 1024),
        "strides": (2, 2, 2, 2, 2),
        "num_res_units": 10,
        "norm": None,
    },
    "compact": {},
}
# The published network's file with only the taps that its patches need: another way to keep ``babyai``, not a recipe.
FOLDED = "babyai-folded"
NOT_WEIGHTS = "no PyTorch weights file, or only part of one: download or copy it again."


@dataclass(frozen=True)
class Weights:
    """A network ready to run on the CPU, and where it came from.

    ``recipe`` is one of ``RECIPES``, ``config`` what the file changes in it, ``info`` the training record the file
    carries (empty for a bare state_dict) and ``sha256`` the hexadecimal digest of the file. A file may hold a second,
    smaller network of the recipe, ``fast``, for large volumes where there is no GPU.
    """

    recipe: str
    network: nn.Module
    info: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    fast: nn.Module | None = None


def build_network(recipe: str, **overrides: Any) -> nn.Module:
    """The network of a recipe with fresh weights; ``overrides`` replace entries of the recipe's configuration.

    MONAI is imported only here and only for ``babyai``: that takes seconds, and reconstruction does without it.

    Raises:
        BabyAIError: there is no such recipe.
    """
    if recipe not in RECIPES:
        raise BabyAIError(f"There is no recipe {recipe!r}: use {' or '.join(RECIPES)}.")
    config = {**RECIPES[recipe], **overrides}
    if recipe == "babyai":
        from monai.networks.nets import UNet

        return UNet(**config)
    from func.networks.compact import CompactNet

    return CompactNet(**config)


def save_weights(
    path: str | Path,
    recipe: str,
    state_dict: Mapping[str, Tensor],
    info: Mapping[str, Any],
    config: Mapping[str, Any] | None = None,
    fast: tuple[Mapping[str, Tensor], Mapping[str, Any]] | None = None,
) -> None:
    """Write weights with all that is needed to use them: recipe, configuration and the training record ``info``.

    ``config`` is what differs from the recipe's own configuration. Both it and ``info`` hold plain values only
    (numbers, strings, lists, dictionaries), so that the file loads with ``weights_only=True``. ``fast`` are the
    tensors and the configuration of a second, smaller network.

    Raises:
        BabyAIError: the file could not be written.
    """
    content = {
        "recipe": recipe,
        "config": dict(config or {}),
        "state_dict": {name: tensor.detach().cpu() for name, tensor in state_dict.items()},
        "info": dict(info),
    }
    if fast:
        tensors, changes = fast
        content["fast"] = {"config": dict(changes), "state_dict": dict(tensors)}
    with atomic(path) as unfinished:
        try:
            torch.save(content, unfinished)
        except RuntimeError as error:  # PyTorch's own writer does not raise OSError
            raise BabyAIError(f"{path} could not be written: is the disk full, or the folder gone?") from error


def save_folded(path: str | Path, source: str | Path) -> None:
    """Write the ``babyai`` weights of the file ``source`` again, an eighth as large and many times faster to load.

    Raises:
        BabyAIError: ``source`` does not load, is not ``babyai``, or ``path`` could not be written.
    """
    source = Path(source)
    recipe, config, state_dict, info = _parts(source, _read(source))
    if recipe != "babyai":
        raise BabyAIError(f"{source} holds weights of {recipe}, not of babyai: only those have a folded form.")
    config = {**RECIPES[recipe], **config}
    _check_fit(source, recipe, unet_shapes(config), state_dict)
    info = {**info, "folded_from": source.name, "folded_from_sha256": digest(source)}
    save_weights(path, FOLDED, pruned(state_dict, config), info, config)


def load_weights(path: str | Path, folded: bool = True) -> Weights:
    """Read a weights file of any recipe, refusing whatever is not plain values and tensors.

    A bare state_dict must be the published network's, name by name and shape by shape. ``folded=False`` gives
    ``babyai`` as MONAI's own network, for training or comparison, instead of its exact fast form.

    Raises:
        BabyAIError: the file is missing, damaged, could run code, or does not fit; the sentence says which.
    """
    path = Path(path)
    content = _read(path)
    recipe, config, state_dict, info = _parts(path, content)
    with ThreadPoolExecutor(1) as beside:
        sha256 = beside.submit(digest, path)
        networks = [_network_of(path, recipe, config, state_dict, folded)]
        if isinstance(content, Mapping) and "fast" in content:
            second = _parts(path, {"recipe": recipe, **content["fast"]})
            networks.append(_network_of(path, *second[:3], folded))
        for network in networks:
            # A sum is finite only if all it adds up is, and takes a tenth of the time of asking each number.
            if not all(torch.isfinite(tensor.sum()) for tensor in network.state_dict().values()):
                raise BabyAIError(f"{path} holds weights that are not finite: training diverged, or it is damaged.")
        network, *more = (network.eval() for network in networks)
        return Weights(recipe.removesuffix("-folded"), network, info, sha256.result(), config, *more)


def _read(path: Path) -> Any:
    """What ``torch.save`` wrote to a file, if that is only plain values and tensors; the tensors stay on disk."""
    if not path.is_file():
        raise BabyAIError(f"There is no weights file {path}: check the path, or use --weights bundled.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        if not any(word in str(error) for word in ("Unsupported", "GLOBAL", "Trying to")):
            raise BabyAIError(f"{path} is {NOT_WEIGHTS}") from error
        raise BabyAIError(
            f"{path} holds Python objects, which could run code, and was not loaded: save network.state_dict() instead."
        ) from error
    except PermissionError as error:
        raise BabyAIError(f"{path} may not be read by you: change its permissions.") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise BabyAIError(f"{path} is {NOT_WEIGHTS}") from error


def _parts(path: Path, content: Any) -> tuple[str, dict[str, Any], Mapping[str, Tensor], dict[str, Any]]:
    """Recipe, configuration, state_dict and info of what a weights file held; a bare state_dict is ``babyai``'s."""
    ours = isinstance(content, Mapping) and {"recipe", "state_dict"} <= set(content)
    parts = content if ours else {"recipe": "babyai", "state_dict": content}
    recipe, state_dict = parts["recipe"], parts["state_dict"]
    if recipe not in (*RECIPES, FOLDED):
        raise BabyAIError(f"{path} is for the recipe {recipe!r}, which this version does not know: update BABY-AI.")
    if not isinstance(state_dict, Mapping) or not all(isinstance(value, Tensor) for value in state_dict.values()):
        raise BabyAIError(f"{path} holds no state_dict (tensors by name): save network.state_dict() to it.")
    config, info = parts.get("config") or {}, parts.get("info") or {}
    if not isinstance(config, Mapping) or not isinstance(info, Mapping):
        raise BabyAIError(f"{path} has a configuration that is no dictionary: write it with save_weights.")
    return recipe, dict(config), state_dict, dict(info)


def _network_of(path: Path, recipe: str, config: dict, state_dict: Mapping[str, Tensor], folded: bool) -> nn.Module:
    """The network of a recipe and configuration, holding the tensors of a file, which must fit exactly."""
    unet = {**RECIPES["babyai"], **config}
    try:
        if recipe == FOLDED or (recipe == "babyai" and folded and can_fold(unet)):
            _check_fit(path, recipe, _shapes(recipe, config), state_dict)
            network = FoldedUNet(state_dict, unet)
            # Left to itself, glibc keeps the quarter of a gigabyte that was needed on the way.
            with contextlib.suppress(AttributeError, OSError, TypeError):
                ctypes.CDLL(None).malloc_trim(0)
            return network
        # On the meta device nothing is allocated or drawn at random: the tensors of the file take the places.
        with torch.device("meta"):
            network = build_network(recipe, **config)
    except (TypeError, ValueError, KeyError) as error:
        raise BabyAIError(f"{path} has a configuration that {recipe} cannot be built from: {error}.") from error
    _check_fit(path, recipe, _shapes_of(network.state_dict()), state_dict)
    # Half precision keeps a file small; computing is in float32.
    network.load_state_dict({name: tensor.float() for name, tensor in state_dict.items()}, assign=True)
    return network


def _shapes(recipe: str, config: Mapping[str, Any] | None = None) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in the state_dict of a recipe."""
    if recipe == "compact":
        with torch.device("meta"):
            return _shapes_of(build_network(recipe, **(config or {})).state_dict())
    unet = {**RECIPES["babyai"], **(config or {})}
    return pruned_shapes(unet) if recipe == FOLDED else unet_shapes(unet)


def _shapes_of(state_dict: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state_dict.items()}


def _check_fit(path: Path, recipe: str, expected: dict[str, tuple[int, ...]], state_dict: Mapping[str, Tensor]) -> None:
    """Raise unless the tensors are exactly the expected ones, with what they do fit, or what differs."""
    found = _shapes_of(state_dict)
    if found == expected:
        return
    does_not_fit = f"{path} does not fit the recipe {recipe}"
    for other in (*RECIPES, FOLDED):
        if other != recipe and found == _shapes(other):
            raise BabyAIError(f"{does_not_fit} but {other}: write it with save_weights, which says so.")
    if {f"module.{name}" for name in expected} == set(found):
        raise BabyAIError(f"{does_not_fit}: it was saved from a parallel wrapper; save model.module.state_dict().")
    missing, foreign = expected.keys() - found.keys(), found.keys() - expected.keys()
    if missing or foreign:
        example = min(missing or foreign)
        raise BabyAIError(
            f"{does_not_fit}: of its {len(expected)} tensors {len(missing)} are missing, and {len(foreign)} others "
            f"are in the file ({example} is {'missing' if missing else 'foreign'}); use weights made for this recipe."
        )
    name = next(name for name in expected if found[name] != expected[name])
    raise BabyAIError(f"{does_not_fit}: {name} has the shape {found[name]}, not {expected[name]}; use other weights.")
