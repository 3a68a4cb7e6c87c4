"""Gradients of many models at once: looped, stacked, compiled, recorded; and the rule that chooses."""
