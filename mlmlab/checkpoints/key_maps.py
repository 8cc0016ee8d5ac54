"""The Hub's names, as tables: ours on the left, theirs on the right. One map per family.

Where one of our parameters is made of several of theirs, they are joined along the first dimension
(query, key and value are one matrix here). The inverse, for saving, is derived. `{i}` is the
layer's number.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mlmlab.model import Family, MaskedLanguageModel

Names = dict[str, tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class KeyMap:
    """How one family's files name things."""

    model_types: tuple[str, ...]
    """What config.json may call the family; the first is what we write."""
    model_class: str
    """The class of transformers that opens it, for config.json."""
    config: Mapping[str, str]
    """Fields of ModelConfig with their keys in config.json. What has none is in the family's
    record (model/families.py)."""
    constants: Mapping[str, Any]
    """Keys of config.json that change the model, with the values that this encoder implements.
    They are written; a file with other values is refused."""
    repeated: Mapping[str, str]
    """Keys of config.json for which this encoder has one field, with the key that `config` names.
    Both are written; a file in which they differ is refused."""
    defaults: Mapping[str, Any]
    """What the Hub's own reader assumes of our fields where a file is silent (old files are)."""
    prefix: str
    """In front of the body's names; a file of the bare encoder lacks it."""
    head_prefixes: tuple[str, ...]
    """In front of the masked-LM head's names. Other names belong to heads of other tasks."""
    body: Names
    """Every parameter that a model of the family may have. What a model lacks (biases, token types)
    its files lack, too."""
    head: Names
    tied: Mapping[str, str]
    """Names that a file may give to a tensor a second time, with the name they repeat (theirs)."""
    ignored: tuple[str, ...]
    """Beginnings of names in the body that this model has no use for. They and the foreign heads
    are listed in the report; any other unknown name is an error."""
    shared_head: tuple[str, ...] = ()
    """Beginnings of names in the head that heads of other tasks have as well. In a file with such a
    head and without the rest of ours, these tensors belong to the other task."""


def _both(ours: str, *theirs: str) -> dict[str, tuple[str, ...]]:
    """A module that has a weight and, in most families, a bias."""
    return {
        f"{ours}.{kind}": tuple(f"{name}.{kind}" for name in theirs) for kind in ("weight", "bias")
    }


_BERT_CONFIG: dict[str, str] = {
    "vocabulary_size": "vocab_size",
    "hidden_size": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "token_types": "type_vocab_size",
    "layer_norm_eps": "layer_norm_eps",
    "pad_id": "pad_token_id",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "initializer_range": "initializer_range",
}

_DEFAULTS: Mapping[str, Any] = {
    "pad_id": 0,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "initializer_range": 0.02,
}
_BERT_DEFAULTS: Mapping[str, Any] = {**_DEFAULTS, "token_types": 2, "layer_norm_eps": 1e-12}

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

_BERT = KeyMap(
    model_types=("bert",),
    model_class="BertForMaskedLM",
    config=_BERT_CONFIG,
    constants={"hidden_act": "gelu", "position_embedding_type": "absolute"},
    repeated={},
    defaults=_BERT_DEFAULTS,
    prefix="bert.",
    head_prefixes=("cls.predictions.",),
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
    ignored=("embeddings.position_ids", "pooler."),
)

