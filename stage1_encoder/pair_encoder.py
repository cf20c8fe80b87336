"""The trained pair encoder at work: which values a report gives a subject, one window of one subject a run of ONNX Runtime."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from configs.schema import Task
from stage1_encoder.encoder import TOKENIZER_FILE, EncoderError, open_session, run_window
from stage1_encoder.pairs import PairColumns, PairCut
from stage1_encoder.tokenizer import ReportTokenizer, TokenizerError

PAIRS_FILE = "pairs.onnx"
PAIRS_CONFIG_FILE = "pairs.json"
FORMAT_VERSION = 1


class PairConfig(BaseModel):
    """What pairs.json says beside the weights.

    Attributes:
        subjects, values: Each subject with its values, and all values, in the order of the task: what logits and marks stand for
            (pairs.PairColumns).
        trained: Where the weights come from: names and sha256; `tokenizer` and `model`, those of the files, are needed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    format_version: int = Field(default=FORMAT_VERSION, ge=FORMAT_VERSION, le=FORMAT_VERSION)
    task: str
    subjects: dict[str, list[str]] = Field(min_length=1)
    values: list[str]
    window_tokens: int = Field(ge=8)
    overlap_tokens: int = Field(ge=0)
    trained: dict[str, str]

    def to_json(self) -> str:
        """The content of pairs.json."""
        return json.dumps(self.model_dump(), indent=1) + "\n"


def has_pairs(folder: Path) -> bool:
    """Whether a weights folder holds a pair encoder beside the flags."""
    return (folder / PAIRS_FILE).is_file()


def pairs_hash(folder: Path) -> str | None:
    """sha256 of everything in a weights folder that decides pair odds; None where it holds no pair encoder."""
    if not has_pairs(folder):
        return None
    names = (PAIRS_FILE, PAIRS_CONFIG_FILE, TOKENIZER_FILE)
    return hashlib.sha256(b"".join(hashlib.sha256(_bytes(folder / name)).digest() for name in names)).hexdigest()


class PairEncoder:
    """A SubjectReader over ONNX Runtime.

    Attributes:
        token_counts: `stage1_pairs_read`: tokens of all windows read so far, a window a subject.
    """

    def __init__(self, session: onnxruntime.InferenceSession, cut: PairCut) -> None:
        self._session, self._cut, self._columns = session, cut, cut.columns
        self.token_counts = {"stage1_pairs_read": 0}

    @classmethod
    def load(cls, folder: Path, *, task: Task) -> PairEncoder:
        """Reads pairs.onnx, pairs.json and tokenizer.json.

        Raises:
            EncoderError: a file is missing or damaged, or the three do not belong together or not to the task.
        """
        path, config_path = folder / PAIRS_FILE, folder / PAIRS_CONFIG_FILE
        try:
            config = PairConfig.model_validate_json(_bytes(config_path))
            tokenizer = ReportTokenizer.load(folder / TOKENIZER_FILE)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "content"
            raise EncoderError(f"{config_path}: {where}: {first['msg']}") from None
        except TokenizerError as error:
            raise EncoderError(str(error)) from None
        if config.trained.get("tokenizer") != hashlib.sha256(_bytes(folder / TOKENIZER_FILE)).hexdigest():
            raise EncoderError(f"{folder / TOKENIZER_FILE}: is not the tokenizer that {PAIRS_CONFIG_FILE} names")
        if config.trained.get("model") != hashlib.sha256(_bytes(path)).hexdigest():
            raise EncoderError(f"{path}: is not the model that {PAIRS_CONFIG_FILE} names; they are of two trainings")
        columns = PairColumns.of(task)
        trained_on = [(key, tuple(values)) for key, values in config.subjects.items()], tuple(config.values)
        if trained_on != (list(columns.subjects.items()), columns.values):
            raise EncoderError(f"{config_path}: subjects and values of task '{config.task}' are not those of task '{task.name}'")
        return cls(open_session(path, made_by="pairs"), PairCut(tokenizer, task, config.window_tokens, config.overlap_tokens))

    def read(self, text: str, subjects: Sequence[str]) -> Mapping[str, Mapping[str, float]]:
        """By subject, the log-odds of each value, the maximum over the text's windows; subjects without values are left out.

        Raises:
            FloatingPointError: a logit that is no finite number.
        """
        asked = [subject for subject in subjects if subject in self._columns.subjects]
        if not asked:
            return {}
        found = {}
        for subject, windows in self._cut.windows(text, asked).items():
            rows = [run_window(self._session, window, self._columns.n_marks) for window in windows]
            self.token_counts["stage1_pairs_read"] += sum(len(window.ids) for window in windows)
            odds = np.max(rows, axis=0)
            if not np.isfinite(odds).all():
                raise FloatingPointError("a logit of the pair encoder is no finite number")
            found[subject] = {value: float(odds[self._columns.value(value)]) for value in self._columns.subjects[subject]}
        return found


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        maker = "finetune" if path.name == TOKENIZER_FILE else "pairs"
        raise EncoderError(f"{path}: cannot be read: {error.strerror}; `radtag train {maker} CONFIG.yaml` makes it") from None
