"""How much a stale update counts."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedsim.settings.part import Part, setting


class Discount(Part):
    """Factor of an update that is `age` merges old (float [m]); 1 at age 0."""

    slot: ClassVar[str] = "discount"

    def of(self, age: Tensor) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class ConstantDiscount(Discount):
    """Stale updates count in full."""

    name: ClassVar[str] = "constant"

    def of(self, age: Tensor) -> Tensor:
        return age * 0 + 1


@dataclass(frozen=True)
class Polynomial(Discount):
    """(1 + age)^-power"""

    source: ClassVar[str] = "Xie et al. 2019"
    power: float = setting(0.5, "exponent a", ge=0)

    def of(self, age: Tensor) -> Tensor:
        return (1 + age) ** -self.power


@dataclass(frozen=True)
class Hinge(Discount):
    """1 up to an age of `slack`, then 1 / (1 + slope x (age - slack))"""

    source: ClassVar[str] = "Xie et al. 2019"
    slope: float = setting(10.0, "steepness a", gt=0)
    slack: float = setting(4.0, "age b up to which nothing is lost", ge=0)

    def of(self, age: Tensor) -> Tensor:
        return 1 / (1 + self.slope * (age - self.slack).clamp(min=0))
