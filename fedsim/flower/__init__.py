"""Flower apps on fedsim's network: a Grid for ServerApps, and workers that run ClientApps."""
