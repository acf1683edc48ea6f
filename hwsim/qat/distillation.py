"""The losses of Q-ViT: hard distillation (Eq. 5) and distribution guided distillation (Eq. 10, 11).

Equation 10 is taken by its letter: the similarity matrix of the queries (or keys) of a head, ``q q^T`` over the tokens
of an image, is divided by its Frobenius norm. Eq. 11 has the tilde of the matrices before the normalisation, which the
paper's text ("eliminate scale differences") contradicts; the normalised ones are compared. The sum runs over blocks and
heads; images, and windows where the network has them, are averaged.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from hwsim.qat.network import GraphModule

# Square of a distance below which two patterns count as the same; keeps the gradient of the root finite.
SAME = 1e-6


def relation_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Frobenius distance of the normalised similarity matrices of tokens.

    ``||A - B||^2 = 2 - 2 <A, B>`` of normalised matrices, and ``<p p^T, q q^T> = ||p^T q||^2``, so that the matrices of
    all pairs of tokens, which are larger than those of all pairs of channels, are never made.

    Parameters
    ----------
    student, teacher : float32 Tensor [..., heads, tokens, d]
        The channels d of the two may differ.

    Returns
    -------
    float32 Tensor [..., heads]
    """

    def product(a: Tensor, b: Tensor) -> Tensor:
        return (a.transpose(-1, -2) @ b).square().sum(dim=(-1, -2))

    # Of the size of 1, whatever the network: the square of a square must neither vanish nor overflow.
    a, b = (x / x.square().mean(dim=(-1, -2), keepdim=True).sqrt().clamp(min=1e-12) for x in (student, teacher))
    norms = (product(a, a) * product(b, b)).sqrt().clamp(min=1e-12)
    return (2 - 2 * product(a, b) / norms).clamp(min=SAME).sqrt()


def dgd_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Equation 11: distances of queries and keys, summed over blocks and heads, a mean over images and windows.

    Parameters
    ----------
    student, teacher : sequence of Tensor [..., heads, tokens, d]
        Queries and keys of every block, in the same order.
    """
    # Blocks of the same shape at once, as their kernels are short.
    shapes: dict[tuple[torch.Size, torch.Size], list[tuple[Tensor, Tensor]]] = {}
    for mine, other in zip(student, teacher, strict=True):
        shapes.setdefault((mine.shape, other.shape), []).append((mine, other))
    total = torch.zeros((), device=student[0].device)
    for pairs in shapes.values():
        mine, other = (torch.stack(blocks).float() for blocks in zip(*pairs, strict=True))
        distance = relation_distance(mine, other)
        total = total + distance.sum(dim=-1).mean() * len(pairs)
    return total


class DistillationLoss(nn.Module):
    """The training objective: student and teacher on the same images.

    Parameters
    ----------
    student : GraphModule
    teacher : GraphModule
        The float network; frozen.
    distillation : bool
        Half of the classification loss against the teacher's class.
    dgd : float
        Weight of `dgd_loss`; 0 leaves it out.
    autocast : bool
        Linear layers and matrix products of both networks in bfloat16. The losses stay in float32.
    """

    def __init__(
        self, student: GraphModule, teacher: GraphModule, *, distillation: bool, dgd: float, autocast: bool
    ) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher.requires_grad_(False)
        self.distillation, self.dgd, self.autocast = distillation, dgd, autocast

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Loss, and its parts: cross-entropy on the labels, on the teacher's classes, DGD; float32 [4].

        Parameters
        ----------
        x : float32 Tensor [B, H, W, C]
            Normalised images.
        labels : int64 Tensor [B]
        """
        # Without its cache, whose casts of an earlier call a CUDA graph would not see again.
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.autocast, cache_enabled=False):
            logits, relations = self.student(x)
            with torch.no_grad():
                known, patterns = self.teacher(x)
        logits = logits.float()
        nothing = torch.zeros((), device=x.device)
        of_labels = functional.cross_entropy(logits, labels)
        of_teacher = functional.cross_entropy(logits, known.argmax(dim=1)) if self.distillation else nothing
        loss = (of_labels + of_teacher) / 2 if self.distillation else of_labels
        of_patterns = nothing
        if self.dgd:
            of_patterns = dgd_loss(relations, patterns)
            loss = loss + self.dgd * of_patterns
        return torch.stack([loss, of_labels, of_teacher, of_patterns])
