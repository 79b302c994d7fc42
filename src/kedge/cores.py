"""Cores: how many of the machine's a process may use."""

import os

__all__ = ["own_cores"]


def own_cores() -> int:
    """Return OMP_NUM_THREADS where it is given, else the number of cores that the process may use.

    Whoever runs several processes side by side says by the former how many threads each may take. A container's share
    of the cores and those that a batch system binds a process to are heeded.
    """
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdecimal() and int(given):
        return int(given)
    from joblib import cpu_count

    return int(cpu_count())
