"""Compare: every cell of a grid trained and measured, side by side, going on where it was stopped.

grid.json       all that was asked for so far; the lists in it may grow, the settings may not change
tries.csv       one row a try: settings, and what they reached on validation pictures
results.csv     one row a cell, written when the cell is measured: a cell is done when its row stands here
results.md      tables: mean ± standard deviation over seeds
report.html     the same with plots
models/         a model folder a cell
"""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from filelock import FileLock, Timeout

from kedge.atomic_write import clear_unfinished, write_atomically
from kedge.cell import classes_left
from kedge.config import READ_OUT
from kedge.csv_table import Row, put_row, read_header, read_rows
from kedge.datasets import PUBLISHED, load_dataset, place_of
from kedge.errors import ConfigError, DatasetError, InputError, KedgeError, first_line
from kedge.grid import Cell, Grid, Shots, name_of
from kedge.jobs import Job, OnRow, Runner
from kedge.losses import loss_recipe
from kedge.page import comparison_page, comparison_tables

__all__ = ["Comparison", "compare"]

GRID, TRIES, RESULTS, TABLES, PAGE, MODELS, LOCK = (
    "grid.json",
    "tries.csv",
    "results.csv",
    "results.md",
    "report.html",
    "models",
    ".lock",
)
FIGURES = ("map", "r1", "p20", "p100")
# Columns that say which cell a row is of, and which try.
KEY = ("dataset", "backbone", "loss", "shots", "seed")
TRIED = ("dataset", "loss", "settings")
# Figures without which a cell or a try is not measured.
VALIDATED = ("validation_l2_map", "validation_cosine_map")
RETRIEVED = (
    *(f"{way}_{figure}" for way in ("l2", "cosine", "probed_l2", "probed_cosine") for figure in FIGURES),
    *("probed_l2_scanned", "probed_cosine_scanned"),
)
MEASURED = ("learns_anchors", "epochs", "train_seconds", "step_ms", "memory_mb", *RETRIEVED)


@dataclass(frozen=True)
class Comparison:
    """What a comparison found: a row a cell, and the settings chosen by tries, by loss."""

    folder: Path
    rows: tuple[Row, ...]
    chosen: Mapping[str, Mapping[str, Any]]

    @property
    def failed(self) -> tuple[Row, ...]:
        """The rows of cells that failed, with their reason."""
        return tuple(row for row in self.rows if row.get("failure"))


@dataclass(frozen=True)
class _Work:
    """What is compared, where it is written, what runs it, and the fingerprints of data sets by place, where known."""

    grid: Grid
    out: Path
    runner: Runner
    pictures: Mapping[str, str]


def compare(
    grid: Grid,
    out: str | Path,
    *,
    parallel: int | None = None,
    keep_models: bool = True,
    on_row: OnRow | None = None,
) -> Comparison:
    """Train and measure every cell of a grid; what stands in `OUT/results.csv` already is not done again.

    parallel: how many cells run side by side, each with its share of the cores; None: one a GPU, else one. Cells that
    failed are tried again while they are asked for; where all have failed, OUT may be asked for something else.
    on_row(name, row, done, total) is called after each. Raises InputError before anything is written when OUT holds
    another comparison, or one that still runs, and DatasetError for a folder that cannot be trained on and measured.
    """
    out = Path(out)
    devices = torch.cuda.device_count()
    parallel = max(1, devices) if parallel is None else parallel
    if parallel < 1:
        raise ConfigError(f"--parallel cannot be {parallel}: give the number of cells to run side by side, from 1")
    begun = _begun(out)
    try:
        asked, nothing_kept = grid.after(begun), False
    except ConfigError:
        if not _all_failed(out):
            raise
        # What was asked for before could not be had: a mistake, which is not to be in the way of what is meant.
        asked, nothing_kept = grid.after(None), True
    grid = grid.model_copy(update={"tries": asked.tries})
    pictures = _check_data(grid, out)

    def shown(name: str, row: Row, done: int, total: int) -> None:
        # The pages grow with the table, for whoever looks while it runs.
        _write_pages(asked, grid, out)
        if on_row:
            on_row(name, row, done, total)

    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / LOCK, blocking=False):
            clear_unfinished(out)
            # First: without its failures the former grid could not be asked for something else.
            write_atomically(out / GRID, asked.model_dump_json(indent=2))
            if nothing_kept:
                shutil.rmtree(out / MODELS, ignore_errors=True)
                for table in (RESULTS, TRIES):
                    (out / table).unlink(missing_ok=True)
            for data in PUBLISHED.keys() & {*grid.datasets, grid.tries and grid.tries.dataset}:
                # Before several cells would all fetch it. One that cannot be had is told by its cells.
                with suppress(KedgeError):
                    PUBLISHED[data]()
            runner = Runner("kedge.cell", parallel, devices, shown)
            work = _Work(grid, out, runner, pictures)
            chosen, hopeless = _choose_settings(work) if grid.tries else ({}, {})
            try:
                _run_cells(work, chosen, hopeless, keep_models=keep_models)
                _clear_states(asked, out)
            finally:
                comparison = Comparison(out, tuple(_ordered(grid, read_rows(out / RESULTS))), chosen)
                _write_pages(asked, grid, out)
    except Timeout as error:
        raise InputError(f"another comparison writes to {out}: wait for it, or choose another --out") from error
    return comparison


