"""How much memory a run will need, before it starts."""

from collections.abc import Mapping

from mlmlab.model import MaskedLanguageModel
from mlmlab.model.families import FeedForwards
from mlmlab.runtime.config import Precision
from mlmlab.runtime.devices import Compute

_WEIGHT_BYTES = 4
"""A parameter, fp32."""
_TRAINING_BYTES = 12
"""Its gradient and two moments, unless it is frozen."""
_KEPT_VECTORS = 10
"""Vectors of the hidden width that a layer keeps for backward, per token: the two sublayers'
inputs, queries, keys, values, the attention's result, and what the norms keep."""
_KEPT_INNER_VECTORS: Mapping[FeedForwards, int] = {FeedForwards.GELU: 2, FeedForwards.GEGLU: 4}
"""Vectors of the inner width that a feed-forward keeps: before and after the GELU; with a gate also
the gate and the product."""
_SCORING_VECTORS = 6
"""Those of a layer that computes without a backward pass."""
_ATTENTION_COPIES = 2
"""Tables of attention weights that dropout makes the CPU keep, before it and after: without it,
and on CUDA, the fused kernels keep none."""


def expected_memory_bytes(
    model: MaskedLanguageModel,
    compute: Compute,
    *,
    examples: int,
    length: int,
    masked_tokens: int,
    shards: int = 1,
    trains: bool = True,
) -> int:
    """An estimate of the peak of a run's tensors (not of the process: its libraries take about half
    a GiB of host memory besides).

    Args:
        examples: of a micro-batch, or of an evaluation's chunk.
        length: tokens of each.
        masked_tokens: predicted tokens among them.
        shards: processes that share the states of the model (fsdp).
        trains: whether it is a training step; else an evaluation during the training, whose states
            stay where they are.
    """
    config = model.config
    element = 4 if compute.precision is Precision.FP32 else 2
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    states = model.parameter_count() * _WEIGHT_BYTES + trained * _TRAINING_BYTES
    if shards > 1:  # besides its shards, each gathers embeddings, head and two layers at a time
        layer = sum(p.numel() for p in model.layers[0].parameters())
        gathered = model.parameter_count() - layer * max(0, len(model.layers) - 2)
        states = states // shards + 2 * gathered * _WEIGHT_BYTES  # with their gradients

    vectors = _KEPT_VECTORS if trains else _SCORING_VECTORS
    inner = _KEPT_INNER_VECTORS[config.architecture.feed_forward] * config.intermediate_size
    layer = examples * length * (vectors * config.hidden_size + inner) * element
    logits = masked_tokens * config.vocabulary_size * 4 * 2  # and their log-softmax, fp32
    if not trains:
        return states + max(layer, logits)
    logits *= 2  # and the gradients of both
    if config.attention_dropout and compute.device.type == "cpu":
        layer += _ATTENTION_COPIES * examples * config.heads * length**2 * element
    layers = _layers_with_backward(model)
    if model.gradient_checkpointing and layers:
        inputs = layers * examples * length * config.hidden_size * element
        return states + inputs + layer + logits  # one layer at a time is computed again
    return states + layers * layer + logits


def _layers_with_backward(model: MaskedLanguageModel) -> int:
    """Those from the lowest part that trains on: below it nothing is kept for backward."""
    for number, part in enumerate((model.embeddings, *model.layers)):
        if any(p.requires_grad for p in part.parameters()):
            return len(model.layers) - max(0, number - 1)
    return 0
