"""The networks: their recipes, and weights read from and written to files.

Two recipes. `babyai` is the published network, MONAI's residual `UNet` without normalisation; inference runs it in the
exact fast form of `func.folding`, which needs no MONAI. `compact` is the network of this repository, `func.compact`.
A file of published weights is a bare state_dict; ours carry their recipe, configuration and training record with them.
"""

import hashlib
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from func.errors import BabyAIError
from func.folding import FoldedUNet, unet_shapes
from func.volumes import atomic

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
NOT_WEIGHTS = "is not a PyTorch weights file, or only a part of one: download or copy it again"


@dataclass(frozen=True)
class Weights:
    """A network ready to run, and where it came from.

    `recipe` is one of `RECIPES`; `info` is the training record the file carries (empty for a bare state_dict);
    `sha256` is the hexadecimal digest of the file.
    """

    recipe: str
    network: torch.nn.Module
    info: dict = field(default_factory=dict)
    sha256: str = ""


def build_network(recipe, **overrides):
    """The network of a recipe with fresh weights; `overrides` replace entries of the recipe's configuration.

    MONAI is imported here, when `babyai` is really built: it takes seconds, and reconstruction does without it.
    """
    if recipe not in RECIPES:
        raise BabyAIError(f"There is no recipe {recipe!r}; the recipes are {' and '.join(RECIPES)}.")
    config = {**RECIPES[recipe], **overrides}
    if recipe == "babyai":
        from monai.networks.nets import UNet

        return UNet(**config)
    from func.compact import CompactNet

    return CompactNet(**config)


def save_weights(path, recipe, state_dict, info, config=None):
    """Write weights with what is needed to use them: recipe, configuration and the training record `info`.

    `config` holds what differs from the recipe's own configuration; `info` may hold only plain values (numbers,
    strings, lists, dictionaries), so that the file loads with `weights_only=True`.
    """
    content = {
        "recipe": recipe,
        "config": dict(config or {}),
        "state_dict": {name: tensor.detach().cpu() for name, tensor in state_dict.items()},
        "info": dict(info),
    }
    with atomic(path) as unfinished:
        torch.save(content, unfinished)


def load_weights(path, folded=True):
    """Read a weights file of any recipe, refusing everything that is not plain tensors.

    A bare state_dict must be the published network's, name by name and shape by shape. `folded=False` gives `babyai`
    as MONAI's own network, for training or comparison, instead of its exact fast form. The network comes in
    evaluation mode on the CPU.
    """
    path = Path(path)
    recipe, config, state_dict, info = _parts(path, _read(path))
    if recipe == "babyai":
        config = {**RECIPES["babyai"], **config}
        _check_fit(path, recipe, unet_shapes(config), state_dict)
    if recipe == "babyai" and folded:
        network = FoldedUNet(state_dict, config)
    else:
        network = _filled(path, recipe, config, state_dict)
    if not all(torch.isfinite(tensor).all() for tensor in network.state_dict().values()):
        raise BabyAIError(f"{path} holds weights that are not finite numbers: its training diverged, or it is damaged.")
    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return Weights(recipe.removesuffix("-folded"), network.eval(), info, sha256)


def _read(path):
    """What `torch.save` wrote to `path`, if it is only plain values and tensors; large tensors stay on disk."""
    if not path.is_file():
        raise BabyAIError(f"There is no weights file {path}: check the path, or use --weights bundled.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "GLOBAL" in str(error):
            raise BabyAIError(
                f"{path} holds Python objects, which could run code when loaded, so it was not read: "
                "save the network's state_dict() instead of the network."
            ) from error
        raise BabyAIError(f"{path} {NOT_WEIGHTS}.") from error
    except PermissionError as error:
        raise BabyAIError(f"{path} may not be read by this user: change its permissions.") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise BabyAIError(f"{path} {NOT_WEIGHTS}.") from error


def _parts(path, content):
    """Recipe, configuration, state_dict and info of what a weights file held; a bare state_dict is `babyai`'s."""
    bare = not (isinstance(content, Mapping) and {"recipe", "state_dict"} <= set(content))
    parts = {"recipe": "babyai", "state_dict": content} if bare else content
    recipe, state_dict = parts["recipe"], parts["state_dict"]
    config, info = parts.get("config") or {}, parts.get("info") or {}
    if not isinstance(state_dict, Mapping) or not all(
        isinstance(tensor, torch.Tensor) for tensor in state_dict.values()
    ):
        raise BabyAIError(f"{path} holds no state_dict (tensors by name): save network.state_dict() to it.")
    if recipe not in (*RECIPES, "babyai-folded"):
        raise BabyAIError(f"{path} is for the recipe {recipe!r}, which this version does not know: update BABY-AI.")
    return recipe, dict(config), state_dict, dict(info)


def _filled(path, recipe, config, state_dict):
    """The network of a recipe and configuration holding the tensors of the state_dict, which must fit exactly."""
    try:
        # on the meta device nothing is allocated or drawn at random: the tensors of the file take their places
        with torch.device("meta"):
            network = FoldedUNet(**config) if recipe == "babyai-folded" else build_network(recipe, **config)
    except (TypeError, ValueError, KeyError) as error:
        raise BabyAIError(f"{path} has a configuration that {recipe} does not understand: {error}.") from error
    _check_fit(path, recipe, {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}, state_dict)
    network.load_state_dict(state_dict, assign=True)
    return network


def _check_fit(path, recipe, expected, state_dict):
    """Raise unless the tensors are exactly the expected ones; the message says what differs, or what they would fit."""
    found = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    if found == expected:
        return
    for other in RECIPES:
        if other != recipe and found == _shapes(other):
            raise BabyAIError(
                f"{path} holds weights of the recipe {other}, not {recipe}: write them with save_weights."
            )
    if found and {name.removeprefix("module.") for name in found} == set(expected):
        raise BabyAIError(f"{path} was saved from a DataParallel wrapper: save model.module.state_dict() instead.")
    missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    differing = [name for name in expected if name in found and found[name] != expected[name]]
    if missing or extra:
        why = f"{len(missing)} of its {len(expected)} tensors are missing and {len(extra)} do not belong to it"
        why += f" ({(missing or extra)[0]}, for one)"
    else:
        name = differing[0]
        why = f"{name} has shape {found[name]}, not {expected[name]}"
    raise BabyAIError(f"{path} does not fit the recipe {recipe}: {why}.")


def _shapes(recipe):
    """Name and shape of every tensor of a recipe's own configuration."""
    if recipe == "babyai":
        return unet_shapes(RECIPES["babyai"])
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in build_network(recipe).state_dict().items()}
