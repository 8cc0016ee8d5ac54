"""How much memory a run will need, before it starts."""

import torch

from mlmlab.model import MaskedLanguageModel
from mlmlab.runtime.config import Precision
from mlmlab.runtime.devices import Compute

_WEIGHT_BYTES = 4
"""A parameter, fp32."""
_TRAINING_BYTES = 12
"""Its gradient and two moments, unless it is frozen."""
_HIDDEN_VECTORS = 10
"""Vectors of the hidden width that backward needs, a token and layer: the two sublayers' inputs,
queries, keys, values, the attention's result, and what dropouts and norms keep."""
_DROPPED_VECTORS = 2
"""More of them where dropout keeps its noise."""
_WEIGHT_COPIES = 4
"""Tables of attention weights that dropout makes the CPU keep: without it, and on CUDA, the fused
kernels keep none."""
_LOGIT_COPIES = 4
"""Logits, their log-softmax and the gradients of both, fp32."""
_SCORING_VECTORS = 6
"""Vectors of the hidden width that a layer works on where backward needs none of them."""
_LAYERS_GATHERED = 2
"""Of a model in shards: the one that computes, and the next one, on its way."""


def expected_memory_bytes(
    model: MaskedLanguageModel,
    compute: Compute,
    *,
    examples: int,
    length: int,
    masked_tokens: int,
    shards: int = 1,
    accumulates: bool = False,
) -> int:
    """An estimate of the peak of a training step's tensors (not of the process: its libraries take
    about half a GiB of host memory besides).

    Args:
        examples: of a micro-batch.
        length: tokens of each.
        masked_tokens: predicted tokens among them.
        shards: processes that share the states of the model (fsdp).
        accumulates: whether a step has several micro-batches, whose gradients wait whole.
    """
    config = model.config
    element = 4 if compute.precision is Precision.FP32 else 2
    vectors = _HIDDEN_VECTORS + (_DROPPED_VECTORS if config.dropout else 0)
    wide = 2 * config.intermediate_size  # before and after the GELU
    layer = examples * length * (vectors * config.hidden_size + wide) * element
    if config.attention_dropout and compute.device.type == "cpu":
        layer += _WEIGHT_COPIES * examples * config.heads * length**2 * element
    logits = masked_tokens * config.vocabulary_size * 4 * _LOGIT_COPIES
    trained = _trained(model)
    states = _state_bytes(model, element, shards, trained * accumulates)
    layers = _layers_with_backward(model)
    if model.gradient_checkpointing and layers:
        inputs = layers * examples * length * config.hidden_size * element
        return states + inputs + layer + logits  # one layer at a time is computed again
    return states + layers * layer + logits


def expected_evaluation_bytes(
    model: MaskedLanguageModel,
    compute: Compute,
    *,
    examples: int,
    length: int,
    masked_tokens: int,
    shards: int = 1,
) -> int:
    """The same of an evaluation during the training, whose states stay where they are.

    Args:
        examples: of a chunk.
        length: tokens of each.
        masked_tokens: predicted tokens among them.
        shards: processes that share the states of the model (fsdp).
    """
    config = model.config
    element = 4 if compute.precision is Precision.FP32 else 2
    wide = 2 * config.intermediate_size  # before and after the GELU
    layer = examples * length * (_SCORING_VECTORS * config.hidden_size + wide) * element
    # The logits, and in fp32 their log-softmax and, unless they are fp32 themselves, a copy.
    copies = element + 4 + (4 if element < 4 else 0)
    logits = masked_tokens * config.vocabulary_size * copies
    return _state_bytes(model, element, shards, 0) + max(layer, logits)


def _trained(model: MaskedLanguageModel) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _state_bytes(model: MaskedLanguageModel, element: int, shards: int, waiting: int) -> int:
    """Weights, gradients and moments, and what a process gathers where they are in shards."""
    states = model.parameter_count() * _WEIGHT_BYTES + _trained(model) * _TRAINING_BYTES
    if shards > 1:
        states = states // shards + _gathered_bytes(model, element, waiting)
    return states


def _gathered_bytes(model: MaskedLanguageModel, element: int, waiting: int) -> int:
    """What a process has beside its shards: embeddings and head with their gradients, a layer and
    the next one with the gradients of one, copies of these gradients on their way; autocast's
    rounded weights, which backward needs; and the numbers of gradients that wait for the last
    micro-batch."""
    layer = sum(p.numel() for p in model.layers[0].parameters())
    ends = model.parameter_count() - layer * len(model.layers)
    whole = (ends + _LAYERS_GATHERED * layer) + 2 * max(ends, layer) + waiting
    rounded = 0 if element == _WEIGHT_BYTES else model.parameter_count() * element
    return whole * _WEIGHT_BYTES + rounded


def _layers_with_backward(model: MaskedLanguageModel) -> int:
    """Those from the lowest part that trains on: below it nothing is kept for backward."""
    for number, part in enumerate((model.embeddings, *model.layers)):
        if any(p.requires_grad for p in part.parameters()):
            return len(model.layers) - max(0, number - 1)
    return 0


def device_memory_bytes(compute: Compute) -> int | None:
    """What the device has in all; None for the host, whose memory the run shares."""
    if compute.device.type != "cuda":
        return None
    return int(torch.cuda.get_device_properties(compute.device).total_memory)
