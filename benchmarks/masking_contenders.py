"""Who takes part in `masking.py`: each makes a batch ready for a masked language model.

B rows   T positions   M predicted tokens
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

from mlmlab.data.tokenizer import Tokenizer
from mlmlab.masking import Budget, MaskedBatch, MaskingConfig, VocabularyInfo, mask_batch

RATE = 0.15
VOCABULARY_SIZE = 50_265
"""RoBERTa's."""
WORD_START_SHARE = 0.75
"""Of the tokens: words have 1.33 tokens on average, about as in English text."""
CHECKED_SIZE = (64, 512)
BATCHES = 4
"""Different batches of a size, in turn: no contender may learn one by heart."""
INNER, LISTS, WHOLE_WORD = "transformers inner", "transformers lists", "transformers whole word"
TOKEN, WORD, WIDEN = "mlmlab token", "mlmlab word", "copy: uint16 to int64"


@dataclass(frozen=True)
class Contender:
    """Something that makes a batch, or copies as much."""

    name: str
    run: Callable[[int], Any]
    """Makes one batch; the number of the call chooses the rows."""


class Material:
    """The rows of one batch size, the same for all contenders, in the form that each wants."""

    def __init__(self, tokenizer: Tokenizer, rows: int, length: int, folder: Path) -> None:
        self.rows, self.length, self.tokenizer = rows, length, tokenizer
        self.vocabulary: VocabularyInfo = tokenizer.vocabulary()
        generator = np.random.default_rng(rows * length)
        ids = generator.choice(self.vocabulary.replacement_ids, (rows * BATCHES, length))
        (ids[:, :1], ids[:, -1:]) = tokenizer.frame
        starts = generator.random(ids.shape) < WORD_START_SHARE
        starts[:, [0, 1, -1]] = True
        self.ids = self._mapped(folder / f"ids_{rows}x{length}", ids.astype(np.uint16))
        self.starts = self._mapped(folder / f"starts_{rows}x{length}", starts.astype(np.uint8))
        order = generator.permutation(rows * BATCHES)
        self.examples = np.split(order.astype(np.int64), BATCHES)
        special = np.zeros((rows, length), np.int64)
        special[:, [0, -1]] = 1
        self.special_tokens_mask = special
        """int64 `[B, T]`, as tokenizers state it."""

    def _mapped(self, path: Path, array: NDArray[Any]) -> NDArray[Any]:
        array.tofile(path)
        mapped = np.memmap(path, array.dtype, "r", shape=array.shape)
        return mapped.view(np.ndarray)  # as a corpus holds it: the subclass is slow to index

    def offsets(self, examples: NDArray[np.int64]) -> list[Any]:
        """Characters of a text with three of them a token and a space before each word."""
        begin = np.cumsum(self.starts[examples], axis=1, dtype=np.int64)
        begin += 3 * np.arange(self.length)
        pairs = np.stack((begin, begin + 3), axis=2)  # [B, T, 2]
        pairs[self.special_tokens_mask.astype(bool)] = 0
        return pairs.tolist()


def mlmlab_contenders(material: Material, pool: ThreadPoolExecutor, cores: int) -> list[Contender]:
    """The kernel, from the memory map on."""

    def masked(examples: NDArray[np.int64], config: MaskingConfig) -> Any:
        return mask_batch(
            material.ids.take(examples, axis=0),  # [B, T]
            example_ids=examples,
            epoch=0,
            seed=0,
            config=config,
            vocabulary=material.vocabulary,
            word_starts=None if config.unit == "token" else material.starts.take(examples, axis=0),
        )

    def on_all_cores(number: int) -> Any:
        slices = np.array_split(material.examples[number % BATCHES], cores)
        others = [pool.submit(masked, examples, independent) for examples in slices[1:]]
        parts = [masked(slices[0], independent), *(other.result() for other in others)]
        first_token, first_label = 0, 0
        for part, examples in zip(parts, slices, strict=True):
            part.positions[:] += first_token
            part.row_offsets[:] += first_label
            first_token += len(examples) * material.length
            first_label += len(part.labels)
        offsets = [parts[0].row_offsets, *(part.row_offsets[1:] for part in parts[1:])]
        joined = (np.concatenate([part[field] for part in parts]) for field in range(3))
        return MaskedBatch(*joined, np.concatenate(offsets))

    independent = MaskingConfig(rate=RATE)
    configs = {
        TOKEN: independent,
        WORD: MaskingConfig(rate=RATE, unit="word"),
        "mlmlab span": MaskingConfig(rate=RATE, unit="span"),
        "mlmlab token exact": MaskingConfig(rate=RATE, budget=Budget.EXACT),
    }
    contenders = [
        Contender(name, lambda n, c=config: masked(material.examples[n % BATCHES], c))
        for name, config in configs.items()
    ]
    return [*contenders, Contender(f"mlmlab token, {cores} cores", on_all_cores)]


