"""A check, before anything is trained, that `torch.compile` works here."""

import torch

from ..errors import SettingError


def check_compiler(backend: str | None) -> None:
    """Check that a backend of `torch.compile` exists, and that there is a compiler where it needs one.

    Args:
        backend: Its name; None: nothing is compiled.

    Raises:
        SettingError: There is no such backend, or no C++ compiler.
    """
    if backend is None:
        return
    known = torch._dynamo.list_backends(exclude_tags=())
    if backend not in known:
        raise SettingError(f"compile = {backend!r}: no backend of torch.compile; there are {', '.join(known)}")
    if backend != "inductor" or torch.cuda.is_available():
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise SettingError(
            "compile = 'inductor' needs a C++ compiler, and there is none here (g++, or the one that CXX names): "
            "install one, or leave compile out"
        ) from error
