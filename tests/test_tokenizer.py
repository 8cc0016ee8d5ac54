"""Tokenizers loaded, built from old files or trained give the ids of transformers' own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refusal

from mlmlab.data.config import TokenizerKind
from mlmlab.data.tokenizer import (
    BERT_SPECIALS,
    ROBERTA_SPECIALS,
    Tokenizer,
    load_tokenizer,
    train_tokenizer,
    word_tokenizer,
)
from mlmlab.errors import Code

TRICKY = [
    "",
    " ",
    "\n\n\t ",
    "Hello, world!",
    "  leading and   inner  spaces ",
    "line\r\nbreaks\nand\ttabs",
    "naïve café Crème brûlée",
    "e\u0301 against \u00e9",
    "ÀÉÎÕÜ ß ẞ İ ı",
    "日本語のテキスト mixed 中文",
    "русский текст и ελληνικά",
    "עברית وعربي",
    "emoji 🙂👩‍👩‍👧🇩🇪 done",
    "zero\u200bwidth \u200djoiner \ufeffmark",
    "no\u00a0break \u2009thin \u3000wide",
    "line\u2028separator \x85next",
    "control \x00\x01\x1f\x7f characters",
    "private \ue000 \U000f0000 unassigned \U000e0fff",
    "don't can't we'll I'm o'clock",
    "http://example.org/a?b=c&d=e#f user@host.net",
    "1,234.56 3e-10 0x1F ½ ²",
    "C++ c# $100 50% ~tilde ^caret `tick`",
    "---___...!!!???",
    "(nested [brackets {here}])",
    "supercalifragilisticexpialidocious" * 4,
    "a" * 300,
    "The <mask> and [MASK] tokens",
    "  <mask>  [MASK]  ",
    "<s>spelled</s> [CLS] out [SEP] <pad>[PAD] <unk> [UNK]",
    "word<mask>word[MASK]word",
    "<MASK> [mask] < mask > [ MASK ]",
    "ünïts of mëasure — “quotes” ‘single’ … ellipsis",
]

CORPUS = [*TRICKY[3:26], "the quick brown fox jumps over the lazy dog", "Masks hide words. " * 3]


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_tokenizer(CORPUS, TokenizerKind.BPE, 400)


@pytest.fixture(scope="module")
def wordpiece() -> Tokenizer:
    return train_tokenizer(CORPUS, TokenizerKind.WORDPIECE, 300)


def write_vocabulary(folder: Path, tokens: list[str], **hub_config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    if hub_config:
        (folder / "tokenizer_config.json").write_text(json.dumps(hub_config))
    return folder


def wordpiece_tokens(wordpiece: Tokenizer, *more: str) -> list[str]:
    vocabulary = wordpiece.backend.get_vocab()
    return [*sorted(vocabulary, key=lambda token: vocabulary[token]), *more]


def edited_file(tokenizer: Tokenizer, file: Path, **changes: Any) -> Path:
    """tokenizer.json with some of its parts replaced."""
    file.write_text(json.dumps({**json.loads(tokenizer.fingerprint()), **changes}))
    return file


# Loaded


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_a_tokenizer_json_gives_the_ids_of_the_library(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    tokenizer.save(tmp_path)
    reference = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = load_tokenizer(path)
        assert loaded.encode_batch(TRICKY) == [reference.encode(text).ids for text in TRICKY]
        assert [loaded.encode(text) for text in TRICKY] == loaded.encode_batch(TRICKY)


@pytest.mark.parametrize(
    "hub_config",
    [
        {"do_lower_case": True},
        {"do_lower_case": False},
        {"do_lower_case": False, "model_max_length": 512},  # multilingual BERT's
        {"do_lower_case": True, "strip_accents": False},
        {"do_lower_case": False, "strip_accents": True, "tokenize_chinese_chars": False},
    ],
)
def test_a_vocab_txt_gives_the_ids_of_transformers(
    wordpiece: Tokenizer, tmp_path: Path, hub_config: dict[str, Any]
) -> None:
    import transformers

    tokens = wordpiece_tokens(
        wordpiece, "Crème", "é", "creme", "crème", "日本", "line\u2028x", "end"
    )
    folder = write_vocabulary(tmp_path, tokens, **hub_config)
    vocabulary = {token: number for number, token in enumerate(tokens)}
    reference = transformers.BertTokenizer(vocab=vocabulary, **hub_config)
    loaded = load_tokenizer(folder)
    assert loaded.encode_batch(TRICKY) == reference(TRICKY)["input_ids"]
    assert loaded.encode_batch(TRICKY) == load_tokenizer(folder / "vocab.txt").encode_batch(TRICKY)


@pytest.mark.parametrize("prefix_space", [False, True])
def test_vocab_json_and_merges_give_the_ids_of_transformers(
    bpe: Tokenizer, tmp_path: Path, prefix_space: bool
) -> None:
    import transformers

    model = json.loads(bpe.fingerprint())["model"]
    merges: Any = [tuple(pair) for pair in model["merges"]]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (tmp_path / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_prefix_space": prefix_space}))
    # The published files have a mask that swallows the space before it.
    mask: Any = tokenizers.AddedToken("<mask>", lstrip=True, special=True, normalized=False)
    reference = transformers.RobertaTokenizer(
        vocab=model["vocab"], merges=merges, mask_token=mask, add_prefix_space=prefix_space
    )
    loaded = load_tokenizer(tmp_path)
    assert loaded.encode_batch(TRICKY) == reference(TRICKY)["input_ids"]
    assert load_tokenizer(tmp_path / "vocab.json").encode_batch(TRICKY) == loaded.encode_batch(
        TRICKY
    )
    assert loaded.roles["mask_token"] == "<mask>"


def test_a_vocabulary_without_capitals_means_lower_cased_text(tmp_path: Path) -> None:
    small = [*BERT_SPECIALS, "[unused0]", "word", "##s"]
    assert load_tokenizer(write_vocabulary(tmp_path / "a", small)).encode("Words") == [2, 6, 7, 3]
    cased = load_tokenizer(write_vocabulary(tmp_path / "b", [*small, "Word"]))
    assert cased.encode("Words words") == [2, 8, 7, 6, 7, 3]


def test_the_file_that_is_named_is_read_and_none_beside_it(
    bpe: Tokenizer, wordpiece: Tokenizer, tmp_path: Path
) -> None:
    folder = write_vocabulary(tmp_path, wordpiece_tokens(wordpiece), do_lower_case=True)
    (folder / "tokenizer.json").write_text(bpe.fingerprint(), encoding="utf-8")
    assert load_tokenizer(folder / "vocab.txt").encode_batch(TRICKY) == wordpiece.encode_batch(
        TRICKY
    )
    assert load_tokenizer(folder).encode_batch(TRICKY) == bpe.encode_batch(TRICKY)


def test_truncation_and_padding_of_a_file_are_cleared(bpe: Tokenizer, tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer.from_str(bpe.fingerprint())
    backend.enable_truncation(8)
    backend.enable_padding(length=8)
    backend.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path)
    assert loaded.encode_batch(TRICKY) == bpe.encode_batch(TRICKY)
    assert max(map(len, loaded.encode_batch(TRICKY))) > 8


# Roles


def test_roles_come_from_the_files_and_else_from_the_usual_names(
    bpe: Tokenizer, wordpiece: Tokenizer, tmp_path: Path
) -> None:
    bert = {"mask": "[MASK]", "pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]", "unk": "[UNK]"}
    roberta = {"mask": "<mask>", "pad": "<pad>", "cls": "<s>", "sep": "</s>", "unk": "<unk>"}
    assert wordpiece.roles == {f"{role}_token": token for role, token in bert.items()}
    assert bpe.roles == {f"{role}_token": token for role, token in roberta.items()}

    named = tmp_path / "named"
    named.mkdir()
    edited_file(word_tokenizer(["gap", "stop", "word"]), named / "tokenizer.json")
    (named / "tokenizer_config.json").write_text(json.dumps({"mask_token": "gap"}))
    (named / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": {"content": "stop", "lstrip": False}, "mask_token": "<mask>"})
    )
    roles = load_tokenizer(named).roles
    assert (roles["mask_token"], roles["eos_token"]) == ("gap", "stop")
    assert "bos_token" not in roles


def test_every_special_token_is_protected(bpe: Tokenizer, tmp_path: Path) -> None:
    assert bpe.vocabulary().protected_ids == (0, 1, 2, 3, 4)
    assert bpe.vocabulary().mask_id == bpe.mask_id == ROBERTA_SPECIALS.index("<mask>")
    assert bpe.vocabulary().size == bpe.vocabulary_size == 400
    assert bpe.pad_id == 1

    more = tokenizers.Tokenizer.from_str(bpe.fingerprint())
    more.add_special_tokens(["<extra>"])
    more.add_tokens(["ordinary"])
    more.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "the"}))
    vocabulary = load_tokenizer(tmp_path).vocabulary()
    the = more.get_vocab()["the"]
    assert vocabulary.size == 402
    assert vocabulary.protected_ids == tuple(sorted({0, 1, 2, 3, 4, the, 400}))


def test_without_a_padding_token_another_special_one_pads() -> None:
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "m": 1, "e": 2}, "a"))
    assert Tokenizer(backend, {"mask_token": "m", "eos_token": "e"}).pad_id == 2
    assert Tokenizer(backend, {"mask_token": "m"}).pad_id == 1


def test_a_tokenizer_without_a_mask_token_is_refused(tmp_path: Path) -> None:
    write_vocabulary(tmp_path, ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "word"])
    with refusal("tokenizer.path", Code.UNSUPPORTED, tmp_path / "vocab.txt", "[MASK]"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"model": {"type": "Nothing"}}'])
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with refusal("tokenizer.path", Code.CORRUPT, tmp_path / "tokenizer.json"):
        load_tokenizer(tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing.json"):
        with refusal("tokenizer.path", Code.NOT_FOUND, f"{path}: "):
            load_tokenizer(path)
    (tmp_path / "vocab.json").write_text("{}")
    with refusal("tokenizer.path", Code.NOT_FOUND, tmp_path, "merges.txt"):
        load_tokenizer(tmp_path)


def test_a_damaged_tokenizer_config_is_named(bpe: Tokenizer, tmp_path: Path) -> None:
    bpe.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with refusal(tmp_path / "tokenizer_config.json", Code.CORRUPT):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("tokenizer_config.json", "mask_token", 3),
        ("tokenizer_config.json", "mask_token", {"text": "<mask>"}),
        ("tokenizer_config.json", "pad_token", {"content": None}),
        ("tokenizer_config.json", "cls_token", ["<s>"]),
        ("tokenizer_config.json", "do_lower_case", "no"),
        ("tokenizer_config.json", "strip_accents", 0),
        ("special_tokens_map.json", "eos_token", True),
    ],
)
def test_a_setting_of_another_type_is_refused_by_file_and_key(
    bpe: Tokenizer, tmp_path: Path, name: str, key: str, value: object
) -> None:
    bpe.save(tmp_path)
    (tmp_path / name).write_text(json.dumps({key: value}))
    with refusal(tmp_path / name, Code.CORRUPT, f"{key}="):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize(
    "content", ["[]", "3", "[" * 50_000, '{"x": "\\ud800"}', '{"x": %s}' % ("9" * 5000)],
    ids=["list", "number", "nested", "surrogate", "digits"],
)  # fmt: skip
def test_settings_that_are_no_json_object_are_refused_by_file(
    bpe: Tokenizer, tmp_path: Path, name: str, content: str
) -> None:
    bpe.save(tmp_path)
    (tmp_path / name).write_text(content)
    with refusal(tmp_path / name, Code.CORRUPT):
        load_tokenizer(tmp_path)


def changed_post_processor(file: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The file of a word tokenizer whose special tokens are put in another way."""
    tokenizer = word_tokenizer(["cow", "grass"])
    processor = json.loads(tokenizer.fingerprint())["post_processor"]
    change(processor)
    return edited_file(tokenizer, file, post_processor=processor)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda processor: processor["special_tokens"]["<s>"].update(ids=[7]), Code.UNSUPPORTED),
        (
            lambda processor: processor["special_tokens"]["<s>"].update(ids=[10**9]),
            Code.UNSUPPORTED,
        ),
        # The library panics.
        (lambda processor: processor["special_tokens"].pop("<s>"), Code.CORRUPT),
    ],
)
def test_special_tokens_outside_the_vocabulary_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], code: Code
) -> None:
    file = changed_post_processor(tmp_path / "tokenizer.json", change)
    with refusal("tokenizer.path", code, file):
        load_tokenizer(file)