def transformers_contenders(material: Material) -> list[Contender]:
    """The collator, from examples that are ready in memory."""
    roles = dict(material.tokenizer.roles)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=material.tokenizer.backend, **roles)
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=RATE)
    whole_word = DataCollatorForLanguageModeling(
        tokenizer,
        mlm_probability=RATE,
        whole_word_mask=True,
        mask_replace_prob=1.0,  # it supports no other
        random_replace_prob=0.0,
    )
    ids = [material.ids[examples].astype(np.int64) for examples in material.examples]
    stacked = [torch.from_numpy(batch) for batch in ids]  # int64 [B, T]
    special = torch.from_numpy(material.special_tokens_mask)
    special_rows = material.special_tokens_mask.tolist()
    lists = [[{"input_ids": row} for row in batch.tolist()] for batch in ids]
    given = [
        [example | {"special_tokens_mask": m} for example, m in zip(b, special_rows, strict=True)]
        for b in lists
    ]
    with_offsets = [
        [
            example | {"offset_mapping": pairs}
            for example, pairs in zip(batch, material.offsets(examples), strict=True)
        ]
        for batch, examples in zip(given, material.examples, strict=True)
    ]
    tensors = [[{"input_ids": row} for row in batch] for batch in stacked]
    bare = [list(batch) for batch in stacked]
    return [
        Contender(LISTS, lambda n: collator(lists[n % BATCHES])),
        Contender("transformers mask given", lambda n: collator(given[n % BATCHES])),
        Contender("transformers tensors", lambda n: collator(tensors[n % BATCHES])),
        Contender("transformers stacked", lambda n: collator(bare[n % BATCHES])),
        Contender(
            INNER,
            lambda n: collator.torch_mask_tokens(
                stacked[n % BATCHES].clone(), special_tokens_mask=special
            ),
        ),
        Contender(WHOLE_WORD, lambda n: whole_word(with_offsets[n % BATCHES])),
    ]


def copy_contenders(material: Material) -> list[Contender]:
    """The limits: nothing that writes the ids can be quicker than writing them."""
    ids = [np.array(material.ids[examples]) for examples in material.examples]
    widened = np.empty((material.rows, material.length), np.int64)
    batch_words = widened.size + 2 * int(RATE * widened.size) + material.rows + 1
    source, target = np.zeros((2, batch_words), np.int64)
    return [
        Contender(WIDEN, lambda n: np.copyto(widened, ids[n % BATCHES])),
        Contender("copy: memcpy", lambda n: np.copyto(target, source)),
    ]


def dense(result: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids and labels, int64 `[B, T]`, -100 where nothing is predicted; of any contender."""
    if isinstance(result, Mapping):
        result = result["input_ids"], result["labels"]
    arrays = [part.numpy() if torch.is_tensor(part) else part for part in result]
    if len(arrays) == 2:
        return arrays[0], arrays[1]
    ids, positions, predicted, _ = arrays
    labels = np.full(ids.shape, -100, np.int64)
    labels.reshape(-1)[positions] = predicted
    return ids, labels


def check(contenders: Sequence[Contender], material: Material) -> None:
    """That all of them do the same work.

    Raises:
        RuntimeError: one of them does not.
    """
    original = np.asarray(material.ids[material.examples[0]])
    special = material.special_tokens_mask.astype(bool)
    within_word = material.starts[material.examples[0]][:, 1:] == 0
    results = {contender.name: dense(contender.run(0)) for contender in contenders}
    for name, (ids, labels) in results.items():
        selected = labels != -100
        rate = selected[~special].mean()
        masked = (ids == material.vocabulary.mask_id)[selected].mean()
        expected = 1.0 if name == WHOLE_WORD else 0.8
        torn = (selected[:, 1:] != selected[:, :-1])[within_word].any()
        claims = {
            f"selected {rate:.3f} of the tokens, not {RATE}": abs(rate - RATE) < 0.015,
            f"masked {masked:.3f} of them, not {expected}": abs(masked - expected) < 0.03,
            "selected special tokens": not selected[special].any(),
            "labels are not the original ids": (labels == original)[selected].all(),
            "changed tokens that are not selected": (ids == original)[~selected].all(),
            "tore words apart": not torn or name not in (WORD, "mlmlab span", WHOLE_WORD),
        }
        for failure, holds in claims.items():
            if not holds:
                raise RuntimeError(f"{name} does other work than the rest: {failure}")
    for name in results:
        if name.startswith(f"{TOKEN},") and not all(
            map(np.array_equal, results[name], results[TOKEN])
        ):
            raise RuntimeError(f"{name}: not the batch that one core makes")
