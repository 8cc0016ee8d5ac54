"""A tokenizer whose special tokens are known by role: loaded, built from old files, or trained."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import tokenizers
import torch
from numpy.typing import NDArray
from tokenizers import (
    AddedToken,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from mlmlab.data.config import TokenizerKind
from mlmlab.data.json_file import SWITCH, Kind, read_json_object, wrong_values
from mlmlab.errors import Code, UserError
from mlmlab.masking.vocabulary import VocabularyInfo

_ROLES = (
    "mask_token",
    "pad_token",
    "cls_token",
    "sep_token",
    "unk_token",
    "bos_token",
    "eos_token",
)
_USUAL_NAMES = {
    "mask_token": ("<mask>", "[MASK]"),
    "pad_token": ("<pad>", "[PAD]"),
    "cls_token": ("<s>", "[CLS]"),
    "sep_token": ("</s>", "[SEP]"),
    "unk_token": ("<unk>", "[UNK]"),
}
_TOKEN = Kind(
    'a token, an object with its "content", or null',
    lambda value: (
        value is None
        or isinstance(value, str)
        or (isinstance(value, dict) and isinstance(value.get("content"), str))
    ),
)
_SETTINGS: Mapping[str, Kind] = {
    **dict.fromkeys(_ROLES, _TOKEN),
    "do_lower_case": SWITCH,
    "strip_accents": SWITCH,
    "tokenize_chinese_chars": SWITCH,
    "add_prefix_space": SWITCH,
}
"""What is read of tokenizer_config.json and special_tokens_map.json."""
ROBERTA_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
"""In the order of their ids, as RoBERTa has them."""
BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_LARGEST_ALPHABET = 1000
"""Characters of a trained WordPiece vocabulary; rarer ones become [UNK]."""


class PaddedTexts(TypedDict):
    """The arguments of the model's forward pass: `model(**tokenizer(texts))`."""

    input_ids: torch.Tensor
    """int64 `[B, T]`."""
    attention_mask: torch.Tensor
    """bool `[B, T]`, True for a real token."""


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """The library's tokenizer and the roles of its special tokens.

    Truncation and padding that a file may carry are cleared: cutting text is the data stage's
    business, and the Hub's MiniLM file would silently cut every document at 128 tokens.
    """

    backend: tokenizers.Tokenizer
    roles: Mapping[str, str]
    """Special tokens by role: mask_token, pad_token, cls_token, ..."""
    hub_config: Mapping[str, Any] = field(default_factory=dict)
    """The tokenizer_config.json it came with, written again on export."""
    origin: str = "the tokenizer"
    """The file it was read from, for messages."""

    def __post_init__(self) -> None:
        self.backend.no_truncation()
        self.backend.no_padding()

    def __call__(self, texts: str | Sequence[str], max_length: int | None = None) -> PaddedTexts:
        """Texts as the model takes them, padded to the longest.

        Args:
            texts: one text or several.
            max_length: cuts longer texts to this many tokens, special ones included; None: never
                cuts, and the model refuses what is longer than its positions.

        Raises:
            UserError: a `max_length` that leaves no space for a token of the text.
        """
        rows = self.encode_batch([texts] if isinstance(texts, str) else texts)
        if max_length is not None:
            before, after = self.frame
            if max_length <= len(before) + len(after):
                raise UserError.of(
                    "max_length",
                    code=Code.INVALID,
                    found=str(max_length),
                    expected=f"more than the {len(before) + len(after)} special tokens of a text",
                    remedy="a larger max_length, or None to cut nothing",
                )
            kept = max_length - len(after)
            rows = [row if len(row) <= max_length else row[:kept] + after for row in rows]
        return self.pad(rows)

    def pad(self, rows: Sequence[Sequence[int]]) -> PaddedTexts:
        """Rows of ids, padded on the right to the longest."""
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)  # [B]
        width = max(map(len, rows), default=0)
        attention_mask = torch.arange(width) < lengths[:, None]  # [B, T]
        input_ids = torch.full(attention_mask.shape, self.pad_id)  # [B, T]
        input_ids[attention_mask] = torch.tensor(list(chain(*rows)), dtype=torch.int64)
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    @cached_property
    def vocabulary_size(self) -> int:
        """One more than the highest id."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def mask_token(self) -> str:
        return self.roles["mask_token"]

    @property
    def mask_id(self) -> int:
        return self._id("mask_token")

    @property
    def pad_id(self) -> int:
        """The id that fills up short rows. Any special one would do, since rows carry an attention
        mask; so a tokenizer without one pads with its end token, or with its mask."""
        roles = ("pad_token", "sep_token", "eos_token", "mask_token")
        return self._id(next(role for role in roles if role in self.roles))

    @cached_property
    def frame(self) -> tuple[list[int], list[int]]:
        """The ids of the special tokens before and after a text."""
        with _library_errors(self.origin):
            bare = list(self.backend.encode("a", add_special_tokens=False).ids)
        framed = self.encode("a")
        places = range(len(framed) + 1)
        before = next((n for n in places if framed[n : n + len(bare)] == bare), None)
        if not bare or before is None:
            raise UserError.of(
                "tokenizer.path",
                code=Code.UNSUPPORTED,
                found=f"{self.origin}: the text 'a' has the ids {bare}, and {framed} with special "
                "tokens",
                expected="the ids of the text, and special tokens before and after them",
                remedy="choose another tokenizer",
            )
        return framed[:before], framed[before + len(bare) :]

    def _id(self, role: str) -> int:
        number = self.backend.token_to_id(self.roles[role])
        assert number is not None
        return int(number)

    @cached_property
    def special_ids(self) -> set[int]:
        """Added tokens that are marked as special, and all that have a role."""
        added = self.backend.get_added_tokens_decoder().items()
        special = {number for number, token in added if token.special}
        return special | {self._id(role) for role in self.roles}

    def vocabulary(self) -> VocabularyInfo:
        """What the masking kernel needs: every special token is protected."""
        return VocabularyInfo(self.vocabulary_size, self.mask_id, tuple(sorted(self.special_ids)))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids with the tokenizer's own special tokens around each text; texts run in parallel."""
        with _library_errors(self.origin):
            return [encoding.ids for encoding in self.backend.encode_batch_fast(list(texts))]

    def encode_joined(
        self, texts: Sequence[str], kind: np.dtype[Any]
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """The ids of `encode_batch` as one array of this type, text after text, and the number of
        each text's tokens, int64 `[len(texts)]`."""
        with _library_errors(self.origin):
            encodings = self.backend.encode_batch_fast(list(texts))
        counts = np.fromiter(map(len, encodings), np.int64, len(encodings))
        ids = chain.from_iterable(encoding.ids for encoding in encodings)  # a list at a time
        return np.fromiter(ids, kind, int(counts.sum())), counts

    def word_starts_batch(self, texts: Sequence[str]) -> list[NDArray[np.bool_]]:
        """Whether each token of `encode_batch` begins a word, as the pre-tokenization cuts them.

        Each special token is a separate word.
        """
        with _library_errors(self.origin):
            encodings = self.backend.encode_batch(list(texts))
        found = []
        for encoding in encodings:
            # No word has the number -1, and no two special tokens in a row share one.
            words = np.array([-1 - n if w is None else w for n, w in enumerate(encoding.word_ids)])
            found.append(np.concatenate([[True], words[1:] != words[:-1]])[: len(words)])
        return found

    def encode(self, text: str) -> list[int]:
        """Ids with the tokenizer's own special tokens around the text."""
        with _library_errors(self.origin):
            return list(self.backend.encode(text).ids)

    def pieces(self, word: str) -> list[int]:
        """The ids of a word alone: its entry in the vocabulary, else what it is cut into."""
        entry = self.backend.token_to_id(word)
        if entry is not None:
            return [int(entry)]
        with _library_errors(self.origin):
            return list(self.backend.encode(word, add_special_tokens=False).ids)

    def token(self, number: int) -> str:
        """The vocabulary's entry for an id."""
        return str(self.backend.id_to_token(number))

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        with _library_errors(self.origin):
            return str(self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def fingerprint(self) -> str:
        """The tokenizer's full definition."""
        return str(self.backend.to_str())

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json, tokenizer_config.json and special_tokens_map.json."""
        self.backend.save(str(folder / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **self.hub_config, **self.roles}
        for name, content in (
            ("tokenizer_config.json", config),
            ("special_tokens_map.json", dict(self.roles)),
        ):
            text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            (folder / name).write_text(text, encoding="utf-8")


def load_tokenizer(path: Path) -> Tokenizer:
    """Reads a tokenizer from a folder, a tokenizer.json, a vocab.txt, or a vocab.json.

    A vocab.txt becomes a BERT WordPiece tokenizer, vocab.json with merges.txt a byte-level BPE.

    Raises:
        UserError: nothing there to read, a damaged file, or no mask token in it.
    """
    folder = path if path.is_dir() else path.parent
    names = ("tokenizer.json", "vocab.txt", "vocab.json") if path.is_dir() else (path.name,)
    file = next((folder / name for name in names if (folder / name).is_file()), None)
    if file is None:
        raise UserError.of(
            "tokenizer.path",
            code=Code.NOT_FOUND,
            found=f"{path}: no tokenizer there",
            expected="a folder with tokenizer.json, vocab.txt, or vocab.json and merges.txt",
            remedy="tokenizer.path=FOLDER_OR_FILE",
        )
    hub_config = _settings(folder / "tokenizer_config.json")
    named = {**_settings(folder / "special_tokens_map.json"), **hub_config}
    with _library_errors(str(file)):
        if file.suffix == ".txt":
            backend = _wordpiece_from(file, hub_config)
        elif file.name == "vocab.json":
            backend = _byte_level_bpe_from(file, file.with_name("merges.txt"), hub_config)
        else:
            backend = tokenizers.Tokenizer.from_file(str(file))
        roles = _roles(backend, named, file)
    # `Tokenizer` states the roles itself, and the library the tokens' decoder.
    stated = {*_ROLES, "added_tokens_decoder"}
    others = {key: value for key, value in hub_config.items() if key not in stated}
    tokenizer = Tokenizer(backend, roles, others, str(file))
    _refuse_odd_ids(tokenizer)
    return tokenizer


@contextmanager
def _library_errors(origin: str) -> Iterator[None]:
    """Turns what the library raises for a file or a text that it cannot handle into our error.

    It raises bare `Exception`; and where its Rust code gives up, a `PanicException`, which derives
    from `BaseException` and is not exported under any name.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        is_librarys = type(error) is Exception or type(error).__name__ == "PanicException"
        if not is_librarys and not isinstance(error, OSError | ValueError):
            raise
        raise UserError.of(
            "tokenizer.path",
            code=Code.CORRUPT,
            found=f"{origin}: {str(error) or repr(error)}",
            expected="a tokenizer.json of the tokenizers library, or its vocabulary files",
            remedy="save the tokenizer again, or choose another one",
        ) from error


def _refuse_odd_ids(tokenizer: Tokenizer) -> None:
    """Refuses ids that two tokens share, that are mostly gaps, that have no token, or that are
    all special.

    A published vocabulary has few gaps. One with many comes from a damaged file, and the token
    table of a model for it, which has a row for every id, could be of any size.
    """
    size, ids = tokenizer.vocabulary_size, tokenizer.backend.get_vocab(with_added_tokens=True)
    numbers = list(tokenizer.backend.get_vocab(with_added_tokens=False).values())
    around = max(tokenizer.encode(""), default=0)
    found = None
    if len(set(numbers)) < len(numbers):
        found = f"{len(numbers)} tokens that share {len(set(numbers))} ids"
    elif size > 2 * len(ids):
        found = f"ids up to {size - 1} for {len(ids)} tokens"
    elif around >= size:
        found = f"id {around} put around every text, and {size} ids"
    elif tokenizer.special_ids.issuperset(ids.values()):
        found = "nothing but special tokens"
    if found is not None:
        raise UserError.of(
            "tokenizer.path",
            code=Code.UNSUPPORTED,
            found=f"{tokenizer.origin}: {found}",
            expected="a token for every id from 0, some of them ordinary ones",
            remedy="save the tokenizer again, or choose another one",
        )


def _settings(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    remedy = "fix or remove the file"
    content = read_json_object(file, remedy=remedy)
    problems = list(wrong_values(content, _SETTINGS, str(file), remedy=remedy))
    if problems:
        raise UserError(problems)
    return content


def _roles(backend: tokenizers.Tokenizer, named: Mapping[str, Any], file: Path) -> dict[str, str]:
    """Special tokens by role: as the files name them, else by the usual names."""
    roles: dict[str, str] = {}
    for role in _ROLES:
        value = named.get(role)
        candidates = [value["content"] if isinstance(value, dict) else value] if value else []
        candidates += _USUAL_NAMES.get(role, ())
        for token in candidates:
            if backend.token_to_id(token) is not None:
                roles[role] = token
                break
    if "mask_token" not in roles:
        raise UserError.of(
            "tokenizer.path",
            code=Code.UNSUPPORTED,
            found=f"{file}: a tokenizer without a mask token",
            expected="a mask token, named by tokenizer_config.json or written <mask> or [MASK]",
            remedy="choose the tokenizer of a masked language model",
        )
    return roles


def _wordpiece_from(file: Path, hub_config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    # A line is what ends in a newline; `splitlines` would also cut at tokens like U+2028.
    lines = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    vocabulary = {token: number for number, token in enumerate(lines)}
    # A vocabulary without a capital letter was made from lower-cased text.
    uncased = not any(any(map(str.isupper, t)) for t in vocabulary if t not in BERT_SPECIALS)
    normalizer = normalizers.BertNormalizer(
        handle_chinese_chars=bool(hub_config.get("tokenize_chinese_chars", True)),
        strip_accents=hub_config.get("strip_accents"),
        lowercase=bool(hub_config.get("do_lower_case", uncased)),
    )
    model = models.WordPiece(vocabulary, unk_token="[UNK]")
    return _wordpiece(model, normalizer, BERT_SPECIALS)


def _wordpiece(
    model: models.WordPiece, normalizer: normalizers.Normalizer, specials: Sequence[str]
) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens([t for t in specials if backend.token_to_id(t) is not None])
    _surround(backend, "[CLS]", "[SEP]")
    return backend


def _surround(backend: tokenizers.Tokenizer, first: str, last: str) -> None:
    """Puts the two special tokens around every text, where the vocabulary has them."""
    ids = [(token, backend.token_to_id(token)) for token in (first, last)]
    if all(number is not None for _, number in ids):
        backend.post_processor = processors.TemplateProcessing(
            single=f"{first} $A {last}",
            pair=f"{first} $A {last} $B:1 {last}:1",
            special_tokens=ids,
        )


def _byte_level_bpe_from(
    vocabulary: Path, merges: Path, hub_config: Mapping[str, Any]
) -> tokenizers.Tokenizer:
    if not merges.is_file():
        raise UserError.of(
            "tokenizer.path",
            code=Code.NOT_FOUND,
            found=f"{vocabulary}, but no merges.txt next to it",
            expected="both files of a byte-level BPE tokenizer",
            remedy="copy merges.txt there too",
        )
    model = models.BPE.from_file(str(vocabulary), str(merges))
    prefix_space = bool(hub_config.get("add_prefix_space", False))
    return _byte_level_bpe(model, prefix_space, ROBERTA_SPECIALS)


def _byte_level_bpe(
    model: models.BPE, prefix_space: bool, specials: Sequence[str]
) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    backend.decoder = decoders.ByteLevel()
    _finish_byte_level(backend, specials)
    return backend


def _finish_byte_level(backend: tokenizers.Tokenizer, specials: Sequence[str]) -> None:
    known = [token for token in specials if backend.token_to_id(token) is not None]
    # The mask swallows the space before it, as RoBERTa's does: "a <mask>" predicts " word".
    backend.add_special_tokens(
        [AddedToken(t, lstrip=t == "<mask>", special=True, normalized=False) for t in known]
    )
    _surround(backend, "<s>", "</s>")


def train_tokenizer(
    documents: Iterable[str], kind: TokenizerKind, vocabulary_size: int
) -> Tokenizer:
    """Trains a tokenizer: byte-level BPE (RoBERTa's) or WordPiece (BERT's, lower-cased).

    Args:
        documents: gone through once for BPE, twice for WordPiece.
    """
    if kind is TokenizerKind.BPE:
        backend = _byte_level_bpe(models.BPE(), False, ())
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary_size,
            special_tokens=list(ROBERTA_SPECIALS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(documents, trainer)
        _finish_byte_level(backend, ROBERTA_SPECIALS)
    else:
        assert not isinstance(documents, Iterator), "the documents are needed twice"
        backend = _trained_wordpiece(documents, vocabulary_size)
    return Tokenizer(backend, _roles(backend, {}, Path("the trained tokenizer")))


def _trained_wordpiece(documents: Iterable[str], vocabulary_size: int) -> tokenizers.Tokenizer:
    normalizer = normalizers.BertNormalizer(lowercase=True)
    counts: Counter[str] = Counter()
    for text in documents:
        counts.update(normalizer.normalize_str(text))
    letters = sorted(filter(str.strip, counts), key=lambda letter: (-counts[letter], letter))
    alphabet = sorted(letters[: min(_LARGEST_ALPHABET, vocabulary_size // 4)])
    # Left to itself, the library numbers "##a", "##b", ... in the random order of a hash table, and
    # the ids decide between pairs that are equally frequent: each training would end differently.
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[*BERT_SPECIALS, *alphabet, *(f"##{letter}" for letter in alphabet)],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    learner = _wordpiece(models.WordPiece(unk_token="[UNK]"), normalizer, ())
    learner.train_from_iterator(documents, trainer)
    vocabulary = learner.get_vocab(with_added_tokens=False)
    model = models.WordPiece(vocabulary, unk_token="[UNK]")
    return _wordpiece(model, normalizer, BERT_SPECIALS)


def word_tokenizer(words: Sequence[str]) -> Tokenizer:
    """A tokenizer of whole words: the small world's. RoBERTa's special tokens have ids 0 to 4."""
    vocabulary = {token: number for number, token in enumerate([*ROBERTA_SPECIALS, *words])}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.add_special_tokens(list(ROBERTA_SPECIALS))
    _surround(backend, "<s>", "</s>")
    return Tokenizer(backend, _roles(backend, {}, Path("the small world")))
