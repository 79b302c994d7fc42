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
        (lambda rows: [{**row, "path": ""} for row in rows], "row 1 has no path"),
        (lambda rows: [{"path": row["path"]} for row in rows], "no column 'label' .*it has: path"),
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


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("list.parquet", b"no table", "cannot be read as a table"),
        ("list.csv", "path,label\ncafé.png,a".encode("latin-1"), "cannot be read as a table .*UTF-8"),
        ("list.csv", b'path,label\n"a.png,b', "cannot be read as a table"),
        ("list.csv", b"", "no column 'path' .it has: none"),
        ("list.csv", b"path,label,label\na.png,a,b\n", "has the column 'label' twice"),
        ("list.csv", b"path,label\n", "lists no picture"),
        ("list.csv", b"path,label\na.png", "row 1 has no label"),
    ],
)
def test_not_a_list(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetError, match=said) as found:
        load_dataset(tmp_path / name)
    assert "\n" not in str(found.value)


def test_other_columns_are_named_but_not_read(rows, tmp_path):
    table = pa.Table.from_pylist([{"file": row["path"], "label": row["label"], "embedding": [0.0]} for row in rows])
    parquet.write_table(table, tmp_path / "list.parquet")
    with pytest.raises(DatasetError, match=r"no column 'path' .*file, label, embedding"):
        load_dataset(tmp_path / "list.parquet")
    parquet.write_table(table.rename_columns(["path", "label", "embedding"]), tmp_path / "LIST.PARQUET")
    assert len(load_dataset(tmp_path / "LIST.PARQUET").gallery) == 16


def test_labels_may_be_numbers_and_paths_absolute(rows, tmp_path):
    listed = [{"path": str(tmp_path / row["path"]), "label": int("b" in row["label"])} for row in rows]
    (tmp_path / "elsewhere").mkdir()
    parquet.write_table(pa.Table.from_pylist(listed), tmp_path / "elsewhere" / "list.parquet")
    dataset = load_dataset(tmp_path / "elsewhere" / "list.parquet")
    assert dataset.classes == ("0", "1")
    assert dataset.skipped == ()


def test_parquet_of_other_kinds_of_columns(rows, tmp_path):
    paths = [row["path"] for row in rows]
    labels = pa.array([row["label"].encode() for row in rows])
    parquet.write_table(pa.table({"path": paths, "label": labels}), tmp_path / "list.parquet")
    assert load_dataset(tmp_path / "list.parquet").classes == ("class a", "class b")
    numbers = pa.array([float("nan"), *[1.0] * (len(rows) - 1)])
    parquet.write_table(pa.table({"path": paths, "label": numbers}), tmp_path / "list.parquet")
    with pytest.raises(DatasetError, match="row 1 has no label"):
        load_dataset(tmp_path / "list.parquet")
    twice = pa.Table.from_arrays([pa.array(paths)] * 2 + [labels], names=["path", "path", "label"])
    parquet.write_table(twice, tmp_path / "list.parquet")
    with pytest.raises(DatasetError, match="has the column 'path' twice"):
        load_dataset(tmp_path / "list.parquet")


def test_byte_order_mark_of_spreadsheets(rows, tmp_path):
    path = write(tmp_path / "list.csv", rows)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_dataset(path).classes == ("class a", "class b")


def test_pictures_that_are_not_there_are_skipped_and_named(rows, tmp_path):
    rows.append({"path": "pictures/gone.png", "label": "class a"})
    dataset = load_dataset(write(tmp_path / "list.csv", rows))
    assert [failure.reason for failure in dataset.skipped] == ["no such file"]
