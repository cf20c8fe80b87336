"""A folder of weights that appears whole or not at all, and never by accident in the place of one that ships."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import stage1_encoder
import stage2_relations
from training.loop import TrainingError

# Where weights and adapters ship.
PACKAGES = tuple(Path(folder).resolve() for package in (stage1_encoder, stage2_relations) for folder in package.__path__)


def refuse_shipped(target: Path, *, setting: str, replace: bool) -> None:
    """Weights inside the installed package are replaced only when that is said; before anything is trained.

    Args:
        target: A file or folder that a command is about to write.
        setting: What names it in the settings.

    Raises:
        TrainingError: it exists, lies inside the package, and `replace` is false.
    """
    if not replace and target.exists() and any(target.resolve().is_relative_to(package) for package in PACKAGES):
        raise TrainingError(
            f"{target}: ships with radtag; name another folder under '{setting}' in the settings, or give --replace"
        )


def put_in_place(building: Path, target: Path) -> None:
    """Renames `building` to `target`; what stood there is moved aside first, so that a kill in between loses nothing."""
    aside = target.with_name(target.name + ".old")
    shutil.rmtree(aside, ignore_errors=True)
    if target.exists():
        os.replace(target, aside)  # noqa: PTH105
    os.replace(building, target)  # noqa: PTH105
    shutil.rmtree(aside, ignore_errors=True)