def test_a_post_processor_that_drops_the_text_is_refused(tmp_path: Path) -> None:
    file = changed_post_processor(
        tmp_path / "tokenizer.json", lambda processor: processor.update(single=[])
    )
    with refusal("tokenizer.path", Code.UNSUPPORTED, file):
        _ = load_tokenizer(file).frame


@pytest.mark.parametrize(
    "vocabulary",
    [
        {"<mask>": 0, "a": 4_000_000_000},
        {"<mask>": 0, "a": 1, "b": 1},
        {"<mask>": 0},
    ],
    ids=["a gap", "a shared id", "nothing ordinary"],
)
def test_a_vocabulary_that_no_model_is_trained_with_is_refused(
    tmp_path: Path, vocabulary: dict[str, int]
) -> None:
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "a"}
    file = edited_file(word_tokenizer([]), tmp_path / "tokenizer.json", model=model,
                       added_tokens=[], post_processor=None)  # fmt: skip
    with refusal("tokenizer.path", Code.UNSUPPORTED, file):
        load_tokenizer(file)


def test_a_text_that_the_tokenizer_cannot_encode_is_refused_with_its_file(tmp_path: Path) -> None:
    tokens = [token for token in BERT_SPECIALS if token != "[UNK]"]
    loaded = load_tokenizer(write_vocabulary(tmp_path, [*tokens, "word"]))
    assert loaded.encode("word") == [1, 4, 2]
    for encode in (loaded.encode, loaded.pieces, lambda text: loaded.encode_batch([text]),
                   lambda text: loaded.word_starts_batch([text])):  # fmt: skip
        with refusal("tokenizer.path", Code.CORRUPT, tmp_path / "vocab.txt"):
            encode("unheard")


