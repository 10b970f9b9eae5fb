"""Sparse VD for NNI 3.0: a pruner, an exact speedup, and repairs that make NNI work on today's PyTorch.

Importing this package changes nothing in NNI.  The first `SparseVDPruner` applies the repairs, or an explicit
`enable()`; `disable()` undoes them.  In the order in which to read:

- `pruner`: `SparseVDPruner`, the life of a pruner in NNI: wrap, train, decide, unwrap.
- `entries`, `config`, `targets`: the config_list, each entry by itself, against the network, and what NNI makes of it.
- `posteriors`, `gates`: the posteriors on what is pruned, on NNI's wrappers or behind norms.
- `learning`: the KL in the loss and the steps of the variances, while the user's evaluator trains.
- `exact`, `graph`: speedup: ours, and a trace for NNI's.
- `compatibility`: the repairs of NNI.
"""

from ...regularize import SparseVDSettings
from .compatibility import disable, enable
from .exact import ExactSpeedup, save_masks
from .graph import trace
from .pruner import SparseVDPruner

__all__ = ["ExactSpeedup", "SparseVDPruner", "SparseVDSettings", "disable", "enable", "save_masks", "trace"]
