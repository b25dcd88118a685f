"""Benchmarks: what borrowing and receiving cost, beside other libraries, on this machine. `make bench`."""