# Trained


@pytest.mark.parametrize("kind", TokenizerKind)
def test_training_twice_gives_the_same_tokenizer(kind: TokenizerKind) -> None:
    trained = [train_tokenizer(CORPUS, kind, 320) for _ in range(5)]
    assert len({tokenizer.fingerprint() for tokenizer in trained}) == 1
    assert trained[0].vocabulary_size == 320


def test_trained_special_tokens_have_the_ids_of_their_papers(
    bpe: Tokenizer, wordpiece: Tokenizer
) -> None:
    for tokenizer, specials in ((bpe, ROBERTA_SPECIALS), (wordpiece, BERT_SPECIALS)):
        assert [tokenizer.backend.token_to_id(token) for token in specials] == [0, 1, 2, 3, 4]
        ids = tokenizer.encode("the fox")
        assert ids[0] == tokenizer.backend.token_to_id(tokenizer.roles["cls_token"])
        assert ids[-1] == tokenizer.backend.token_to_id(tokenizer.roles["sep_token"])


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
def test_every_text_comes_back_from_byte_level_bpe(bpe: Tokenizer, text: str) -> None:
    if not any(token in text for token in ROBERTA_SPECIALS):
        assert bpe.decode(bpe.encode(text)) == text


def test_tricky_texts_come_back_from_byte_level_bpe(bpe: Tokenizer) -> None:
    for text in TRICKY[:26]:
        assert bpe.decode(bpe.encode(text)) == text


