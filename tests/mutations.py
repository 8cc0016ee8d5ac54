"""Damaged checkpoint folders by number, and a child process that opens them one after the other.

Mutation n is the same in every run: `random.Random(n)` decides it. A child opens the folders, so
that one that hangs or takes the interpreter down is a result, too: the parent kills it.
"""

import copy
import json
import math
import multiprocessing
import random
import resource
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import mlmlab
from mlmlab.checkpoints import save_pretrained
from mlmlab.data.config import TokenizerKind
from mlmlab.data.tokenizer import Tokenizer, train_tokenizer, word_tokenizer
from mlmlab.model import Family, MaskedLanguageModel, ModelConfig
from mlmlab.model.families import ARCHITECTURES

LIMIT_SECONDS = 10
MEMORY_BYTES = 16 << 30
TEXT = ["the quick brown fox jumps over the lazy dog", "Masks hide words; a model finds them."]

NEW_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "model.safetensors",
)
PLACES = [
    *(
        (family, file)
        for family in ("bert", "roberta", "distilbert", "modernbert")
        for file in NEW_FILES
    ),
    ("old-bert", "pytorch_model.bin"),
    ("old-bert", "vocab.txt"),
    ("old-roberta", "model.safetensors.index.json"),
    ("old-roberta", "vocab.json"),
    ("old-roberta", "merges.txt"),
]
"""Folder and file that mutation n changes: PLACES[n % len(PLACES)]."""


@dataclass(frozen=True)
class Outcome:
    """What became of one mutated folder."""

    number: int
    folder: str
    file: str
    verdict: str
    """works, refused, or what should not have happened."""

    @property
    def is_fine(self) -> bool:
        return self.verdict in ("works", "refused")


# The folders before they are damaged


def write_folders(root: Path) -> None:
    """A tiny checkpoint of every family, and two in the layouts of older files."""
    tokenizers = {
        Family.BERT: train_tokenizer(TEXT * 3, TokenizerKind.WORDPIECE, 120),
        Family.ROBERTA: train_tokenizer(TEXT * 3, TokenizerKind.BPE, 300),
        Family.DISTILBERT: word_tokenizer([*" ".join(TEXT).lower().split(), "a"]),
        Family.MODERNBERT: train_tokenizer(TEXT * 3, TokenizerKind.BPE, 300),
    }
    for family, tokenizer in tokenizers.items():
        folder = root / family.value
        save_pretrained(_model(family, tokenizer), tokenizer, folder)
        roles = {
            role: {"content": token, "lstrip": role == "mask_token", "special": True}
            for role, token in tokenizer.roles.items()
        }
        _dump(folder / "special_tokens_map.json", roles)
        _repeat_a_tied_tensor(folder / "model.safetensors")
        more = {"model_max_length": 16, "do_lower_case": True, "strip_accents": None}
        _dump(folder / "tokenizer_config.json", {**roles, **more, "added_tokens_decoder": {}})
    _write_old_bert(root / "bert", root / "old-bert")
    _write_old_roberta(root / "roberta", root / "old-roberta")


def _model(family: Family, tokenizer: Tokenizer) -> MaskedLanguageModel:
    config = ModelConfig(
        family=family,
        vocabulary_size=tokenizer.vocabulary_size,
        hidden_size=16,
        layers=2,
        heads=2,
        intermediate_size=24,
        max_positions=20,
        **ARCHITECTURES[family].checkpoint_defaults(),
        pad_id=tokenizer.pad_id,
        dropout=0.1,
        attention_dropout=0.1,
        initializer_range=0.02,
    )
    model = MaskedLanguageModel(config)
    model.initialize(0)
    return model


def _repeat_a_tied_tensor(file: Path) -> None:
    tensors = load_file(str(file))
    for name, again in (
        ("cls.predictions.bias", "cls.predictions.decoder.bias"),
        ("lm_head.bias", "lm_head.decoder.bias"),
        ("distilbert.embeddings.word_embeddings.weight", "vocab_projector.weight"),
        ("model.embeddings.tok_embeddings.weight", "decoder.weight"),
    ):
        if name in tensors:
            tensors[again] = tensors[name].clone()
    save_file(tensors, str(file))


def _dump(file: Path, content: object) -> None:
    file.write_text(json.dumps(content), encoding="utf-8")


def _write_old_bert(new: Path, old: Path) -> None:
    shutil.copytree(new, old)
    torch.save(load_file(str(old / "model.safetensors")), old / "pytorch_model.bin")
    vocabulary = json.loads((old / "tokenizer.json").read_text())["model"]["vocab"]
    (old / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.__getitem__)))
    for name in ("model.safetensors", "tokenizer.json", "special_tokens_map.json"):
        (old / name).unlink()


