"""Methods: one paper, one file. They import fedsim, never the reverse."""
