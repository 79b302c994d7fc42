"""Cores: how many of the machine's a process may use."""

import os

__all__ = ["own_cores"]


def own_cores() -> int:
    """Return OMP_NUM_THREADS where it is given, else the number of cores that the process may use.

    Whoever runs several processes side by side says by it how many threads each may take.
    """
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdecimal() and int(given):
        return int(given)
    # Batch systems and containers bind a process to some of the cores; not every system can say to which.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
