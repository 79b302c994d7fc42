"""Grids: read from TOML and flags, checked before anything runs."""

from datetime import date
from pathlib import Path

import pytest

from kedge.errors import ConfigError, DatasetError
from kedge.grid import Cell, Grid, name_of


def test_cells_are_every_combination_seed_by_seed():
    grid = Grid.of({"datasets": ["digits"], "losses": ["cam", "triplet"], "shots": ["full", 5], "seeds": [3, 1]})
    names = [cell.name for cell in grid.cells()]
    assert len(names) == len(set(names)) == 8
    assert grid.cells()[0] == Cell("digits", "resnet10-half", "cam", "full", 3)
    assert [cell.seed for cell in grid.cells()] == [3] * 4 + [1] * 4


def test_a_toml_file_names_folders_beside_it(tmp_path):
    (tmp_path / "photos").mkdir()
    path = tmp_path / "grid.toml"
    path.write_text(
        'datasets = ["photos", "digits"]\nlosses = ["cam", "read-out"]\n[settings]\nepochs = 2\n'
        '[variants.read-out]\nloss = "cross-entropy"\nfeatures = "softmax"\n[tries]\ndataset = "photos"\n'
    )
    grid = Grid.of(Grid.read(path))
    assert grid.datasets == (str(tmp_path / "photos"), "digits")
    assert grid.tries.dataset == str(tmp_path / "photos")
    assert grid.settings_of("read-out") == {"loss": "cross-entropy", "features": "softmax", "epochs": 2}
    assert grid.settings_of("cam") == {"loss": "cam", "epochs": 2}
    assert grid.data("photos") == str(tmp_path / "photos")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('datasets = [["digits"]]', "'datasets.0' of the grid cannot be"),
        ('datasets = ["digits"]\n[tries]\ndataset = ["digits"]', "'tries.dataset' of the grid cannot be"),
    ],
)
def test_a_file_with_lists_in_the_place_of_names_is_refused(tmp_path, text, said):
    (tmp_path / "grid.toml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        Grid.of(Grid.read(tmp_path / "grid.toml"))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"dataset": ["digits"]}, "no 'dataset'.*did you mean 'datasets'"),
        ({"datasets": []}, "datasets"),
        ({"losses": ["cosfase"]}, "did you mean 'cosface'"),
        ({"losses": ["mime"], "variants": {"mine": {"loss": "cam"}}}, "did you mean 'mine'"),
        ({"losses": "cam"}, r'write losses = \["cam"\]'),
        ({"seeds": 3}, r"write seeds = \[3\]"),
        ({"seeds": ["0-2"]}, "seeds cannot be '0-2': give numbers from 0"),
        ({"epochs": 3}, r"'epochs' is a setting of cells: it stands below \[settings\]"),
        ({"tries": {"epochs": 3}}, r"'epochs' is a setting of tries: it stands below \[tries.settings\]"),
        ({"tries": {}, "settings": {"validation_share": 0}}, "tries need validation pictures"),
        ({"variants": {"cam": {"loss": "cross-entropy"}}}, "cannot be called 'cam'"),
        ({"variants": {"../mine": {"loss": "cam"}}}, "cannot be called '../mine': begin with a letter"),
        ({"variants": {"_mine": {"loss": "cam"}}}, "cannot be called '_mine': begin with a letter"),
        ({"shots": [True]}, "shots cannot be True"),
        ({"seeds": [False]}, "seeds cannot be False"),
        ({"settings": {"epoch": 3}}, "did you mean 'epochs'"),
        ({"settings": {"seed": 3}}, "'seed' stands in the grid's settings"),
        ({"variants": {"mine": {"loss": "cam", "shots": 3}}}, "'shots' stands"),
        ({"losses": ["mine"], "variants": {"mine": {"loss": "nothing"}}}, "no loss is named 'nothing'"),
        ({"variants": {"cam": {"margin": 2.0}}}, "the variant 'cam' names no loss"),
        ({"losses": ["cam", "triplet"], "settings": {"scale": 2.0}}, "'scale' is no setting of the loss cam"),
        ({"losses": ["mine"], "variants": {"mine": {"loss": "none", "margin": 2.0}}}, "it has none of the kind"),
        ({"tries": {"settings": {"loss": "cam"}}}, "'loss' stands in the grid's settings"),
        ({"shots": [0]}, "shots cannot be 0"),
        ({"shots": ["few"]}, "shots cannot be 'few': give numbers from 1, or full"),
        ({"seeds": [-1]}, "a seed cannot be -1"),
        ({"seeds": [2**40]}, "a seed cannot be"),
        ({"tries": True}, "'tries' of the grid cannot be True"),
        ({"backbones": ["resnt18"]}, "did you mean 'resnet18'"),
        (
            {"losses": ["cam"], "settings": {"preset": "paper-like"}},
            "'paper-like' names a loss, so it cannot be a setting",
        ),
        ({"tries": {"settings": {"preset": "paper-like"}}}, "make it a variant"),
        ({"variants": {"mine": {"preset": ["paper-like"]}}}, "no preset is named"),
        ({"unseen_classes": -1}, "unseen_classes"),
        ({"classes": 1}, "'classes' of the grid cannot be 1"),
        ({"classes": "5"}, "'classes' of the grid cannot be '5'"),
        ({"unseen_classes": True}, "'unseen_classes' of the grid cannot be True"),
        ({"seeds": date(1979, 5, 27)}, r'write seeds = \["1979-05-27"\]'),
        ({"losses": ["cam"], "variants": {"unused": {"loss": "kam"}}}, "did you mean 'cam'"),
        ({"settings": {"classes": 20}}, "'classes' stands in the grid's settings"),
    ],
)
def test_mistakes_are_named(values, said):
    with pytest.raises(ConfigError, match=said):
        Grid.of({"datasets": ["digits"], **values})


