"""One run: built from its scenario, watched, kept in a folder, resumed, replayed, tuned."""
