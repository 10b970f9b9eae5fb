"""A patch can be undone: afterwards the patched objects are what they were."""

import types

import pytest

from nni_sparsevd.plugins.patching import Patch


class Base:
    def inherited(self):
        return "base"


class Host(Base):
    @staticmethod
    def static():
        return "static"

    @property
    def size(self):
        return 3


def snapshot(owner):
    return list((owner if isinstance(owner, dict) else vars(owner)).items())


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (Host, "static"),
        (Host, "size"),
        (Host, "inherited"),
        (Host, "new"),
        (types.ModuleType("module"), "new"),
        (types.SimpleNamespace(old=1), "old"),
        ({"first": 1, "second": 2}, "first"),
        ({"first": 1}, "new"),
    ],
)
def test_undo_puts_back_the_very_object_that_was_there(owner, name):
    before = snapshot(owner)
    patch = Patch()
    patch.set(owner, name, "ours")
    assert (owner if isinstance(owner, dict) else vars(owner))[name] == "ours"
    patch.undo()
    assert snapshot(owner) == before
    patch.undo()
    assert snapshot(owner) == before


def test_two_changes_of_one_attribute_are_undone_in_reverse():
    owner = types.SimpleNamespace(name=1)
    patch = Patch()
    patch.set(owner, "name", 2)
    patch.set(owner, "name", 3)
    patch.undo()
    assert owner.name == 1


def fail_inside_a_patch(owner):
    with Patch() as patch:
        patch.set(owner, "name", 2)
        raise RuntimeError("inside")


def test_an_error_inside_the_block_undoes_the_patch():
    owner = {"name": 1}
    with pytest.raises(RuntimeError, match="inside"):
        fail_inside_a_patch(owner)
    assert owner == {"name": 1}
