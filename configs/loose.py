"""What may tell a value where no keyword does: loose wordings of the task file, and sizes that a report compares."""

from __future__ import annotations

from configs.comparisons import compared_sizes
from configs.cues import load_cues
from configs.mentions import Mention, loose_wordings
from configs.schema import Task


def loose_value_mentions(task: Task, text: str) -> list[Mention]:
    """By position; the same words may stand for several values."""
    found = loose_wordings(task, text)
    course = load_cues().of(task).course
    if course is not None:
        found += compared_sizes(text, course.measured)
    return sorted(found, key=lambda mention: (mention.span, mention.name))
