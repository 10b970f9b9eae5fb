"""NNI's speedup modules, imported without letting them overwrite PyTorch's pytree registrations.

`nni.compression.speedup.utils` registers fx's immutable containers as pytree nodes when it is imported, as PyTorch has
done itself since 2.2.  PyTorch warns, means to make a second registration an error, and loses its own, which
`torch.export` needs.

This is the only thing that has to happen at the import of the plugin: once NNI's module has been imported, the harm is
done.  It changes neither NNI nor PyTorch: the function that registers is replaced only while NNI is imported.
"""

from typing import Any

from torch.utils import _pytree

from ...patching import Patch

_register = _pytree._register_pytree_node


def _register_new(cls: type, *args: Any, **kwargs: Any) -> None:
    """Register a class of pytree nodes, unless PyTorch knows it already."""
    if cls not in _pytree.SUPPORTED_NODES:
        _register(cls, *args, **kwargs)


with Patch() as _during_import:
    _during_import.set(_pytree, "_register_pytree_node", _register_new)
    from nni.compression.speedup import ModelSpeedup, model_speedup
    from nni.compression.speedup.container import NodeInfo
    from nni.compression.speedup.replacement import no_replace, replace_module
    from nni.compression.speedup.replacer import DefaultReplacer

__all__ = ["DefaultReplacer", "ModelSpeedup", "NodeInfo", "model_speedup", "no_replace", "replace_module"]
