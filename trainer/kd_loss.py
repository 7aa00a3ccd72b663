"""The loss of top-k distillation: how far the student's next-token probabilities are from the teacher's.

Of the teacher, only its K likeliest tokens at each place are known; all other tokens are one more bucket, the tail.
So with K = the vocabulary this is the exact forward KL divergence, and with K = 1 the student still learns how sure the
teacher was. Promises little memory: probabilities over the vocabulary exist for a chunk of places at a time, and are
computed again for the gradient. Knows tensors, not rows.
"""

from __future__ import annotations

from typing import Any

CHUNK_PLACES = 512
"""Places at once: of a vocabulary of 150,000, about 300 MiB in float32."""


def distillation_loss(logits: Any, targets: Any, topk_ids: Any, topk_logprobs: Any, *, weight: float) -> Any:
    """Return the loss summed over places: `weight` x KL(teacher || student) + (1 - weight) x cross-entropy.

    logits: (N, V); targets: (N,), the tokens of the answer; topk_ids, topk_logprobs: (N, K), the teacher's. A
    log-probability of -inf is a candidate that is not there; a place that has none learns from cross-entropy alone. Nor
    is one there that the student has no logit for: a larger model of a family may have a wider, padded vocabulary.
    """
    from torch.utils.checkpoint import checkpoint

    topk_logprobs = topk_logprobs.masked_fill(topk_ids >= logits.shape[-1], -float("inf"))
    total = logits.new_zeros((), dtype=_float32())
    for start in range(0, len(targets), CHUNK_PLACES):
        end = start + CHUNK_PLACES
        part = (logits[start:end], targets[start:end], topk_ids[start:end], topk_logprobs[start:end])
        total = total + checkpoint(_chunk_loss, *part, weight, use_reentrant=False)
    return total


def _chunk_loss(logits: Any, targets: Any, topk_ids: Any, topk_logprobs: Any, weight: float) -> Any:
    from torch.nn.functional import cross_entropy

    logits = logits.float()
    losses = cross_entropy(logits, targets, reduction="none")
    known = topk_logprobs.isfinite().any(dim=-1)
    if known.any():
        kl = forward_kl(logits[known], topk_ids[known], topk_logprobs[known])
        mixed = weight * kl + (1 - weight) * losses[known]
        losses = losses.masked_scatter(known, mixed)
    return losses.sum()


def forward_kl(logits: Any, topk_ids: Any, topk_logprobs: Any) -> Any:
    """Return KL(teacher || student) of each place, over the teacher's K tokens and the tail: (N,).

    Every place must have at least one candidate.
    """
    import torch

    there = topk_logprobs.isfinite()
    # A candidate that is not there points at one that is, so that it takes no other token out of the tail.
    ids = torch.where(there, topk_ids, topk_ids.gather(-1, there.int().argmax(-1, keepdim=True))).long()
    log_p = topk_logprobs.float()
    p = torch.where(there, log_p.exp(), 0.0)
    whole = logits.logsumexp(dim=-1, keepdim=True)
    log_q = logits.gather(-1, ids) - whole
    head = torch.where(there, p * (log_p - log_q), 0.0).sum(-1)
    # The tail's own sum, since 1 minus the head's would be rounded away where the student is sure.
    log_q_tail = logits.scatter(-1, ids, -torch.inf).logsumexp(dim=-1) - whole.squeeze(-1)
    p_tail = (1 - p.sum(-1)).clamp(min=0)
    has_tail = (p_tail > 0) & log_q_tail.isfinite()
    log_p_tail = p_tail.clamp(min=torch.finfo(torch.float32).tiny).log()
    return head + torch.where(has_tail, p_tail * (log_p_tail - log_q_tail), 0.0)


def _float32() -> Any:
    import torch

    return torch.float32
