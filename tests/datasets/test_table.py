"""Lists of path,label[,split]."""

import csv

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from kedge.datasets import load_dataset
from kedge.errors import DatasetError
from tests.pictures import draw_classes


@pytest.fixture
def rows(tmp_path):
    draw_classes(tmp_path / "pictures", ["a", "b"], each=10, size=8, seed=0)
    found = sorted((tmp_path / "pictures").rglob("*.png"))
    return [{"path": str(path.relative_to(tmp_path)), "label": f"class {path.parent.name}"} for path in found]


def write(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_csv_and_parquet_give_the_same(rows, tmp_path):
    by_csv = load_dataset(write(tmp_path / "list.csv", rows))
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "list.parquet")
    by_parquet = load_dataset(tmp_path / "list.parquet")
    assert by_csv.classes == by_parquet.classes == ("class a", "class b")
    assert by_csv.test.paths == by_parquet.test.paths
    assert (len(by_csv.gallery), len(by_csv.test)) == (16, 4)


def test_splits_of_the_list_are_kept(rows, tmp_path):
    for number, row in enumerate(rows):
        row["split"] = ("train", "train", "train", "val", "test")[number % 5]
    dataset = load_dataset(write(tmp_path / "list.csv", rows))
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (12, 4, 4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: [{"file": row["path"], "label": row["label"]} for row in rows], "no column 'path' .*file, label"),
        (lambda rows: [{**row, "label": ""} for row in rows], "row 1 has no label"),
        (lambda rows: [{**row, "split": "hold-out"} for row in rows], "split 'hold-out'"),
        (
            lambda rows: [{**row, "split": "train" if number else ""} for number, row in enumerate(rows)],
            "row 1 has no split",
        ),
    ],
)
def test_mistakes_name_the_row_or_column(rows, tmp_path, change, said):
    with pytest.raises(DatasetError, match=said):
        load_dataset(write(tmp_path / "list.csv", change(rows)))


def test_not_a_table(tmp_path):
    (tmp_path / "list.parquet").write_bytes(b"no table")
    with pytest.raises(DatasetError, match="cannot be read as a table"):
        load_dataset(tmp_path / "list.parquet")


def test_pictures_that_are_not_there_are_skipped_and_named(rows, tmp_path):
    rows.append({"path": "pictures/gone.png", "label": "class a"})
    dataset = load_dataset(write(tmp_path / "list.csv", rows))
    assert [failure.reason for failure in dataset.skipped] == ["No such file or directory"]