def test_a_variant_may_be_a_preset():
    grid = Grid.of({"datasets": ["digits"], "losses": ["paper"], "variants": {"paper": {"preset": "paper-like"}}})
    assert grid.settings_of("paper") == {"loss": "cam", "margin": 2.0, "weight_decay": 0.02}


def test_a_data_set_is_called_as_its_folder_or_its_list(tmp_path):
    (tmp_path / "photos.v2").mkdir()
    (tmp_path / "list.csv").write_text("path,label\n")
    assert name_of(str(tmp_path / "photos.v2")) == "photos.v2"
    assert name_of(str(tmp_path / "list.csv")) == "list"
    (tmp_path / "photos.v2").rmdir()  # as when it was moved away after it was measured
    assert name_of(str(tmp_path / "photos.v2")) == "photos.v2"
    assert name_of("digits") == "digits"


def test_missing_data_and_equal_names_are_named(tmp_path):
    with pytest.raises(DatasetError, match="did you mean 'digits'"):
        Grid.of({"datasets": ["digit"]})
    for side in ("left", "right"):
        (tmp_path / side / "photos").mkdir(parents=True)
    with pytest.raises(ConfigError, match="two data sets are called 'photos'"):
        Grid.of({"datasets": [str(tmp_path / side / "photos") for side in ("left", "right")]})
    once = tmp_path / "left" / "photos"
    twice = Grid.of({"datasets": [str(once), str(once / ".." / "photos")]})
    assert twice.after(None).cells() == Grid.of({"datasets": [str(once)]}).cells()


@pytest.mark.parametrize("text", ['datasets = [""]', 'datasets = ["digits"]\n[tries]\ndataset = " "'])
def test_an_empty_name_is_no_folder(tmp_path, text):
    (tmp_path / "grid.toml").write_text(text)
    with pytest.raises(DatasetError, match=r"no data at ' ?'"):
        Grid.of(Grid.read(tmp_path / "grid.toml"))


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[1] / "grids").glob("*.toml")), ids=lambda path: path.name
)
def test_shipped_grids_can_be_run(path):
    grid = Grid.of({"datasets": ["digits"], **Grid.read(path)})
    assert len(grid.cells()) >= 18
