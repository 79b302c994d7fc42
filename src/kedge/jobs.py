"""Jobs: lists of work for processes of their own, some side by side, and the row of each as soon as it is there."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Event

from kedge.cores import own_cores
from kedge.csv_table import Row

__all__ = ["Job", "OnRow", "Runner"]

OnRow = Callable[[str, Row, int, int], None]


@dataclass(frozen=True)
class Job:
    """What a process of a module is told, and what is done with the row that it answers."""

    name: str
    told: Row
    keep: Callable[[Row], Row]


@dataclass(frozen=True)
class Runner:
    """Runs lists of jobs, each list in a process of its own that runs `module`, `parallel` at a time.

    A job that ends its process has failed; those after it in its list have another process.
    """

    module: str
    parallel: int
    devices: int
    on_row: OnRow

    def run(self, lists: Sequence[Sequence[Job]], done: int, total: int) -> None:
        """Run all jobs, of `total` of which so many are done; at a KeyboardInterrupt all processes end."""
        running: set[subprocess.Popen[str]] = set()
        places = list(range(self.parallel))
        arrived: SimpleQueue[tuple[Job, Row] | BaseException] = SimpleQueue()
        stopped = Event()

        def work(jobs: Sequence[Job]) -> None:
            open_jobs = list(jobs)
            try:
                while open_jobs and not stopped.is_set():
                    for row in self._one([job.told for job in open_jobs], places, running):
                        arrived.put((open_jobs.pop(0), row))
            except BaseException as error:
                arrived.put(error)

        with ThreadPoolExecutor(self.parallel) as pool:
            futures = [pool.submit(work, jobs) for jobs in lists]
            try:
                # Each row is kept as soon as it is there, by this thread alone.
                for _ in range(sum(map(len, lists))):
                    found = arrived.get()
                    if isinstance(found, BaseException):
                        raise found
                    job, measured = found
                    row = job.keep(measured)
                    done += 1
                    self.on_row(job.name, row, done, total)
            except BaseException:
                stopped.set()
                for future in futures:
                    future.cancel()
                # Until none is left: one may be starting just now.
                while not all(future.done() for future in futures):
                    for process in list(running):
                        process.kill()
                    wait(futures, timeout=0.1)
                raise

    def _one(self, told: list[Row], places: list[int], running: set[subprocess.Popen[str]]) -> Iterator[Row]:
        place = places.pop()
        threads = str(max(1, own_cores() // self.parallel))
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        if self.devices:
            # Those that this process may use: it may have been given some of the machine's alone.
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[: self.devices]
            environment["CUDA_VISIBLE_DEVICES"] = visible[place % len(visible)] or str(place % self.devices)
        process = _started(["-m", self.module], environment)
        running.add(process)
        try:
            yield from _answer(process, told)
        finally:
            running.discard(process)
            places.append(place)


def _started(arguments: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start a Python process; what libraries say in it need not be UTF-8."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        env=environment,
    )


def _answer(process: subprocess.Popen[str], told: list[Row]) -> Iterator[Row]:
    """Yield the rows that a process prints; if it ends before the last, then a failure with what it said last."""
    assert process.stdin and process.stdout and process.stderr
    with process, ThreadPoolExecutor(1) as reader:
        said = reader.submit(process.stderr.read)
        with suppress(BrokenPipeError):
            # Left open: its end tells the process that nobody waits for it any more.
            process.stdin.write(json.dumps(told) + "\n")
            process.stdin.flush()
        answered = 0
        for line in process.stdout:
            # A line without its end was cut off by whatever ended the process.
            if line.endswith("\n"):
                answered += 1
                yield json.loads(line)
        code = process.wait()
        last = (said.result().strip().splitlines() or [""])[-1]
    reason = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
    if answered < len(told):
        yield {"failure": f"{reason}: {last}" if last else reason}
