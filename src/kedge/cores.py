"""Cores: how many of the machine's a process may use."""

import os

__all__ = ["own_cores"]


def own_cores() -> int:
    """Return OMP_NUM_THREADS where it is given, else the number of cores.

    Whoever runs several processes side by side says by it how many threads each may take.
    """
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() and int(given) else os.cpu_count() or 1