def test_a_mask_swallows_the_space_before_it_in_byte_level_bpe(bpe: Tokenizer) -> None:
    assert bpe.encode("the <mask> fox") == bpe.encode("the<mask> fox")


def test_wordpiece_puts_words_together_again(wordpiece: Tokenizer) -> None:
    assert wordpiece.decode(wordpiece.encode("The QUICK brown fox")) == "the quick brown fox"


def test_decoding_shows_special_tokens_only_when_asked(bpe: Tokenizer) -> None:
    ids = bpe.encode("the fox")
    assert bpe.decode(ids) == "the fox"
    assert bpe.decode(ids, skip_special_tokens=False) == "<s>the fox</s>"


def test_the_worlds_tokenizer_knows_words_and_nothing_else() -> None:
    tokenizer = word_tokenizer(["cow", "grass"])
    assert tokenizer.encode("Cow <mask> grass horse") == [0, 5, 4, 6, 3, 2]
    assert tokenizer.vocabulary().replacement_ids.tolist() == [5, 6]


def test_a_wordpiece_alphabet_leaves_room_for_pieces() -> None:
    # The letters i and above, each once, beside ten that are frequent.
    documents = ["abcdefghij " * 50, " ".join(map(chr, range(0x4E00, 0x4E00 + 2000)))]
    tokenizer = train_tokenizer(documents, TokenizerKind.WORDPIECE, 400)
    vocabulary = tokenizer.backend.get_vocab()
    assert len(vocabulary) <= 400
    assert len([token for token in vocabulary if len(token) == 1]) == 100
    assert tokenizer.encode("abcdefghij") == [2, vocabulary["abcdefghij"], 3]
    assert vocabulary["[UNK]"] in tokenizer.encode(chr(0x4E00 + 1999))


