"""What a layer, an operator or a pass of your own can be tested with.

`VariationalLayerTestCase` is the contract of a variational layer, `assert_shrinks_exactly` the law of shrinking.  The
networks that both need are made by `randomize_` and `settle_`: fresh networks hide mistakes behind zeros.
"""

from .contract import VariationalLayerTestCase
from .law import assert_same_outputs, assert_sensitive, assert_shrinks_exactly, relative_difference
from .random_networks import draw_like, randomize_, settle_

__all__ = [
    "VariationalLayerTestCase",
    "assert_same_outputs",
    "assert_sensitive",
    "assert_shrinks_exactly",
    "draw_like",
    "randomize_",
    "relative_difference",
    "settle_",
]
