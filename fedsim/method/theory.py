"""What compression costs: what EF21's theoretical steps are made of, beside smoothness constants."""

import torch

from fedsim.method.inbox import Inbox


def contraction_cost(alpha: float, chance: float = 1.0) -> float:
    """xi of a codec with E|C(v) - v|^2 <= (1 - alpha) |v|^2: EF21's step is 1/(L + L_* xi), L_* being L_QM or L_AM.

    With s = sqrt(1 - alpha), theta = 1 - s and beta = s^2 / (1 - s), xi = sqrt(beta / theta) = s / (1 - s). Where each node takes part
    with a chance p alone, sqrt(B / T) with T = p theta - (1 - p) r and B = p beta + (1 - p)(1 + 1/r), at the r > 0 where it is least.
    """
    s = float((1 - alpha) ** 0.5)
    if chance == 1:
        return s / (1 - s)
    theta, beta = 1 - s, s**2 / (1 - s)
    absent, most = 1 - chance, chance * beta + 1 - chance
    r = ((absent**2 + most * chance * theta) ** 0.5 - absent) / most  # most r^2 + 2 absent r = chance theta
    return float(((most + absent / r) / (chance * theta - absent * r)) ** 0.5)


def proven_cost(alpha: float, inbox: Inbox, full: bool) -> float:
    """What stands for xi with gradients of all samples (`full`) or of some, and where nodes take part with one chance each.

    Raises ValueError where nothing is proven.
    """
    need = "theory's step needs nodes that all take part with one known chance"
    try:
        low, high = torch.stack((inbox.frequencies() if inbox.frequencies else inbox.frequency).aminmax()).tolist()
    except ValueError as error:
        raise ValueError(f"{need}: {error}; set `strategy.lr` to `deterministic` or a number") from error
    if low < high or low <= 0:
        raise ValueError(f"{need}: theirs differ; set `strategy.lr` to `deterministic` or a number")
    if full:
        return contraction_cost(alpha, low)
    if low < 1:
        raise ValueError("theory has no step for minibatches where nodes are absent; set `strategy.lr` to `deterministic` or a number")
    # With noise, sqrt(B/T) with T = 1 - q (1 + b) and B = q (1 + 1/b), where q = (1 - alpha)(1 + a) may be any number from 1 - alpha to 1;
    # at the best b it is xi of 1 - q. A smaller a makes a longer step, and counts the noise 1 + 1/a times: q = 1 - alpha/2 is our choice.
    return contraction_cost(alpha / 2)
