"""Bindings to other pruning toolkits: the only rooms that import one."""
