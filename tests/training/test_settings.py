"""What makes no sense is refused before any work, in one sentence."""

import json

import pytest

import training
from func.errors import BabyAIError
from func.training.settings import check_settings, check_values, given_settings

PARTS = {"A01": "train", "A02": "train", "A03": "validation", "A04": "test"}


def settings_with(recipe="compact", **changes):
    return training.COMMON | training.SETTINGS[recipe] | {"recipe": recipe} | changes


@pytest.mark.parametrize("recipe", ["compact", "babyai"])
def test_the_settings_of_both_recipes_make_sense(recipe):
    check_settings(settings_with(recipe), PARTS, processes=4)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"patch": 50}, "--patch is 50, but must be a multiple of 8"),
        ({"patch": 0}, "--patch"),
        ({"steps": 0}, "--steps is 0, but must be a whole number from 1"),
        ({"validate_every": -3}, "--validate-every"),
        ({"learning_rate": float("nan")}, "--learning-rate"),
        ({"learning_rate": float("inf")}, "--learning-rate"),
        ({"averaging": 1.0}, "--averaging"),
        ({"floor": 1.5}, "--floor"),
        ({"clip": 0.0}, "--clip"),
        ({"invented_share": -0.1}, "--invented-share"),
        ({"seed": -1}, "--seed"),
        ({"batch_size": 3}, "cannot be shared by 2 processes"),
        ({"network": [16, 32]}, "--network is [16, 32]"),
        ({"network": {"chanels": [16, 32, 48]}}, "chanels"),
        ({"network": {"channels": [16, 32], "blocks": [1]}}, "--network"),
        ({"network": {"channels": []}}, "--network"),
        ({"network": {"channels": ["a", "b", "c"]}}, "--network"),
        ({"network": {"channels": [4, 4, 4, 4], "blocks": [1, 1, 1, 1]}}, "--network"),
        ({"subject_weights": [1, 2]}, "--subject-weights is [1, 2]"),
        ({"subject_weights": {"A09": 2}}, "--subject-weights names A09, but is trained on are A01, A02"),
        ({"subject_weights": {"A04": 2}}, "--subject-weights names A04"),
        ({"subject_weights": {"A01": -1}}, "--subject-weights gives A01 -1"),
        ({"subject_weights": {"A01": "often"}}, "--subject-weights gives A01"),
        ({"subject_weights": {"A01": 0, "A02": 0}}, "--subject-weights leaves no subject"),
        ({"extra_t1": ["nowhere.nii.gz"]}, "nowhere.nii.gz, which --extra-t1"),
        ({"heads": ["nowhere.nii.gz"]}, "nowhere.nii.gz, which --heads"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, words):
    with pytest.raises(BabyAIError) as refused:
        check_settings(settings_with(**changes), PARTS, processes=2)
    assert words in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "changes", [{"in_channels": 3}, {"strides": [2, 2]}, {"channels": [2, 3, 4, 5, 6, 7, 8], "strides": [2] * 6}]
)
def test_a_network_that_cannot_take_the_published_patches_is_refused(changes):
    with pytest.raises(BabyAIError, match="babyai cannot be built"):
        check_settings(settings_with("babyai", network=changes), PARTS, processes=1)


@pytest.mark.parametrize("name", ["log_every", "checkpoint_every"])
def test_how_often_is_at_least_once(name):
    with pytest.raises(BabyAIError, match="whole number from 1"):
        check_values({name: 0})
    check_values({name: 1})


def test_only_what_the_command_line_states_is_given():
    arguments = training.parse_arguments(["--patch", "48", "--network", json.dumps({"channels": [8, 8, 8]})])
    given = given_settings(arguments, training.SETTINGS, training.COMMON)
    assert given == {"patch": 48, "network": {"channels": [8, 8, 8]}}


def test_a_setting_of_the_other_recipe_is_refused():
    arguments = training.parse_arguments(["--recipe", "babyai", "--patch", "48"])
    with pytest.raises(BabyAIError, match="--patch is not for the recipe babyai"):
        given_settings(arguments, training.SETTINGS, training.COMMON)


@pytest.mark.parametrize("option", ["--network", "--subject-weights"])
def test_what_is_no_json_is_refused(option, capsys):
    with pytest.raises(SystemExit) as stopped:
        training.parse_arguments([option, "{channels: [16]}"])
    assert stopped.value.code == 2 and f"argument {option}: {{channels: [16]}} is no JSON" in capsys.readouterr().err