def _begun(out: Path) -> Grid | None:
    """Return what OUT was asked for before, None where nothing was; raise InputError for what is no comparison."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file: --out names a folder")
    path = out / GRID
    if not path.is_file():
        # What a comparison leaves that was killed before it had begun.
        if out.exists() and any(each.name != LOCK and not each.match(".*.partial") for each in out.iterdir()):
            raise InputError(f"{out} holds something that is no comparison: choose another --out")
        return None
    for table, key in ((RESULTS, KEY), (TRIES, TRIED)):
        missing = set(key) - set(read_header(out / table))
        if missing and (out / table).is_file():
            raise InputError(f"{out / table} has no column '{min(missing)}' any more: put it back, or remove the file")
    try:
        begun = Grid.model_validate_json(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path} cannot be read ({first_line(error)}): choose another --out") from error
    for table, key in ((RESULTS, KEY), (TRIES, TRIED)):
        for row in read_rows(out / table):
            _check_row(out / table, key, row, unseen=begun.unseen_classes > 0)
    return begun


def _all_failed(out: Path) -> bool:
    """Tell whether all cells and tries that a comparison has come to have failed."""
    rows = [*read_rows(out / RESULTS), *read_rows(out / TRIES)]
    return bool(rows) and all(row.get("failure") for row in rows)


def _check_row(table: Path, key: Sequence[str], row: Row, *, unseen: bool) -> None:
    """Raise InputError for a row that does not say what it is of, or has no figures where others have them."""
    said = ", ".join(str(row.get(name, "?")) for name in key)
    shots = str(row.get("shots", "full"))
    wrong = next((name for name in key if name not in row), None)
    if wrong is None and not (shots == "full" or shots.isdecimal()):
        wrong = "shots"
    if wrong is None and not row.get("failure"):
        numbers = [*(MEASURED if table.name == RESULTS else VALIDATED)]
        for part, of_all in (("shots_", shots != "full"), ("unseen_", unseen)):
            numbers += [f"{part}{name}" for name in RETRIEVED if of_all and table.name == RESULTS]
        # Rows of earlier versions lack some figures: those that are there are numbers.
        numbers += [name for name in row if name == "left_out" or name.endswith(("_map", "_r1"))]
        wrong = next((name for name in numbers if not _is_number(row.get(name))), None)
        if wrong is None and table.name == RESULTS and row.get("distance") not in ("l2", "cosine"):
            wrong = "distance"
    if wrong is None:
        wrong = next((name for name in ("settings", "tried") if not _is_settings(row.get(name, "{}"))), None)
    if wrong:
        raise InputError(
            f"{table} says '{row.get(wrong, '')}' for '{wrong}' in the row of {said}: remove that row, and it is "
            "measured again"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and isfinite(value)


def _is_settings(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _check_data(grid: Grid, out: Path) -> dict[str, str]:
    """Return the fingerprints of the data sets that need not be fetched, by their places.

    Raises DatasetError for what no cell could be of, ConfigError when rows were measured on other pictures.
    """
    pictures = {}
    for data in grid.datasets:
        if data in PUBLISHED and not _pictures_of(out / RESULTS, data):
            continue  # It may have to be fetched first. What cannot be had is told by its cells.
        found = load_dataset(data, max_classes=grid.classes)
        if not len(found.test):
            raise DatasetError(
                f"{data} has no test pictures to measure with: put some below test/<class>/, or give a folder without "
                "train/, of which some are held out"
            )
        classes_left(found, grid.unseen_classes)
        pictures[place_of(data)] = found.fingerprint
    if grid.tries and grid.tries.dataset not in PUBLISHED:
        # Validation pictures are all that tries need. What cannot be had is told by those that are still open.
        with suppress(DatasetError):
            data = str(grid.tries.dataset)
            pictures.setdefault(data, load_dataset(data, max_classes=grid.classes).fingerprint)
    for table, sets in ((RESULTS, grid.datasets), (TRIES, [grid.tries.dataset] if grid.tries else [])):
        for data in map(str, sets):
            now = pictures.get(place_of(data))
            if now and _pictures_of(out / table, data) - {now}:
                raise ConfigError(f"the pictures of {data} have changed since {out} was begun: choose another --out")
    return pictures


def _pictures_of(table: Path, data: str) -> set[str]:
    """Return the fingerprints that the rows of a data set have, where they say one."""
    return {row["pictures"] for row in read_rows(table) if row["dataset"] == name_of(data) and row.get("pictures")}


def _run_cells(work: _Work, chosen: Mapping[str, Any], hopeless: Mapping[str, str], *, keep_models: bool) -> None:
    """Train and measure the cells whose rows do not stand, by the settings chosen for each loss."""
    grid, out = work.grid, work.out
    rows = _measured(out)
    cells = grid.cells()

    def is_done(cell: Cell) -> bool:
        """Tell whether its row stands, of the settings that its loss's tries have chosen, if they have chosen any."""
        tried = _said(chosen.get(cell.loss, {}))
        return cell in rows and (cell.loss in hopeless or rows[cell].get("tried", tried) == tried)

    def job(cell: Cell) -> Row:
        settings = {**grid.settings_of(cell.loss), "seed": cell.seed}
        if cell.backbone != "auto":
            settings["backbone"] = cell.backbone
        if cell.shots != "full":
            settings["shots"] = cell.shots
        return {
            "validate": False,
            "data": grid.data(cell.dataset),
            "out": str(out / MODELS / cell.name),
            "settings": settings,
            "tried": chosen.get(cell.loss, {}),
            "unseen_classes": grid.unseen_classes,
            "pictures": work.pictures.get(place_of(grid.data(cell.dataset))),
        }

    def keep(cell: Cell, state: Path, others: set[Cell], measured: Row) -> Row:
        row = {**asdict(cell), "failure": "", "tried": _said(chosen.get(cell.loss, {})), **measured}
        put_row(out / RESULTS, row, KEY)
        if not row["failure"]:
            others.discard(cell)
            if not others:
                shutil.rmtree(state, ignore_errors=True)
            if not keep_models:
                shutil.rmtree(out / MODELS / cell.name, ignore_errors=True)
        return row

    networks: dict[str, list[Job]] = {}
    first_of: dict[str, str] = {}
    open_of: dict[str, set[Cell]] = {}
    for cell in cells:
        told = job(cell)
        # Cells that differ in what is stored of their network alone have it trained once, by the first of them.
        by = {name: value for name, value in told["settings"].items() if name not in READ_OUT}
        first = first_of.setdefault(_said({**told, "out": "", "settings": by}), cell.name)
        # A try that had failed may win later: what was begun with other settings is left alone.
        mark = f"-{_number(told['tried'])}" if told["tried"] else ""
        state = out / MODELS / f"{first}{mark}.partial"
        if cell.loss in hopeless and not is_done(cell):
            reason = f"none of its tries succeeded: {hopeless[cell.loss]}"
            put_row(out / RESULTS, {**asdict(cell), "failure": reason, "tried": _said({})}, KEY)
        elif not is_done(cell):
            if told["tried"]:
                # It may be of other settings too. What is of these is made of its state again.
                shutil.rmtree(out / MODELS / cell.name, ignore_errors=True)
            told = {**told, "state": str(state)}
            still_open = open_of.setdefault(first, set())
            still_open.add(cell)
            networks.setdefault(first, []).append(Job(cell.name, told, partial(keep, cell, state, still_open)))
    work.runner.run([*networks.values()], len(cells) - sum(map(len, networks.values())), len(cells))


