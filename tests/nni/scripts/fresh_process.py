"""What importing, using and disabling the plugin does to NNI, in a process of its own; prints the findings as JSON."""

import importlib
import json
import pickle
import sys
import warnings

import nni.compression.pruning
import pytorch_lightning
import torch
import transformers
from nni.common.graph_utils import TorchGraph
from nni.compression.base.apply_method import pruning_apply_methods
from nni.compression.utils import evaluator
from torch import nn
from torch.fx.immutable_collections import immutable_list
from torch.utils import _pytree

# The attributes that the repairs and additions touch; the speedup modules join them once somebody has imported them.
OWNERS = {
    "pruning": vars(nni.compression.pruning),
    "pruning_apply_methods": pruning_apply_methods,
    "TorchGraph": vars(TorchGraph),
    "evaluator": vars(evaluator),
    "LightningEvaluator": vars(evaluator.LightningEvaluator),
    "TransformersEvaluator": vars(evaluator.TransformersEvaluator),
    "fit_loop": vars(pytorch_lightning.loops._FitLoop),
    "Trainer": vars(transformers.Trainer),
    "pytree": vars(_pytree),
}
CHANGED_BY_USE = {"pruning", "pruning_apply_methods", "TorchGraph", "LightningEvaluator", "TransformersEvaluator"}
CHANGED_BY_USE |= {"fit_loop", "ModelSpeedup", "model_speedup", "NodeInfo", "DefaultReplacer", "replace_module"}


def snapshot():
    """The names of each owner in their order, and the identity of each value."""
    return {owner: [(name, id(value)) for name, value in list(entries.items())] for owner, entries in OWNERS.items()}


def changes(before):
    after = snapshot()
    return sorted(owner for owner in before if before[owner] != after[owner])


def forget_the_plugin():
    for name in list(sys.modules):
        if name.startswith("nni_sparsevd.plugins"):
            del sys.modules[name]


findings = {}

# 1. The first import: NNI is unchanged, and PyTorch keeps its own pytree registrations without a warning.
before, registration = snapshot(), _pytree.SUPPORTED_NODES[immutable_list]
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    importlib.import_module("nni_sparsevd.plugins.nni")
findings["changed by the first import"] = changes(before)
findings["pytree warnings"] = [str(warning.message) for warning in caught if "pytree" in str(warning.message)]
findings["registration kept"] = _pytree.SUPPORTED_NODES[immutable_list] is registration

# 2. A second import, of a plugin that Python has forgotten: NNI's speedup modules are there to compare, too.
from nni.compression.speedup import ModelSpeedup, model_speedup, utils  # noqa: E402
from nni.compression.speedup.container import NodeInfo  # noqa: E402
from nni.compression.speedup.replacement import replace_module  # noqa: E402
from nni.compression.speedup.replacer import DefaultReplacer  # noqa: E402

OWNERS |= {"model_speedup": vars(model_speedup), "replace_module": replace_module, "utils": vars(utils)}
OWNERS |= {"ModelSpeedup": vars(ModelSpeedup), "NodeInfo": vars(NodeInfo), "DefaultReplacer": vars(DefaultReplacer)}
forget_the_plugin()
before = snapshot()
from nni_sparsevd.plugins.nni import SparseVDPruner, disable, enable, trace  # noqa: E402

findings["changed by the second import"] = changes(before)

# 3. What needs no repair applies none.
model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(12)])
graph = trace(model, torch.randn(2, 4))
findings["changed by trace"] = changes(before)

# 4. The first pruner applies the repairs.  Its order must not follow this process's hash seed.
pruner = SparseVDPruner(model, [{"op_types": ["Linear"]}])
findings["unchanged by a pruner"] = sorted(CHANGED_BY_USE - set(changes(before)))
findings["order"] = [list(pruner._target_spaces), list(pruner.get_masks()), [n for n, _ in model.named_parameters()]]
findings["as NNI's pruners"] = nni.compression.pruning.SparseVDPruner is SparseVDPruner

# 5. disable() undoes all of it, and can be followed by enable() again.
learning = pickle.dumps(model)
disable()
findings["changed after disable"] = changes(before)

# 6. A model that is learning draws its noise in the process that it is sent to.
received, inputs = pickle.loads(learning), torch.randn(2, 4)
findings["received model has noise"] = not torch.equal(received(inputs), received(inputs))
disable()

# 7. What the user leaves out stays out when a pruner comes.
everything = enable()
disable()
enable(leave=everything)
SparseVDPruner(nn.Sequential(nn.Linear(4, 4)), [{"op_types": ["Linear"]}])
findings["changed without repairs"] = changes(before)
disable()
findings["changed at the end"] = changes(before)

# 8. Why the import is guarded: without the guard, NNI's module overwrites PyTorch's registration.
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    importlib.reload(utils)
findings["overwritten without the guard"] = _pytree.SUPPORTED_NODES[immutable_list] is not registration
findings["warned without the guard"] = any("already registered" in str(warning.message) for warning in caught)

print(json.dumps(findings))
