"""The Hub's parameter names, as tables: ours on the left, theirs on the right.

One table per family; where ours is made of several of theirs, they are joined along the first
dimension (query, key and value are one matrix here). The inverse, for saving, is derived.
`{i}` is the layer's number.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from mlmlab.model import Family, ModelConfig

Names = Mapping[str, tuple[str, ...]]


def _both(ours: str, *theirs: str) -> dict[str, tuple[str, ...]]:
    """A module that has a weight and a bias."""
    return {
        f"{ours}.{kind}": tuple(f"{name}.{kind}" for name in theirs) for kind in ("weight", "bias")
    }


_BERT_BODY: Names = {
    "embeddings.token.weight": ("embeddings.word_embeddings.weight",),
    "embeddings.position.weight": ("embeddings.position_embeddings.weight",),
    "embeddings.token_type.weight": ("embeddings.token_type_embeddings.weight",),
    **_both("embeddings.norm", "embeddings.LayerNorm"),
    **_both(
        "layers.{i}.attention.qkv",
        "encoder.layer.{i}.attention.self.query",
        "encoder.layer.{i}.attention.self.key",
        "encoder.layer.{i}.attention.self.value",
    ),
    **_both("layers.{i}.attention.output", "encoder.layer.{i}.attention.output.dense"),
    **_both("layers.{i}.attention_norm", "encoder.layer.{i}.attention.output.LayerNorm"),
    **_both("layers.{i}.feed_forward.up", "encoder.layer.{i}.intermediate.dense"),
    **_both("layers.{i}.feed_forward.down", "encoder.layer.{i}.output.dense"),
    **_both("layers.{i}.feed_forward_norm", "encoder.layer.{i}.output.LayerNorm"),
}

_DISTILBERT_BODY: Names = {
    "embeddings.token.weight": ("embeddings.word_embeddings.weight",),
    "embeddings.position.weight": ("embeddings.position_embeddings.weight",),
    **_both("embeddings.norm", "embeddings.LayerNorm"),
    **_both(
        "layers.{i}.attention.qkv",
        "transformer.layer.{i}.attention.q_lin",
        "transformer.layer.{i}.attention.k_lin",
        "transformer.layer.{i}.attention.v_lin",
    ),
    **_both("layers.{i}.attention.output", "transformer.layer.{i}.attention.out_lin"),
    **_both("layers.{i}.attention_norm", "transformer.layer.{i}.sa_layer_norm"),
    **_both("layers.{i}.feed_forward.up", "transformer.layer.{i}.ffn.lin1"),
    **_both("layers.{i}.feed_forward.down", "transformer.layer.{i}.ffn.lin2"),
    **_both("layers.{i}.feed_forward_norm", "transformer.layer.{i}.output_layer_norm"),
}


@dataclass(frozen=True)
class FamilyNames:
    """How one family's files name things."""

    prefix: str
    """In front of the body's names; a file of the bare encoder lacks it."""
    head_prefix: str
    """In front of the masked-LM head's names. Other names belong to heads of other tasks."""
    body: Names
    head: Names
    tied: Mapping[str, str]
    """Names that a file may give to a tensor a second time, with the name they repeat (theirs)."""
    ignored: tuple[str, ...]
    """Parts of the body that this model has no use for: regular expressions on the names in a file.
    They and the foreign heads are listed in the report; any other unknown name is an error."""


FAMILIES: Mapping[Family, FamilyNames] = {
    Family.BERT: FamilyNames(
        prefix="bert.",
        head_prefix="cls.predictions.",
        body=_BERT_BODY,
        head={
            **_both("head.dense", "cls.predictions.transform.dense"),
            **_both("head.norm", "cls.predictions.transform.LayerNorm"),
            "head.decoder_bias": ("cls.predictions.bias",),
        },
        tied={
            "cls.predictions.decoder.bias": "cls.predictions.bias",
            "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        },
        ignored=(r"bert\.embeddings\.position_ids", r"bert\.pooler\."),
    ),
    Family.ROBERTA: FamilyNames(
        prefix="roberta.",
        head_prefix="lm_head.",
        body=_BERT_BODY,
        head={
            **_both("head.dense", "lm_head.dense"),
            **_both("head.norm", "lm_head.layer_norm"),
            "head.decoder_bias": ("lm_head.bias",),
        },
        tied={
            "lm_head.decoder.bias": "lm_head.bias",
            "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        },
        ignored=(r"roberta\.embeddings\.position_ids", r"roberta\.pooler\."),
    ),
    Family.DISTILBERT: FamilyNames(
        prefix="distilbert.",
        head_prefix="vocab_",
        body=_DISTILBERT_BODY,
        head={
            **_both("head.dense", "vocab_transform"),
            **_both("head.norm", "vocab_layer_norm"),
            "head.decoder_bias": ("vocab_projector.bias",),
        },
        tied={"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"},
        ignored=(r"distilbert\.embeddings\.position_ids",),
    ),
}


def hub_names(config: ModelConfig) -> dict[str, tuple[str, ...]]:
    """Every parameter of ours with the full names that make it up in a file of its family."""
    names = FAMILIES[config.family]
    table: dict[str, tuple[str, ...]] = {}
    for ours, theirs in names.body.items():
        if ours.startswith("embeddings.token_type") and not config.token_types:
            continue
        for i in range(config.layers) if "{i}" in ours else (0,):
            table[ours.format(i=i)] = tuple(names.prefix + name.format(i=i) for name in theirs)
    return table | dict(names.head)
