"""The arithmetic of a step is what PyTorch counts when the step runs."""

from functools import partial

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mlmlab.model import Family, MaskedLanguageModel, ModelConfig, token_losses
from mlmlab.model.families import ARCHITECTURES
from mlmlab.model.flops import actual_flops, dense_equivalent_flops

TINY = {"hidden_size": 32, "layers": 2, "heads": 4, "intermediate_size": 64, "vocabulary_size": 60}
ONE_LAYER = {**TINY, "layers": 1}
MEDIUM = {
    "hidden_size": 192, "layers": 6, "heads": 3, "intermediate_size": 512, "vocabulary_size": 5000,
}  # fmt: skip


def _config(family: Family, sizes: dict[str, int]) -> ModelConfig:
    return ModelConfig(
        **sizes,
        family=family,
        embedding_size=24 if family is Family.ELECTRA else None,
        max_positions=64,
        **ARCHITECTURES[family].checkpoint_defaults(),
        pad_id=1,
        initializer_range=0.02,
        dropout=0.0,
        attention_dropout=0.0,
    )


def _counted(config: ModelConfig, examples: int, length: int, positions: torch.Tensor) -> int:
    """The products of one forward and backward pass. Fused attention computes its scores again in
    backward, which counts as recomputation; the plain kernel does not."""
    model = MaskedLanguageModel(config)
    ids = torch.randint(5, config.vocabulary_size, (examples, length))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        logits = model(ids, positions=positions)
        labels = torch.zeros(len(logits), dtype=torch.long)
        token_losses(logits, labels).sum().backward()
    return int(counter.get_total_flops())


SHAPES = pytest.mark.parametrize(
    ("sizes", "examples", "length", "predicted"),
    [(TINY, 3, 10, 4), (ONE_LAYER, 2, 16, 5), (MEDIUM, 4, 64, 38), (MEDIUM, 1, 48, 48)],
)
FAMILIES = pytest.mark.parametrize("family", Family)


@FAMILIES
@SHAPES
def test_the_actual_count_is_that_of_the_gathered_step(
    family: Family, sizes: dict[str, int], examples: int, length: int, predicted: int
) -> None:
    config = _config(family, sizes)
    positions = torch.randperm(examples * length)[:predicted].sort().values
    expected = actual_flops(config, examples=examples, length=length, predicted=predicted)
    assert expected == _counted(config, examples, length, positions)


@FAMILIES
@SHAPES
def test_the_dense_equivalent_is_the_count_with_every_position_predicted(
    family: Family, sizes: dict[str, int], examples: int, length: int, predicted: int
) -> None:
    config = _config(family, sizes)
    dense = dense_equivalent_flops(config, examples=examples, length=length)
    assert dense == _counted(config, examples, length, torch.arange(examples * length))
    assert dense > actual_flops(config, examples=examples, length=length, predicted=predicted) or (
        predicted == examples * length
    )


@FAMILIES
def test_the_dense_equivalent_is_what_transformers_computes(family: Family) -> None:
    import transformers
    from torch.utils.flop_counter import FlopCounterMode

    config = _config(family, MEDIUM)
    sizes = {"vocab_size": 5000, "max_position_embeddings": 66}
    if family is Family.DISTILBERT:
        reference = transformers.DistilBertConfig(
            **sizes, dim=192, n_layers=6, n_heads=3, hidden_dim=512
        )
    else:
        kind = {
            Family.BERT: transformers.BertConfig,
            Family.ROBERTA: transformers.RobertaConfig,
            Family.ELECTRA: partial(transformers.ElectraConfig, embedding_size=24),
            Family.ERNIE: transformers.ErnieConfig,
            Family.MODERNBERT: partial(
                transformers.ModernBertConfig,
                **dict.fromkeys(("pad_token_id", "cls_token_id", "bos_token_id"), 1),
                **dict.fromkeys(("sep_token_id", "eos_token_id"), 2),
            ),
        }
        reference = kind[family](
            **sizes,
            hidden_size=192,
            num_hidden_layers=6,
            num_attention_heads=3,
            intermediate_size=512,
        )
    model = transformers.AutoModelForMaskedLM.from_config(reference, attn_implementation="eager")
    ids = torch.randint(5, 5000, (2, 64))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    dense = dense_equivalent_flops(config, examples=2, length=64)
    assert dense == pytest.approx(counter.get_total_flops(), rel=1e-6)
