"""How much memory a run will need, before it starts."""

from mlmlab.model import MaskedLanguageModel
from mlmlab.model.attention import keeps_weights
from mlmlab.model.families import Norms
from mlmlab.runtime.config import Precision
from mlmlab.runtime.devices import Compute

_SCORING_VECTORS = 6
"""Vectors of the hidden width, per token, of a layer that computes without a backward pass."""


def expected_memory_bytes(
    model: MaskedLanguageModel,
    compute: Compute,
    *,
    examples: int,
    length: int,
    masked_tokens: int,
    accumulates: bool = False,
    shards: int = 1,
    trains: bool = True,
) -> int:
    """An estimate of the peak of a run's tensors (not of the process: its libraries take about half
    a GiB of host memory besides).

    Args:
        examples: of a micro-batch, or of what an evaluation computes at a time.
        length: tokens of each.
        masked_tokens: predicted tokens among them.
        accumulates: whether a step has several micro-batches.
        shards: processes that share the states of the model (fsdp).
        trains: whether it is a training step; else an evaluation during the training, whose states
            stay where they are.
    """
    config = model.config
    element = 4 if compute.precision is Precision.FP32 else 2
    count = model.parameter_count()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    lasting, gradients = 4 * count + 8 * trained, 4 * trained  # weights and two moments, fp32
    if shards > 1:  # besides its shards, each gathers embeddings, head and two layers at a time
        layer = sum(p.numel() for p in model.layers[0].parameters())
        gathered = 4 * (count - layer * max(0, len(model.layers) - 2))
        lasting, gradients = lasting // shards + gathered, gradients // shards + gathered
    logits = element * masked_tokens * config.vocabulary_size
    # Their softmax in fp32, of which the CPU has a few rows at a time.
    softmax = 4 * masked_tokens * config.vocabulary_size if compute.is_cuda else 0
    if not trains:
        inner = (2 if config.architecture.norms is Norms.POST else 4) * config.intermediate_size
        vectors = _SCORING_VECTORS * config.hidden_size + inner
        highest = max(examples * length * vectors * element, logits + softmax)
        return lasting + gradients + highest
    kept = _kept_bytes(model, compute, element, examples, length, masked_tokens)
    table = element * config.vocabulary_size * config.table_width
    in_half = 3 * table if element == 2 else 0  # the table's gradient, and the same in fp32
    # Besides what forward keeps: the logits, and their gradient; then that of the table, which
    # comes first; then the gradients within a layer.
    stream = 3 * config.hidden_size * _residual_bytes(model, compute, element)
    in_layer = examples * length * (stream + 2 * config.intermediate_size * element)
    highest = kept + max(2 * logits + softmax, logits + table, in_half, in_layer)
    if accumulates:
        return lasting + gradients + highest
    return lasting + max(highest, gradients)


def _kept_bytes(
    model: MaskedLanguageModel,
    compute: Compute,
    element: int,
    examples: int,
    length: int,
    masked_tokens: int,
) -> int:
    """What a forward pass keeps for backward, but for the logits.

    Each term is a tensor that autograd saves: an `element` is of the precision of the matrix
    products, and dropout keeps a byte of each number.
    """
    config = model.config
    hidden, inner, dropout = config.hidden_size, config.intermediate_size, bool(config.dropout)
    attention = 0  # the fused kernels keep no table of weights
    rate = config.attention_dropout
    if keeps_weights(rate, compute.device, length, in_half=element == 2):
        size = 2 * element + 1 if rate else element
        attention = examples * config.heads * length**2 * size
    if config.architecture.norms is Norms.POST:
        # The input, queries, keys and values.
        before = hidden * 4 * element
        # Their mixture; the sum that is normalized, and that norm; the feed-forward's two; the sum.
        residual = _residual_bytes(model, compute, element)
        after = hidden * (2 * element + 2 * residual + 2 * dropout) + inner * 2 * element
    else:
        # The residual, its norm, queries, keys and values; the first two rotated.
        before = hidden * (4 + 6 * element)
        # Their mixture; the sum, and its norm; value and gate; the GELU and the product.
        after = hidden * (2 * element + 4) + inner * (4 * element + dropout)
    tokens, layers = examples * length, _layers_with_backward(model)
    if not layers:
        return 0
    last = tokens * before + masked_tokens * after + attention
    if model.gradient_checkpointing:  # of the others their inputs; one at a time is computed again
        inputs = layers * tokens * hidden * _residual_bytes(model, compute, element)
        kept = inputs + max(last, tokens * (before + after) + attention)
    else:
        kept = (layers - 1) * (tokens * (before + after) + attention) + last
    if element == 2:  # autocast's copies of the weights
        kept += 2 * model.parameter_count()
    return kept


def _residual_bytes(model: MaskedLanguageModel, compute: Compute, element: int) -> int:
    """Of a number of the residual stream (`ResidualNorm`)."""
    is_post_norm = model.config.architecture.norms is Norms.POST
    return element if is_post_norm and compute.is_cuda else 4


def _layers_with_backward(model: MaskedLanguageModel) -> int:
    """Those from the lowest part that trains on: below it nothing is kept for backward."""
    for number, part in enumerate((model.embeddings, *model.layers)):
        if any(p.requires_grad for p in part.parameters()):
            return len(model.layers) - max(0, number - 1)
    return 0
