"""The ground floor: prompts, completions, verdicts, rows, shards. Knows nothing of training or scoring."""
