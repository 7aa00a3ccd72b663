"""Held-out sets from real sources: inputs that nobody here wrote, with references that nobody here chose.

Promises that the same source gives the same file, that which records are taken is decided by a hash and not by a
person, and that an item's instruction is exactly what its template makes. Knows nothing of models or scores.
"""
