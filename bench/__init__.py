"""Fixed, seeded workloads: warm up, time, repeat. The last line on stdout is JSON."""
