"""The filter's inner loops over whole chunks of bytes, compiled to machine code once per machine.

`memory`, `hash128`, `text`, `values`, `lines`, `phrases`, `table`, `commit` and `kernel` are plain Python on addresses
and whole numbers, written so that numba can compile them; they also run as they are, slowly. `build` compiles them in
a process of its own (only it and `instructions` import numba), `load` maps the machine code. Only
`engine/filter_native.py` calls it.
"""
