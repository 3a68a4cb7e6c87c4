"""fedsim from Python: scenarios, their runs, and what these left, as pandas frames, modules and pictures."""