def _write_old_roberta(new: Path, old: Path) -> None:
    shutil.copytree(new, old)
    tensors = load_file(str(old / "model.safetensors"))
    shards = {name: f"model-{n % 2}.safetensors" for n, name in enumerate(tensors)}
    for shard in set(shards.values()):
        save_file({n: t for n, t in tensors.items() if shards[n] == shard}, str(old / shard))
    _dump(old / "model.safetensors.index.json", {"metadata": {}, "weight_map": shards})
    model = json.loads((old / "tokenizer.json").read_text())["model"]
    _dump(old / "vocab.json", model["vocab"])
    (old / "merges.txt").write_text("\n".join(" ".join(pair) for pair in model["merges"]))
    for name in ("model.safetensors", "tokenizer.json", "special_tokens_map.json"):
        (old / name).unlink()


# Mutations

_RAW = "mlmlab.rawmlmlab."
"""Stands in a JSON value for text that `json.dumps` would not write."""
_RAW_VALUES = ("1e999", "9" * 5000, "[" * 20_000 + "]" * 20_000, "tru", '"\\ud800"', "01")
_VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 3, 10**9, 2**32, 10**30, 0.0, 1.5, -0.5, 1e-300, math.nan,
    math.inf, "", "x", "gelu", "é" * 9, "a" * 10_000, "\ud800", "16", [], [1], [[]], {},
    {"content": 3}, {"content": "x"}, {"a": {"b": {"c": [None]}}}, _RAW,
)  # fmt: skip


def mutated(number: int, file: str, content: bytes) -> bytes:
    """The file's content after mutation `number`."""
    choice = random.Random(number)
    mutations: list[Callable[[random.Random, bytes], bytes]] = [_with_other_bytes]
    if file.endswith(".json"):
        mutations += [_with_other_json] * 3
    if file.endswith(".safetensors"):
        mutations += [_with_other_header] * 3
    return choice.choice(mutations)(choice, content)


