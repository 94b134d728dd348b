"""Learning from another network's answer (Hinton et al., arXiv 1503.02531)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy


def distillation(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy () of softened answers, times the temperature's square, which keeps gradients of one size (section 2.1).

    Args:
        logits: of the student, (b, classes).
        teacher: logits on the same inputs, (b, classes); no gradient flows into them.
        temperature: logits are divided by it.
    """
    # Half precision, if that is what autocast left, would round the probabilities.
    answer = (teacher.detach().float() / temperature).softmax(dim=1)
    return temperature**2 * cross_entropy(logits.float() / temperature, answer)
