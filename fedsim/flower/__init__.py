"""Flower apps on fedsim's network and in its simulated worlds: Grids for ServerApps, and what runs ClientApps."""