KEY_MAPS: Mapping[Family, KeyMap] = {
    Family.BERT: _BERT,
    Family.ROBERTA: KeyMap(
        model_types=("roberta", "camembert", "xlm-roberta"),
        model_class="RobertaForMaskedLM",
        config=_BERT_CONFIG,
        constants={"hidden_act": "gelu", "position_embedding_type": "absolute"},
        repeated={},
        defaults={**_BERT_DEFAULTS, "pad_id": 1},
        prefix="roberta.",
        head_prefixes=("lm_head.",),
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
        ignored=("embeddings.position_ids", "pooler."),
    ),
    Family.DISTILBERT: KeyMap(
        model_types=("distilbert",),
        model_class="DistilBertForMaskedLM",
        config={
            "vocabulary_size": "vocab_size",
            "hidden_size": "dim",
            "layers": "n_layers",
            "heads": "n_heads",
            "intermediate_size": "hidden_dim",
            "max_positions": "max_position_embeddings",
            "pad_id": "pad_token_id",
            "dropout": "dropout",
            "attention_dropout": "attention_dropout",
            "initializer_range": "initializer_range",
        },
        constants={"activation": "gelu"},
        repeated={},
        defaults=_DEFAULTS,
        prefix="distilbert.",
        head_prefixes=("vocab_",),
        body={
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
        },
        head={
            **_both("head.dense", "vocab_transform"),
            **_both("head.norm", "vocab_layer_norm"),
            "head.decoder_bias": ("vocab_projector.bias",),
        },
        tied={"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"},
        ignored=("embeddings.position_ids",),
    ),
    Family.ELECTRA: KeyMap(
        model_types=("electra",),
        model_class="ElectraForMaskedLM",
        config=_BERT_CONFIG | {"embedding_size": "embedding_size"},
        constants={"hidden_act": "gelu", "position_embedding_type": "absolute"},
        repeated={},
        defaults={**_BERT_DEFAULTS, "embedding_size": 128},
        prefix="electra.",
        head_prefixes=("generator_",),
        body=_BERT_BODY | _both("embeddings.projection", "embeddings_project"),
        head={
            **_both("head.dense", "generator_predictions.dense"),
            **_both("head.norm", "generator_predictions.LayerNorm"),
            "head.decoder_bias": ("generator_lm_head.bias",),
        },
        tied={"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"},
        ignored=("embeddings.position_ids",),
    ),
    Family.ERNIE: replace(
        _BERT,
        model_types=("ernie",),
        model_class="ErnieForMaskedLM",
        constants={**_BERT.constants, "use_task_id": False},
        prefix="ernie.",
        tied={
            "cls.predictions.decoder.bias": "cls.predictions.bias",
            "cls.predictions.decoder.weight": "ernie.embeddings.word_embeddings.weight",
        },
    ),
    Family.MODERNBERT: KeyMap(
        model_types=("modernbert",),
        model_class="ModernBertForMaskedLM",
        config={
            "vocabulary_size": "vocab_size",
            "hidden_size": "hidden_size",
            "layers": "num_hidden_layers",
            "heads": "num_attention_heads",
            "intermediate_size": "intermediate_size",
            "max_positions": "max_position_embeddings",
            "layer_norm_eps": "norm_eps",
            "global_every_n_layers": "global_attn_every_n_layers",
            "local_attention": "local_attention",
            "global_rope_theta": "global_rope_theta",
            "local_rope_theta": "local_rope_theta",
            "pad_id": "pad_token_id",
            "dropout": "mlp_dropout",
            "attention_dropout": "attention_dropout",
            "initializer_range": "initializer_range",
        },
        constants={
            "hidden_activation": "gelu",
            "classifier_activation": "gelu",  # the masked-LM head's, too
            "attention_bias": False,
            "mlp_bias": False,
            "norm_bias": False,
            "classifier_bias": False,
            "decoder_bias": True,
        },
        repeated={"embedding_dropout": "mlp_dropout"},
        defaults={**_DEFAULTS, "pad_id": 50283, "dropout": 0.0, "attention_dropout": 0.0},
        prefix="model.",
        head_prefixes=("head.", "decoder."),
        body={
            "embeddings.token.weight": ("embeddings.tok_embeddings.weight",),
            **_both("embeddings.norm", "embeddings.norm"),
            **_both("layers.{i}.attention_norm", "layers.{i}.attn_norm"),
            **_both("layers.{i}.attention.qkv", "layers.{i}.attn.Wqkv"),
            **_both("layers.{i}.attention.output", "layers.{i}.attn.Wo"),
            **_both("layers.{i}.feed_forward_norm", "layers.{i}.mlp_norm"),
            **_both("layers.{i}.feed_forward.up", "layers.{i}.mlp.Wi"),
            **_both("layers.{i}.feed_forward.down", "layers.{i}.mlp.Wo"),
            **_both("layers.{i}.final_norm", "final_norm"),  # the last layer has it
        },
        head={
            **_both("head.dense", "head.dense"),
            **_both("head.norm", "head.norm"),
            "head.decoder_bias": ("decoder.bias",),
        },
        tied={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
        ignored=(),
        shared_head=("head.",),
    ),
}


def hub_names(model: MaskedLanguageModel) -> dict[str, tuple[str, ...]]:
    """Every parameter of a model with the full names that make it up in a file of its family."""
    key_map = KEY_MAPS[model.config.family]
    table = {
        ours.format(i=i): tuple(key_map.prefix + name.format(i=i) for name in theirs)
        for ours, theirs in key_map.body.items()
        for i in range(model.config.layers)
    }
    names = {name for name, _ in model.named_parameters()}
    table = {ours: theirs for ours, theirs in (table | key_map.head).items() if ours in names}
    assert table.keys() == names, f"without a name on the Hub: {names - table.keys()}"
    return table
