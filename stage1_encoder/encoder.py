"""The trained encoder at work: ONNX Runtime on the processor, one window of a report a run.

A run holds one window without padding: nothing is computed for tokens that are not there, every report gets the same flags in any
company, and threads work on different windows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path

import numpy as np
import onnxruntime

from configs.contracts import EntityFlags
from configs.schema import Task, load_task
from stage1_encoder.flags import CONFIG_FILE, FlagConfig, FlagConfigError, flags_of
from stage1_encoder.marks import MarkedWindow, WindowCut, mark_matrix
from stage1_encoder.tokenizer import ReportTokenizer, TokenizerError

MODEL_FILE = "model.onnx"
TOKENIZER_FILE = "tokenizer.json"
WEIGHTS_FOLDER = Path(__file__).parent / "weights"


class EncoderError(Exception):
    """A weights folder that cannot be used; the message names the file and what makes it."""


def default_weights(task_name: str) -> Path:
    """Where the weights of a task that ships with radtag lie. The folder need not exist."""
    return WEIGHTS_FOLDER / task_name


def weights_hash(folder: Path) -> str:
    """`Encoder.content_hash` of the weights in a folder, without loading them. Raises EncoderError when a file is missing."""
    return _content_hash([hashlib.sha256(path.read_bytes()).digest() for path in _weights_files(folder)])


def _weights_files(folder: Path) -> list[Path]:
    paths = [folder / name for name in (MODEL_FILE, TOKENIZER_FILE, CONFIG_FILE)]
    for path in paths:
        if not path.is_file():
            raise EncoderError(f"{path}: file does not exist; `radtag train finetune CONFIG.yaml` makes it")
    return paths


def _content_hash(digests: Sequence[bytes]) -> str:
    return hashlib.sha256(b"".join(digests)).hexdigest()


class Encoder:
    """A Flagger over ONNX Runtime.

    Attributes:
        keys: The entity keys.
        content_hash: sha256 of everything that decides the flags.
        token_counts: `stage1_read`: tokens of all windows read so far, their first and last and what windows share included.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        cut: WindowCut,
        config: FlagConfig,
        *,
        content_hash: str,
        threads: int,
    ) -> None:
        self._session = session
        self._cut = cut
        self._config = config
        self._threads = threads
        self.keys = config.keys
        self.content_hash = content_hash
        self.token_counts = {"stage1_read": 0}

    @classmethod
    def load(cls, folder: Path, *, task: Task | None = None, threads: int = 1) -> Encoder:
        """Reads model.onnx, tokenizer.json and config.json.

        Args:
            task: Whose keywords mark the text, with the keys of the weights; None means the known task that config.json names.
            threads: Windows that run at the same time; the flags do not depend on it.

        Raises:
            EncoderError: a file is missing or damaged, or the three do not belong together or not to the task.
            ConfigError: there is no such task.
        """
        if threads < 1:
            raise EncoderError(f"threads is {threads}; at least 1 is expected")
        paths = _weights_files(folder)
        try:
            config = FlagConfig.load(paths[2])
            tokenizer = ReportTokenizer.load(paths[1])
        except (FlagConfigError, TokenizerError) as error:
            raise EncoderError(str(error)) from None
        session = open_session(paths[0])
        n_logits = session.get_outputs()[0].shape[-1]
        if n_logits != len(config.keys):
            raise EncoderError(
                f"{paths[0]}: gives {n_logits} logits, but {CONFIG_FILE} has {len(config.keys)} keys; they are of two trainings"
            )
        digests = [hashlib.sha256(path.read_bytes()) for path in paths]
        if config.trained["tokenizer"] != digests[1].hexdigest():
            raise EncoderError(f"{paths[1]}: is not the tokenizer that {CONFIG_FILE} names; they are of two trainings")
        task = task or load_task(config.task)
        if config.keys != task.keys:
            raise EncoderError(f"{folder}: weights of task '{config.task}'; their keys are not those of task '{task.name}'")
        cut = WindowCut(tokenizer, task, config.window_tokens, config.overlap_tokens)
        return cls(session, cut, config, content_hash=_content_hash([part.digest() for part in digests]), threads=threads)

    @property
    def task_name(self) -> str:
        """The task whose keys these weights flag."""
        return self._config.task

    def flag(self, texts: Sequence[str]) -> list[EntityFlags]:
        """One result a text, in order. A text of several windows has a key when one of its windows has it."""
        return [flags_of(row.tolist(), self._config) for row in self.logits(texts)]

    def logits(self, texts: Sequence[str]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        """Uncalibrated logits [texts, keys], the maximum over each text's windows.

        Raises:
            FloatingPointError: a logit that is no finite number; it would end as a probability that no record can hold.
        """
        if not texts:
            return np.zeros((0, len(self.keys)), dtype=np.float32)
        windows = [self._cut.windows(text) for text in texts]
        flat = [window for of_text in windows for window in of_text]
        if self._threads == 1:
            rows = [self._run(window) for window in flat]
        else:
            with ThreadPoolExecutor(self._threads) as pool:
                rows = list(pool.map(self._run, flat))
        self.token_counts["stage1_read"] += sum(len(window.ids) for window in flat)
        stacked = np.stack(rows)
        if not np.isfinite(stacked).all():
            raise FloatingPointError(f"window {int(np.argwhere(~np.isfinite(stacked))[0][0])} has a logit that is no finite number")
        starts = [0, *accumulate(len(of_text) for of_text in windows)][:-1]
        maxima: np.ndarray[tuple[int, int], np.dtype[np.float32]] = np.maximum.reduceat(stacked, starts, axis=0)
        return maxima

    def _run(self, window: MarkedWindow) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        return run_window(self._session, window, len(self.keys))


def run_window(
    session: onnxruntime.InferenceSession, window: MarkedWindow, n_marks: int
) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """The logits [keys] of one window."""
    inputs = {"token_ids": np.array([window.ids], dtype=np.int64), "marks": mark_matrix(window, n_marks)[None]}
    row: np.ndarray[tuple[int], np.dtype[np.float32]] = session.run(None, inputs)[0][0]
    return row


def open_session(path: Path, *, made_by: str = "finetune") -> onnxruntime.InferenceSession:
    """A session on one thread of the processor. Raises EncoderError, with `radtag train MADE_BY`, when the file is damaged."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - ONNX Runtime raises a dozen unrelated classes for a damaged file
        raise EncoderError(
            f"{path}: is damaged or no ONNX model: {type(error).__name__}; `radtag train {made_by} CONFIG.yaml` makes it anew"
        ) from None
