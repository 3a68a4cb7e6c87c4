"""FedVARP: Jhunjhunwala, Sharma, Nagarkatti, Joshi 2022, "FedVARP: Tackling the Variance Due to Partial Client Participation",
https://arxiv.org/abs/2207.14130: FedStale that trusts remembered updates as much as fresh ones."""

from dataclasses import dataclass
from typing import ClassVar

from fedsim import setting
from strategies.fedstale import FedStale


@dataclass(frozen=True)
class FedVarp(FedStale):
    """x + server_lr x (sum_all alpha_i h_i + sum_S (alpha_i / p_i) (update_i - h_i)); then h_i <- update_i in S."""

    name: ClassVar[str] = "fedvarp"
    source: ClassVar[str] = "Jhunjhunwala et al. 2022"

    beta: float = setting(1.0, "1 is the paper's", ge=0, le=1)
