"""Bindings to host toolkits: NNI, Torch-Pruning, Lightning and Transformers.

Only these modules, and the studies that compare us with others, import a host. What a binding changes in its host it
changes through `patching.Patch`, which can undo it.
"""
