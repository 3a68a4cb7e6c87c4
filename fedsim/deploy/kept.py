"""The field of kept replies: what came back is read where a server kept it, and nothing is trained; what follows from it is computed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedsim.deploy.arriving import taken_in
from fedsim.deploy.decisions import Answer, End
from fedsim.deploy.recorded import Recorded
from fedsim.deploy.replies import Replies
from fedsim.metrics.told import Question


class Kept(Recorded):
    """Neither nodes' data nor their work are needed: merges alone are checked, and what the server measured."""

    def __init__(self, *around: Any) -> None:
        super().__init__(*around)
        self.come = Replies(lambda: ())

    def open(self, folder: Path) -> None:
        """Where they lie. Raises FedsimError where one of the record is not as it came."""
        self.come.folder, self.come.lasting = folder, True
        for batch in dict.fromkeys(end.batch for one in self.decisions.known for end in one.ends if end.whole):
            self.come.check(batch)

    def bring(self, ends: Sequence[End]) -> None:
        taken_in(self, self.come, ends)

    def _answers(self, question: Question) -> Sequence[Answer]:
        return super()._answers(question) if self._next() else []

    def _said(self, question: Question, answer: Answer) -> Answer:
        """As it is in the record."""
        return answer
