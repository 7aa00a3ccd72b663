"""The ground floor: prompts, completions, verdicts, rows, shards. Knows nothing of training or scoring."""

__version__ = "0.1.0"
"""Potstill's; here, as reading it from the installed package's metadata takes 3 MB of memory."""
