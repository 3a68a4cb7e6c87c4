"""What JSON files of a run folder must be, as far as they are read."""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import (
    Annotated,
    Any,
    Literal,
    Required,  # pydantic asks for these under Python 3.11
)

from pydantic import AfterValidator, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr
from typing_extensions import TypedDict

from fedsim.run.records import checked
from fedsim.transport.nodes import parse

Whole = Annotated[StrictInt, Field(ge=0, lt=2**63)]
Real = Annotated[StrictFloat, Field(allow_inf_nan=False)] | Annotated[StrictInt, Field(gt=-(2**63), lt=2**63)]
Plain = StrictStr | StrictBool | Real | None


def _folder(name: str) -> str:
    if not re.fullmatch(r"[^./\\\0][^/\\\0]*", name):
        raise ValueError("the name of a folder is due")
    return name


def _moment(text: str) -> str:
    datetime.fromisoformat(text)
    return text


def _file(name: str) -> str:
    return _folder(name) if name else name


def _final(record: dict[str, Any]) -> dict[str, Any]:
    return record and checked(record)  # empty where nothing was measured


def _nodes(text: str) -> str:
    return str(parse(text)) if text else text


class Hit(TypedDict):
    """When a target was reached."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    seconds: Real


class Liars(TypedDict):
    """Who lied."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    name: StrictStr
    count: Whole


class Worker(TypedDict, total=False):
    """A worker of a deployed run."""

    id: Required[StrictStr]
    name: Required[StrictStr]
    nodes: Required[Annotated[StrictStr, AfterValidator(_nodes)]]
    up: Required[Whole]
    down: Required[Whole]
    jobs: Required[Whole]
    device: StrictStr
    hardware: StrictStr
    plan: StrictStr
    samples: Whole
    version: StrictStr
    torch: StrictStr


class Present(Worker, total=False):
    """The same as it stood when workers.json was written."""

    state: Required[Literal["preparing", "there", "away", "lost"]]
    since: Required[Real]
    address: Required[StrictStr]
    why: Required[StrictStr]
    round_trip: Real | None
    ahead: Real | None
    out: Required[Whole]
    came: Required[Whole]
    up_rate: Required[Real]
    down_rate: Required[Real]
    jobs_rate: Required[Real]


class WorkersJson(TypedDict):
    """workers.json"""

    name: StrictStr
    label: StrictStr
    folder: StrictStr
    at: Real
    began: Real
    status: StrictStr
    reason: StrictStr
    doing: StrictStr
    nodes: Annotated[StrictInt, Field(ge=0, le=10**7)]
    full: StrictBool
    round: Whole
    seconds: Real
    end: Real | None
    accuracy: Real | None
    loss: Real | None
    updates: Whole
    bytes: Whole
    workers: list[Present]


class Deployed(TypedDict):
    """What was carried, by workers, beside what was billed."""

    workers: list[Worker]
    carried_up: Whole
    carried_down: Whole


class RunJson(TypedDict, total=False):
    """run.json, as far as it is read."""

    name: Annotated[StrictStr, AfterValidator(_folder)]
    label: StrictStr
    variant: StrictStr
    seed: Whole
    changed: dict[str, StrictStr]
    hash: StrictStr
    code: StrictStr | None
    data: StrictStr
    model: StrictStr | None
    command: StrictStr
    version: StrictStr
    versions: dict[str, StrictStr]
    created: Annotated[StrictStr, AfterValidator(_moment)]
    status: Literal["running", "finished", "failed", "stopped"]
    reason: StrictStr | None
    again: StrictBool
    target: Real | None
    target_reached: Hit | None
    final: Annotated[dict[str, Any], AfterValidator(_final)] | None
    nodes: Whole
    parameters: Whole
    tick: Whole
    evaluated: Annotated[list[Annotated[StrictInt, Field(ge=1, lt=2**63)] | None], Field(min_length=2, max_length=2)]
    noise: Real | None
    concurrency: Whole | None
    max_staleness: Whole | None
    wall_seconds: Real
    client_steps_per_second: Real
    attackers: Liars
    label_counts: Annotated[StrictStr, AfterValidator(_file)]
    resumed: list[dict[str, Plain]]
    deployed: Deployed
    groups: dict[str, Annotated[list[Whole], Field(min_length=2, max_length=2)]]
    device: Plain
    plan: Plain
    threads: Plain
    chunk: Plain
    precision: Plain
    source: StrictStr
    beside: Whole
    taken_from: StrictStr


class Settings(TypedDict, total=False):
    """What sets a run of a sweep apart."""

    variant: StrictStr
    changed: dict[str, StrictStr]


class SweepJson(TypedDict, total=False):
    """sweep.json"""

    name: Annotated[StrictStr, AfterValidator(_folder)]
    runs: list[Annotated[StrictStr, AfterValidator(_folder)]]
    settings: dict[str, Settings]


class Upload(TypedDict, total=False):
    """mlflow.json"""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]
    uri: StrictStr
    experiment: StrictStr
    run_id: StrictStr
    metrics: Whole
    parameters: StrictBool
    status: StrictStr
    artifacts: dict[str, StrictStr]


FORMS: Mapping[str, Any] = {"run.json": RunJson, "sweep.json": SweepJson, "mlflow.json": Upload, "workers.json": WorkersJson}
