"""What is painted anew below a notebook's cell, in the place of a terminal's live line."""

from typing import Any


class Cell:
    """Like rich's Live, which needs widgets there."""

    def __init__(self) -> None:
        self.shown: Any = None

    def start(self) -> None:
        from IPython.display import Pretty, display

        self.shown = display(Pretty(""), display_id=True)

    def update(self, text: object, refresh: bool = True) -> None:
        from IPython.display import Pretty

        self.shown.update(Pretty(str(text)))

    def stop(self) -> None:
        self.update("")
