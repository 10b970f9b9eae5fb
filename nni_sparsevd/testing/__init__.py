"""What a user's own layer, operator or pass can be tested with."""

from .random_networks import randomize_, settle_

__all__ = ["randomize_", "settle_"]
