"""Shards to student. The only room that says unsloth or trl; meets the engine at files on disk."""
