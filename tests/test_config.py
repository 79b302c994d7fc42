"""Settings are closed: what is unknown or impossible is named."""

import pytest

from kedge.config import TrainingConfig
from kedge.errors import ConfigError


def test_unknown_setting_names_the_nearest():
    with pytest.raises(ConfigError, match=r"'learning_rat'.*'learning_rate'"):
        TrainingConfig.of({"learning_rat": 0.1})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("dim", -1),
        ("distance", "hamming"),
        ("features", "all"),
        ("shots", 0),
        ("margin", float("inf")),
        ("scale", float("nan")),
        ("epochs", True),
        ("epochs", "20"),
        ("epochs", 20.5),
        ("flip", "yes"),
        ("loss", 3),
    ],
)
def test_impossible_value_names_the_setting(name, value):
    with pytest.raises(ConfigError, match=name):
        TrainingConfig.of({name: value})


def test_preset_sets_and_flags_go_over_it():
    config = TrainingConfig.of({"preset": "paper-like", "margin": 3.0})
    assert (config.loss, config.margin, config.weight_decay) == ("cam", 3.0, 0.02)
    with pytest.raises(ConfigError, match="paper-like"):
        TrainingConfig.of({"preset": "paperlike"})
    with pytest.raises(ConfigError, match="of the loss cam, not cosface"):
        TrainingConfig.of({"preset": "paper-like", "loss": "cosface"})


def test_toml_file(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('loss = "cam"\nepochs = 3\n')
    assert TrainingConfig.of(TrainingConfig.read(path)).epochs == 3
    path.write_text("loss = ")
    with pytest.raises(ConfigError, match=r"run\.toml"):
        TrainingConfig.read(path)
    with pytest.raises(ConfigError, match="no settings file"):
        TrainingConfig.read(tmp_path / "none.toml")
