"""What came of jobs, out of the messages of their replies: parts of news, and what the server's ends of links remember."""

from collections.abc import Sequence

import numpy as np
import torch

from fedsim.base.keys import fold, fold_array
from fedsim.base.rows import BUFFERS
from fedsim.deploy.decisions import End
from fedsim.deploy.packing import arrived
from fedsim.deploy.replies import Replies
from fedsim.federation.work import Work


def taken_in(field: Work, come: Replies, ends: Sequence[End]) -> None:
    """What came of jobs that ended whole, out of the messages of their replies."""
    worker, codec = field.worker, field.worker.strategy.uplink
    for batch in dict.fromkeys(end.batch for end in ends):
        mine = sorted((end for end in ends if end.batch == batch), key=lambda end: end.node)
        nodes = np.array([end.node for end in mine])
        wire = {name: rows.to(worker.device) for name, rows in come.read(mine).items()}
        own = {BUFFERS: wire.pop(BUFFERS)} if worker.task.sends_buffers else {}
        key = torch.from_numpy(fold_array(worker.seed, "job", nodes, field.turn[nodes])).to(worker.device)
        parts, link = arrived(codec, wire, field.links.get(nodes, field.fresh_links, worker.device), fold(key, "uplink"), field.like)
        field.links.put(nodes, link)
        field.mail.release(field.heard[nodes])
        field.reply[nodes] = field.post(parts | own, len(nodes))