def _with_other_bytes(choice: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(choice.choice([1, 1, 1, 2, 20])):
        # Half of the time near the start, where the headers are.
        end = len(changed) if choice.random() < 0.5 else min(len(changed), 100)
        start = choice.randrange(end + 1)
        stop = min(len(changed), start + choice.choice([1, 1, 4, 50, 1000]))
        kind = choice.choice(["flip", "delete", "insert", "truncate", "repeat", "zero"])
        if kind == "flip" and start < len(changed):
            changed[start] ^= 1 << choice.randrange(8)
        elif kind == "delete":
            del changed[start:stop]
        elif kind == "insert":
            changed[start:start] = choice.randbytes(stop - start)
        elif kind == "truncate":
            del changed[start:]
        elif kind == "repeat":
            changed[start:start] = changed[start:stop]
        elif kind == "zero":
            changed[start:stop] = bytes(stop - start)
    return bytes(changed)


def _with_other_json(choice: random.Random, content: bytes) -> bytes:
    return _json_bytes(choice, _changed_value(choice, json.loads(content)))


def _json_bytes(choice: random.Random, document: Any) -> bytes:
    raw = choice.choice(_RAW_VALUES)
    return json.dumps(document).replace(f'"{_RAW}"', raw).encode()


def _changed_value(choice: random.Random, document: Any) -> Any:
    """The document with one or two values or keys changed, somewhere in it."""
    document = {"": document}
    for _ in range(choice.choice([1, 1, 2])):
        place, key = _descend(choice, document)
        kind = choice.choice(["replace", "replace", "alike", "alike", "remove", "rename", "swap"])
        if isinstance(place, dict) and place is not document and kind == "rename":
            place[choice.choice([f"{key}x", "", "a" * 1000, "type", "content"])] = place.pop(key)
        elif kind == "remove" and place is not document:
            del place[key]
        elif kind == "swap":
            other, other_key = _descend(choice, document)
            place[key] = copy.deepcopy(other[other_key])
        elif kind == "alike":
            place[key] = _alike(choice, place[key])
        else:
            place[key] = copy.deepcopy(choice.choice(_VALUES))
    return document[""]


def _alike(choice: random.Random, value: Any) -> Any:
    """Another value of the same type, which a reader notices only if it looks at the value."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return choice.choice([0, value + 1, value * 2, -value, value * 1000, value / 2])
    if isinstance(value, str):
        return choice.choice(["<unk>", "[MASK]", "the", value[1:], value * 3, value.swapcase()])
    if isinstance(value, list):
        return choice.choice([value[::-1], value[1:], value * 2])
    return value and dict(list(value.items())[1:])


def _descend(choice: random.Random, document: Any) -> tuple[Any, Any]:
    """A container and a key of it; a vocabulary of many keys is no more likely than one key."""
    place, key = document, ""
    while isinstance(place[key], dict | list) and place[key] and choice.random() < 0.85:
        place = place[key]
        key = choice.choice(list(place) if isinstance(place, dict) else range(len(place)))
    return place, key


_DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "U32", "U8", "BOOL", "C64", "F8_E4M3", "F4")


def _with_other_header(choice: random.Random, content: bytes) -> bytes:
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    data = content[8 + length :]
    name = choice.choice([name for name in header if name != "__metadata__"])
    tensor = header[name]
    kind = choice.choice(["dtype", "shape", "offsets", "name", "json", "json", "length", "data"])
    if kind == "dtype":
        tensor["dtype"] = choice.choice(_DTYPES)
    elif kind == "shape":
        sizes = tensor["shape"]
        shapes: list[Any] = [sizes[::-1], [math.prod(sizes)], [*sizes, 1], [], [0], [10**30, 1]]
        tensor["shape"] = choice.choice([*shapes, [2**63, 2], [-s for s in sizes]])
    elif kind == "offsets":
        start, end = tensor["data_offsets"]
        offsets = [[end, start], [start, end + 4], [start + 1, end + 1], [0, 2**63], [0, 10**30]]
        tensor["data_offsets"] = choice.choice(offsets)
    elif kind == "name":
        new = [f"{name}x", "", "a" * 1000, name.replace(".0.", ".7."), name.partition(".")[2]]
        header[choice.choice(new)] = header.pop(name)
    elif kind == "json":
        header = _changed_value(choice, header)
    elif kind == "data":
        data = _with_other_bytes(choice, data)
    text = _json_bytes(choice, header)
    length = len(text)
    if kind == "length":
        length = choice.choice(
            [0, 1, length - 1, length + 1, len(content), 10**9, 2**63, 2**64 - 1]
        )
    return length.to_bytes(8, "little") + text + data


# Opening them


def outcomes(numbers: Iterable[int], root: Path) -> Iterator[Outcome]:
    """Opens the mutated folders in a child, which is replaced when one takes too long.

    Args:
        root: an empty folder.
    """
    write_folders(root)
    child = _Child(root)
    for number in numbers:
        folder, file = PLACES[number % len(PLACES)]
        verdict = child.verdict(number)
        if verdict is None:
            child.kill()
            child = _Child(root)
            verdict = f"no answer within {LIMIT_SECONDS} seconds, or the process died"
        yield Outcome(number, folder, file, verdict)
    child.kill()


class _Child:
    """A process that opens mutated folders."""

    def __init__(self, root: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, root), daemon=True)
        self._process.start()
        other.close()
        assert self._connection.recv() == "ready"  # the limit counts from here, without the imports

    def verdict(self, number: int) -> str | None:
        """None: not within the limit."""
        self._connection.send(number)
        try:
            return str(self._connection.recv()) if self._connection.poll(LIMIT_SECONDS) else None
        except EOFError:
            return None

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


def _serve(connection: Connection, root: Path) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    connection.send("ready")
    while True:
        number = connection.recv()
        connection.send(verdict(number, root))


def verdict(number: int, root: Path) -> str:
    """Opens the folder that mutation `number` makes of one below `root`."""
    name, file = PLACES[number % len(PLACES)]
    folder = root / "mutated"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(root / name, folder)
    (folder / file).write_bytes(mutated(number, file, (folder / file).read_bytes()))
    try:
        use(folder, root / "saved")
    except mlmlab.UserError as error:
        for problem in error.problems:
            if not (problem.where and problem.found and problem.expected and problem.remedy):
                return f"an incomplete message: {problem}"
            if str(folder) not in problem.where + problem.found:
                return f"a message that does not name the folder: {problem}"
        return "refused"
    except BaseException as error:  # a panic of the Rust libraries is no Exception
        return f"{type(error).__name__}: {error}"
    return "works"


def use(folder: Path, saved: Path) -> None:
    """What a user does with a checkpoint: load it, tokenize, predict, save it and load it again."""
    model, tokenizer = mlmlab.load_pretrained(str(folder), quiet=True)
    assert tokenizer.vocabulary().size <= model.config.vocabulary_size
    text = f"{TEXT[0]} {tokenizer.mask_token} \U0001f642"
    ids = tokenizer.encode_batch([text, ""])[0][: model.config.max_positions]
    tokenizer.word_starts_batch([text, ""])
    tokenizer.decode(ids)
    assert len(tokenizer.frame) == 2
    with torch.no_grad():
        logits = model(torch.tensor([[tokenizer.mask_id, tokenizer.pad_id, *ids]])[:, :3])
    assert logits.shape[-1] == model.config.vocabulary_size
    save_pretrained(model, tokenizer, saved)
    mlmlab.load_pretrained(str(saved), quiet=True)
