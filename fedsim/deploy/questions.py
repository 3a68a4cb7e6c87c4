"""What workers are asked at an evaluation, and what they answer: small messages without an object, see `metrics.told`."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedsim.base.rows import BUFFERS, Rows
from fedsim.base.visible import one_line
from fedsim.deploy.decisions import Answer
from fedsim.federation.work import Work
from fedsim.metrics.personal import Finetuned
from fedsim.metrics.told import KINDS, Question, sums
from fedsim.transport.messages_pb2 import Order, Reply

FIRST = 1 << 62  # number of the first question; those of jobs are lower
SHARED, HEARD = "shared ", "heard "  # how names of an order's parts begin
LONGEST = 500  # signs of what a worker says that went wrong


def parts_of(question: Question, nodes: Tensor) -> Rows:
    """An order's parts [k, ...] for these nodes [k]; what all hear is one row."""
    model, buffers = question.shared
    shared = {"model": model} | ({BUFFERS: buffers} if buffers.shape[1] else {})
    found = {SHARED + name: rows.expand(len(nodes), -1) for name, rows in shared.items()}
    heard = question.heard(nodes) if set(question.kinds) & {*KINDS[1:]} else {}
    return found | {HEARD + name: rows for name, rows in heard.items()}


def head_of(question: Question, kept: Sequence[int]) -> bytes:
    """`kept`: jobs whose memories hold, though their worker may not have heard so yet."""
    how = question.finetuned
    tuned = {"finetuned": {"epochs": how.epochs, "lr": how.lr, "batch": how.batch}} if how else {}
    return json.dumps({"kinds": [*question.kinds], "kept": [*kept]} | tuned).encode()


def asked(order: Order, parts: Rows, at: Tensor, device: torch.device | str) -> tuple[Question, list[int]]:
    """The question that an order's parts are, and which jobs' memories hold. `at`: the places of its nodes among the order's jobs, by
    node."""
    head = json.loads(order.head)
    shared, heard = ({name[len(kind) :]: rows for name, rows in parts.items() if name.startswith(kind)} for kind in (SHARED, HEARD))
    model, each = shared["model"][:1].to(device), {part.name for part in order.parts if part.each}

    def hear(nodes: Tensor) -> Rows:
        place = at.to(nodes.device)[nodes].cpu()
        mine = {name: rows[place] if HEARD + name in each else rows[:1].expand(len(nodes), *rows.shape[1:]) for name, rows in heard.items()}
        return {name: rows.to(device) for name, rows in mine.items()}

    buffers = shared[BUFFERS][:1] if BUFFERS in shared else torch.zeros(1, 0)
    how = Finetuned(**head["finetuned"]) if "finetuned" in head else None
    return Question(head["kinds"], order.jobs[0].round, (model, buffers.to(device)), hear, how), head["kept"]


def said(nodes: Sequence[int], sums: Mapping[str, Tensor]) -> bytes:
    """The head of a reply."""
    return json.dumps({"nodes": [*nodes], "sums": {kind: rows.tolist() for kind, rows in sums.items()}}).encode()


def understood(reply: Reply, kinds: Sequence[str], nodes: Iterable[int]) -> Answer | str:
    """What a reply says of nodes, or what is wrong with it."""
    try:
        head = json.loads(reply.head)
        if why := str(head.get("error", "")):
            said: str = one_line(why)
            return said[:LONGEST]
        answer = Answer([int(node) for node in head["nodes"]], {kind: [[*map(float, row)] for row in head["sums"][kind]] for kind in kinds})
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError):
        return "its answer makes no sense"
    rows = [row for sums in answer.sums.values() for row in sums]
    fits = all(len(sums) == 3 and all(0 <= count < 1 << 40 for count in sums[0]) for sums in answer.sums.values())
    if not fits or {*map(len, rows)} != {len(answer.nodes)} or sorted(answer.nodes) != sorted(nodes):
        return "its answer is not of the nodes that were asked"
    return answer


def judge(work: Work, question: Question, nodes: Sequence[int]) -> dict[str, Tensor]:
    """What nodes say; the same bits wherever the same nodes [k], in this order, are judged together."""
    device = work.worker.device

    def remembered(some: Tensor) -> dict[str, Tensor]:
        return Work.remembered(work, some.cpu().numpy()) or {}

    return sums(work.worker, question, remembered, torch.tensor(nodes, device=device))


def table(kinds: Sequence[str], answers: Sequence[Answer], nodes: int, device: Any) -> dict[str, Tensor]:
    """By kind, float64 [3, n], of all nodes; 0 of those that have not answered."""
    found = {kind: torch.zeros(3, nodes, dtype=torch.float64) for kind in kinds}
    for answer in answers:
        for kind, rows in found.items():
            rows[:, list(answer.nodes)] = torch.tensor(answer.sums[kind], dtype=torch.float64)
    return {kind: rows.to(device) for kind, rows in found.items()}
