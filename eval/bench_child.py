"""`python -m eval.bench_child FILE COMMAND…`: runs a command and writes what it and its children took, as JSON.

A process of its own, small: on Linux a child's peak memory begins with that of the process that started it.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

MEMORY_UNIT = 2**20 if sys.platform == "darwin" else 2**10  # of ru_maxrss, to MiB


def main(file: str, *command: str) -> int:
    """The command's exit status."""
    begin_s = time.perf_counter()
    status = subprocess.call(command)
    wall_s = time.perf_counter() - begin_s
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    taken = {"wall_s": wall_s, "cpu_s": used.ru_utime + used.ru_stime, "peak_memory_mib": used.ru_maxrss / MEMORY_UNIT}
    Path(file).write_text(json.dumps(taken), encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
