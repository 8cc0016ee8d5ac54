"""Tiny random reference models of every family, written by transformers itself."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

VOCABULARY = 120
SIZES = {"layers": 2, "width": 32, "heads": 4, "inner": 64}


@dataclass(frozen=True)
class Reference:
    """A transformers model in a folder."""

    model: Any
    folder: Path


def _configs() -> dict[str, Any]:
    import transformers

    bert_like = {
        "vocab_size": VOCABULARY,
        "hidden_size": SIZES["width"],
        "num_hidden_layers": SIZES["layers"],
        "num_attention_heads": SIZES["heads"],
        "intermediate_size": SIZES["inner"],
    }
    modern = {
        **bert_like,
        "num_hidden_layers": 5,  # two global, three local, one of these the last
        "max_position_embeddings": 40,
        "local_attention": 8,  # rows of 24 reach beyond it
        **dict.fromkeys(("cls_token_id", "bos_token_id"), 1),
        **dict.fromkeys(("sep_token_id", "eos_token_id"), 2),
        "pad_token_id": 0,
    }
    return {
        "bert": transformers.BertConfig(**bert_like, max_position_embeddings=40),
        "roberta": transformers.RobertaConfig(
            **bert_like, max_position_embeddings=42, type_vocab_size=1, layer_norm_eps=1e-5
        ),
        "camembert": transformers.CamembertConfig(
            **bert_like, max_position_embeddings=42, type_vocab_size=1, layer_norm_eps=1e-5
        ),
        "xlm-roberta": transformers.XLMRobertaConfig(
            **bert_like, max_position_embeddings=42, type_vocab_size=1, layer_norm_eps=1e-5
        ),
        "distilbert": transformers.DistilBertConfig(
            vocab_size=VOCABULARY,
            dim=SIZES["width"],
            n_layers=SIZES["layers"],
            n_heads=SIZES["heads"],
            hidden_dim=SIZES["inner"],
            max_position_embeddings=40,
        ),
        "electra": transformers.ElectraConfig(
            **bert_like, embedding_size=16, max_position_embeddings=40
        ),
        "ernie": transformers.ErnieConfig(**bert_like, max_position_embeddings=40),
        "modernbert": transformers.ModernBertConfig(**modern),
        "mmbert": transformers.ModernBertConfig(
            **modern, global_rope_theta=160_000.0, local_rope_theta=160_000.0
        ),
    }


FAMILIES = (
    "bert", "roberta", "camembert", "xlm-roberta", "distilbert", "electra", "ernie",
    "modernbert", "mmbert",
)  # fmt: skip


def write_reference(family: str, folder: Path, config: Any = None, seed: int = 0) -> Reference:
    """A random model whose every parameter matters: biases and norms are not left at 0 and 1."""
    import transformers

    config = config or _configs()[family]
    torch.manual_seed(seed)
    model = transformers.AutoModelForMaskedLM.from_config(config, attn_implementation="sdpa")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    model.eval()
    model.save_pretrained(folder)
    return Reference(model, folder)


def padded_batch(pad_id: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids `[4, 24]` whose rows end in 0, 3, 11 and 20 padding tokens, and the bool mask."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, VOCABULARY, (4, 24), generator=generator)
    mask = torch.arange(24)[None, :] < torch.tensor([24, 21, 13, 4])[:, None]
    return torch.where(mask, ids, pad_id), mask
