"""The settings that decide the outcome of a run: their options, and a check of them before any work is done."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from func.errors import BabyAIError
from func.networks.compact import MULTIPLE
from func.networks.weights import RECIPES, build_network, load_weights
from func.training.trainable import sample_shape

Settings = dict[str, Any]

MEANINGS = {
    "seed": "picks the split, the fresh weights and the samples",
    "batch_size": "samples a step, over all processes",
    "epochs": "how often the data are gone through",
    "learning_rate": "the peak",
    "warm_up": "steps until the learning rate is at its peak",
    "floor": "what the learning rate falls to, over its peak",
    "clip": "largest norm of the gradient",
    "averaging": "decay of the running mean of the weights; 0: none",
    "patch": "voxels along a side of a sample, a multiple of 8",
    "samples_per_subject": "in an epoch",
    "turned": "copies of each subject, turned and scaled, to learn from as well",
    "head_share": "of the subjects' samples, set into heads (--heads)",
    "without_t1": "share of the samples that have no T1w",
    "phantoms": "digital infants to learn from as well",
    "shapes": "volumes of random shapes to learn from as well",
    "invented_share": "of the samples, from --extra-t1, phantoms and shapes in equal parts",
}

_Rule = tuple[Callable[[Any], bool], str]


def _whole_from(least: int) -> _Rule:
    return lambda value: isinstance(value, int) and value >= least, f"a whole number from {least}"


_SHARE = (lambda value: 0 <= value <= 1, "between 0 and 1")
_POSITIVE = (lambda value: value > 0, "above 0")
RULES: dict[str, _Rule] = {
    "log_every": _whole_from(1),
    "checkpoint_every": _whole_from(1),
    "workers": _whole_from(0),
    "steps": _whole_from(1),
    "hours": _POSITIVE,
    "validate_every": _whole_from(1),
    "seed": _whole_from(0),
    "batch_size": _whole_from(1),
    "epochs": _whole_from(1),
    "learning_rate": (lambda value: 0 < value < math.inf, "above 0"),
    "warm_up": _whole_from(0),
    "floor": _SHARE,
    "clip": _POSITIVE,
    "averaging": (lambda value: 0 <= value < 1, "from 0 to below 1"),
    "patch": (lambda value: value > 0 and value % MULTIPLE == 0, f"a multiple of {MULTIPLE}"),
    "samples_per_subject": _whole_from(1),
    "turned": _whole_from(0),
    "head_share": _SHARE,
    "without_t1": _SHARE,
    "phantoms": _whole_from(0),
    "shapes": _whole_from(0),
    "invented_share": _SHARE,
}


def add_settings(parser: argparse.ArgumentParser, recipe: str, settings: Mapping[str, Settings]) -> None:
    """Options for the settings of all recipes, as a group of the parser; ``recipe`` is the default one."""
    group = parser.add_argument_group("settings of the run (kept when it is resumed)")
    add = group.add_argument
    add("--recipe", choices=tuple(settings), help=f"default: {recipe}")
    add("--network", type=_json, metavar="JSON", help='changes to the network, as {"channels": [16, 32, 48]}')
    add("--init-weights", metavar="FILE", help="weights to start from, of the same recipe (fine-tuning)")
    add("--steps", type=int, metavar="N", help="number of steps, instead of epochs")
    add("--hours", type=float, metavar="H", help="of training, validation not counted, instead of epochs or steps")
    add("--validate-every", type=int, metavar="STEPS", help="default: an epoch")
    add(
        "--subject-weights",
        type=_json,
        metavar="JSON",
        help='how often subjects are drawn, as {"B06": 6} (default: 1)',
    )
    add("--extra-t1", nargs="+", metavar="FILE", help="whole heads of which there is a T1w only, for pseudo-pairs")
    add("--heads", nargs="+", metavar="FILE", help="T1w scans of whole heads, to set brain-extracted subjects into")
    for name, meaning in MEANINGS.items():
        defaults = {recipe: values[name] for recipe, values in settings.items() if name in values}
        shown = ", ".join(f"{recipe} {value:g}" for recipe, value in defaults.items())
        kind = type(next(iter(defaults.values())))
        add(option(name), type=kind, metavar="N", help=f"{meaning} (default: {shown})")


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is no JSON ({error}); quote it as a whole for the shell") from None


def given_settings(arguments: argparse.Namespace, settings: Mapping[str, Settings], common: Settings) -> Settings:
    """The settings that the command line states.

    Raises:
        BabyAIError: one of them is of another recipe only.
    """
    names = {*common, *MEANINGS}
    given = {name: value for name, value in vars(arguments).items() if name in names and value is not None}
    recipe = given.get("recipe", common["recipe"])
    for name in given:
        if name not in common and name not in settings[recipe]:
            raise BabyAIError(f"{option(name)} is not for the recipe {recipe}; leave it out.")
    return given


def option(name: str) -> str:
    """The option that states a setting."""
    return "--" + name.replace("_", "-")


def check_values(values: Mapping[str, Any]) -> None:
    """Refuse numbers that make no sense, by RULES.

    Raises:
        BabyAIError: the first of them.
    """
    for name, (fits, wanted) in RULES.items():
        value = values.get(name)
        if value is not None and not (isinstance(value, int | float) and fits(value)):
            raise BabyAIError(f"{option(name)} is {value}, but must be {wanted}.")


def check_settings(settings: Settings, parts: Mapping[str, str], processes: int) -> None:
    """Refuse settings with which a run would fail later.

    Args:
        settings: of a run, complete.
        parts: the part of each subject.
        processes: how many train together.

    Raises:
        BabyAIError: the first setting that does not fit.
    """
    check_values(settings)
    if settings["steps"] and settings.get("hours"):
        raise BabyAIError("--steps and --hours both say how long the run is; leave one of them out.")
    if settings["batch_size"] % processes:
        raise BabyAIError(
            f"A batch of {settings['batch_size']} cannot be shared by {processes} processes; set --batch-size."
        )
    _check_network(settings)
    _check_subject_weights(settings["subject_weights"], parts)
    for name in ("extra_t1", "heads"):
        for path in settings[name]:
            if not Path(path).is_file():
                raise BabyAIError(f"There is no file {path}, which {option(name)} names.")


def network_of(path: str, settings: Settings) -> dict:
    """The changes to the recipe's network in a weights file to start from.

    Raises:
        BabyAIError: the file is of another recipe, or of another network than ``settings`` state.
    """
    weights = load_weights(path)
    if weights.recipe != settings["recipe"]:
        raise BabyAIError(
            f"{path} holds weights of {weights.recipe}; give --recipe {weights.recipe}, or other weights."
        )
    recipe = RECIPES[weights.recipe]
    # A file, and a command line, hold lists where the recipe has tuples.
    config, stated = (json.loads(json.dumps(recipe | changes)) for changes in (weights.config, settings["network"]))
    if settings["network"] and stated != config:
        raise BabyAIError(f"{path} holds weights of the network {json.dumps(config)}; leave --network out.")
    return dict(weights.config)


def _check_network(settings: Settings) -> None:
    """Build the network without its memory and run it on the smallest input that it must be able to take."""
    changes, recipe = settings["network"], settings["recipe"]
    if not isinstance(changes, Mapping):
        raise BabyAIError(f'--network is {json.dumps(changes)}, but must be as {{"channels": [16, 32, 48]}}.')
    channels, *size = sample_shape({"recipe": recipe, "patch": MULTIPLE})
    try:
        with torch.device("meta"):
            output = build_network(recipe, **changes)(torch.empty(1, channels, *size))
        if output.shape != (1, 1, *size):
            raise ValueError(f"its output would have the shape {tuple(output.shape)}")
    except (TypeError, ValueError, IndexError, KeyError, RuntimeError, AssertionError, ZeroDivisionError) as error:
        raise BabyAIError(
            f"The recipe {recipe} cannot be built with --network {json.dumps(changes)}: {str(error).splitlines()[0]}."
        ) from None


def _check_subject_weights(weights: Any, parts: Mapping[str, str]) -> None:
    if not isinstance(weights, Mapping):
        raise BabyAIError(f'--subject-weights is {json.dumps(weights)}, but must be as {{"B06": 6}}.')
    trained_on = sorted(label for label, part in parts.items() if part == "train")
    for label, weight in weights.items():
        if label not in trained_on:
            raise BabyAIError(f"--subject-weights names {label}, but is trained on are {', '.join(trained_on)}.")
        if not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise BabyAIError(f"--subject-weights gives {label} {json.dumps(weight)}, but must give numbers from 0.")
    if not any(weights.get(label, 1) for label in trained_on):
        raise BabyAIError("--subject-weights leaves no subject to train on; give one of them more than 0.")