def _clear_states(asked: Grid, out: Path) -> None:
    """Once all that was asked for so far is measured, remove what was begun: by tries that failed, or before a kill."""
    if {*asked.cells()} <= _measured(out).keys():
        for state in (out / MODELS).glob("*.partial"):
            shutil.rmtree(state, ignore_errors=True)


def _choose_settings(work: _Work) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Return for each loss the settings that reached most on validation pictures, stage by stage of its tries.

    Settings that the grid gives are not tried. Beside that, for a loss whose tries have all failed, why the last did.
    """
    grid, out = work.grid, work.out
    assert grid.tries is not None
    plans: dict[str, list[list[dict[str, Any]]]] = {}
    for name in dict.fromkeys(grid.losses):
        given = {**grid.settings_of(name), **grid.tries.settings}
        plans[name] = [
            [{setting: value for setting, value in tried.items() if setting not in given} for tried in stage]
            for stage in loss_recipe(str(given["loss"])).tries()
        ]
    hopeless: dict[str, str] = {}
    best: dict[str, dict[str, Any]] = {name: {} for name in plans}
    reached = dict.fromkeys(plans, -1.0)
    finished = 0
    for number in range(max(len(plan) for plan in plans.values())):
        rows = _tries_done(out)
        # A loss's own settings may be among those that all try: once is enough.
        wanted = list(
            {
                (name, _said(tried)): (name, tried)
                for name, plan in plans.items()
                if number < len(plan) and name not in hopeless
                for tried in ({**best[name], **settings} for settings in plan[number])
            }.values()
        )
        open_tries = [
            (name, settings)
            for name, settings in wanted
            if (name, _said(settings)) not in rows or rows[name, _said(settings)].get("failure")
        ]
        to_come = sum(len(stage) for plan in plans.values() for stage in plan[number + 1 :])
        jobs = [[_try(work, name, settings)] for name, settings in open_tries]
        work.runner.run(jobs, finished + len(wanted) - len(jobs), finished + len(wanted) + to_come)
        finished += len(wanted)
        rows = _tries_done(out)
        for name, settings in wanted:
            row = rows[name, _said(settings)]
            score = -1.0 if row.get("failure") else max(row["validation_l2_map"], row["validation_cosine_map"])
            if score > reached[name]:
                reached[name], best[name] = score, settings
        for name, settings in wanted:
            if reached[name] < 0:
                hopeless[name] = str(rows[name, _said(settings)]["failure"])
    return {name: settings for name, settings in best.items() if name not in hopeless}, hopeless


def _tries_done(out: Path) -> dict[tuple[str, str], Row]:
    return {(row["loss"], row["settings"]): row for row in read_rows(out / TRIES)}


def _try(work: _Work, name: str, settings: Mapping[str, Any]) -> Job:
    grid, out = work.grid, work.out
    assert grid.tries is not None
    data, backbone = str(grid.tries.dataset), grid.tries.backbone  # filled in by `Grid.after`
    folder = out / MODELS / f"try-{name}-{_number(settings)}"
    given = {**grid.settings_of(name), **grid.tries.settings, "seed": 0}
    if backbone != "auto":
        given["backbone"] = backbone
    job: Row = {"validate": True, "data": data, "out": str(folder), "settings": given, "tried": settings}
    job |= {"unseen_classes": grid.unseen_classes, "pictures": work.pictures.get(data)}

    def keep(measured: Row) -> Row:
        row = {"dataset": name_of(data), "loss": name, "settings": _said(settings), "failure": "", **measured}
        put_row(out / TRIES, row, TRIED)
        shutil.rmtree(folder, ignore_errors=True)
        return row

    return Job(f"{name}, trying {_said(settings)}", job, keep)


def _said(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)


def _number(settings: Mapping[str, Any]) -> str:
    """Return what tells settings apart in the name of a folder."""
    return f"{crc32(_said(settings).encode()):08x}"


def _measured(out: Path) -> dict[Cell, Row]:
    return {_cell_of(row): row for row in read_rows(out / RESULTS) if not row.get("failure")}


def _cell_of(row: Row) -> Cell:
    shots = row["shots"]
    shown: Shots = "full" if shots == "full" else int(shots)
    return Cell(row["dataset"], row["backbone"], row["loss"], shown, row["seed"])


def _ordered(grid: Grid, rows: Iterable[Row]) -> list[Row]:
    """Return the grid's rows in its order, the last of each cell."""
    of_cell = {_cell_of(row): row for row in rows}
    return [of_cell[cell] for cell in grid.cells() if cell in of_cell]


def _write_pages(asked: Grid, grid: Grid, out: Path) -> None:
    """Write the tables of all that was asked for so far, be it by other calls; of failures, those asked for now."""
    now = {*grid.cells()}
    found = _ordered(asked, read_rows(out / RESULTS))
    rows = [row for row in found if not row.get("failure") or _cell_of(row) in now]
    title = f"Losses compared on {', '.join(name_of(data) for data in asked.datasets)}"
    write_atomically(out / TABLES, comparison_tables(rows, asked.variants))
    write_atomically(out / PAGE, comparison_page(title, rows, asked.variants))
