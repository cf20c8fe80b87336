"""A folder of weights that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def put_in_place(building: Path, target: Path) -> None:
    """Renames `building` to `target`; what stood there is moved aside first, so that a kill in between loses nothing."""
    aside = target.with_name(target.name + ".old")
    shutil.rmtree(aside, ignore_errors=True)
    if target.exists():
        os.replace(target, aside)  # noqa: PTH105
    os.replace(building, target)  # noqa: PTH105
    shutil.rmtree(aside, ignore_errors=True)
