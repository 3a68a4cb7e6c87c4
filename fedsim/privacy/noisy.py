"""How far messages are shortened, and how much noise hides them: the settings that accounts read."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from fedsim.base.errors import SettingError
from fedsim.base.rows import Rows, norm
from fedsim.method.privacy import Privacy
from fedsim.privacy.spent import LEAST
from fedsim.settings.part import setting
from fedsim.settings.values import Share


@dataclass(frozen=True)
class Adapt:
    """The clip follows a quantile of the messages' lengths (Andrew et al. 2021, arXiv 1905.03871, algorithm 1).

    After each merge C becomes C exp(-rate x (b - quantile)), b being the share of messages no longer than C, told with noise of its own.
    """

    word: ClassVar[str] = "quantile"  # what `adapt: 0.5` sets

    quantile: Share = setting(0.5, "share of messages that are to be no longer than the clip (gamma)", ge=0, le=1)
    rate: float = setting(0.2, "how fast the clip follows (eta_C)", gt=0, le=10)
    noise: float | None = setting(
        None,
        "standard deviation of the noise on the number of such messages (sigma_b); by default a twentieth of the messages expected",
        gt=0,
    )

    def split(self, noise: float, expected: float) -> tuple[float, float]:
        """Of a merge's noise multiplier: that of the messages' sum (z_Delta), and the deviation on their number (sigma_b).

        Both together cost what `noise` alone does: z_Delta = (z^-2 - (2 sigma_b)^-2)^-1/2. Raises SettingError where that is no number.
        """
        if noise == 0:
            return 0.0, 0.0
        count = expected / 20 if self.noise is None else self.noise
        if 2 * count <= noise:
            raise SettingError(
                "privacy.adapt.noise", f"{count:g}: more than half the noise of {noise:g} clips is due, or fewer clips of noise"
            )
        return (noise**-2 - (2 * count) ** -2) ** -0.5, count

    def after(self, clip: float, within: float) -> float:
        """The next clip, where a share `within` of the messages was no longer than this one."""
        return clip * math.exp(-self.rate * (within - self.quantile))


@dataclass(frozen=True)
class Noisy(Privacy):
    """Clipping, and normal noise."""

    abstract: ClassVar[bool] = True

    exclusive: ClassVar[tuple[str, ...]] = ("noise", "epsilon")

    clip: float = setting(help="greatest length of a client's message (S), or of a sample's gradient (C)", gt=0, le=math.inf)
    noise: float | None = setting(None, "standard deviation of the noise, in clips (z)", ge=0)
    epsilon: float | None = setting(None, "instead of `noise`: what all of `stop.rounds` may cost", gt=0)
    delta: float = setting(1e-5, "chance that the guarantee fails; below 1 / clients, or 1 / samples of a client", gt=0, lt=1)
    unit: Literal["client", "sample"] = setting("client", "what is hidden: all of a client's data, or each of its samples")
    adapt: Adapt | None = setting(
        None, "lets the clip of clients' messages follow their lengths from there on; then the server alone clips"
    )

    def __post_init__(self) -> None:
        if (self.noise is None) == (self.epsilon is None):
            raise ValueError("one of `noise` and `epsilon` is due" if self.noise is None else "`noise` and `epsilon` exclude each other")
        for name in ("clip", "noise", "epsilon"):
            if not (math.isfinite(getattr(self, name) or 0.0) or (name == "clip" and self.plain)):
                raise ValueError(f"`{name}` must be finite")
        if self.adapt and self.unit == "sample":
            raise ValueError("`adapt` is for clients' messages: `unit: client`")
        if 0 < (self.noise or 0.0) < LEAST:
            raise ValueError(f"noise of {self.noise:g} clips hides nobody: from {LEAST:g} on, or 0 for none")

    def gradients(self, batch: int) -> int:
        return batch if self.unit == "sample" else 1

    @property
    def plain(self) -> bool:
        """Are gradients as without it, bit by bit?"""
        return self.unit == "sample" and self.noise == 0 and self.clip == math.inf

    def clipped(self, parts: Rows) -> Rows:
        """None longer than `clip`; as they are where the server alone knows how long they may be."""
        if self.unit == "sample" or self.adapt:
            return parts
        factor = shrink(parts, self.clip)
        return {name: rows * factor.view(-1, *[1] * (rows.dim() - 1)) for name, rows in parts.items()}


def shrink(parts: Rows, clip: float) -> Tensor:
    """[m]: min(1, clip / length) of each message, all its parts taken as one vector. Raises SettingError for whole numbers."""
    for name, rows in parts.items():
        if not rows.is_floating_point():
            raise SettingError("privacy", f"messages have a part `{name}` of whole numbers, which can't be clipped")
    squares = [norm(rows.flatten(1))[:, 0].square() for rows in parts.values()]
    factor: Tensor = (clip / sum(squares[1:], start=squares[0]).sqrt()).clamp(max=1)
    return factor