# Saved


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "world", "vocab.txt"])
def test_a_saved_folder_opens_with_the_same_ids_here_and_in_transformers(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    import transformers

    if kind == "world":
        tokenizer = word_tokenizer(["the", "quick", "fox", ","])
    elif kind == "vocab.txt":
        tokens = wordpiece_tokens(request.getfixturevalue("wordpiece"), "Cased")
        hub_config = {"tokenizer_class": "BertTokenizer", "do_lower_case": False}
        tokenizer = load_tokenizer(write_vocabulary(tmp_path / "old", tokens, **hub_config))
    else:
        tokenizer = request.getfixturevalue(kind)
    folder = tmp_path / "saved"
    folder.mkdir()
    tokenizer.save(folder)
    expected = [tokenizer.encode(text) for text in TRICKY]

    loaded = load_tokenizer(folder)
    assert loaded.encode_batch(TRICKY) == expected
    assert loaded.roles == tokenizer.roles
    assert loaded.fingerprint() == tokenizer.fingerprint()

    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert theirs(TRICKY)["input_ids"] == expected
    assert theirs.mask_token == tokenizer.mask_token
    assert theirs.mask_token_id == tokenizer.mask_id
    assert theirs.pad_token_id == tokenizer.pad_id
    assert len(theirs) == tokenizer.vocabulary_size


def test_a_saved_folder_names_the_tokens_that_are_there_and_no_others(
    bpe: Tokenizer, tmp_path: Path
) -> None:
    bpe.save(tmp_path)
    read = {"bos_token": "<start>", "model_max_length": 512, "added_tokens_decoder": {"9": {}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(read))
    load_tokenizer(tmp_path).save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    roles = json.loads((tmp_path / "special_tokens_map.json").read_text())
    assert roles == bpe.roles
    assert config == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 512,
        **bpe.roles,
    }
