# A user's script, after NNI's examples/compression/pruning/norm_pruning.py; only data and size are small.
import nni
import torch
import torch.nn.functional as F
from nni.compression.pruning import L1NormPruner
from nni.compression.speedup import ModelSpeedup
from nni.compression.utils import auto_set_denpendency_group_ids
from timm import create_model
from torch.optim import Adam

torch.manual_seed(0)
images, labels = torch.rand(32, 3, 32, 32), torch.randint(10, (32,))


def prepare_optimizer(model):
    return nni.trace(Adam)([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.001)


def training_step(batch, model):
    inputs, targets = batch
    return F.cross_entropy(model(inputs), targets)


def train(model, optimizer, training_step, lr_scheduler=None, max_steps=None, max_epochs=None):
    model.train()
    step = 0
    for _ in range(max_epochs or 1000):
        for batch in zip(images.split(8), labels.split(8), strict=True):
            optimizer.zero_grad()
            training_step(batch, model).backward()
            optimizer.step()
            step += 1
            if max_steps and step == max_steps:
                return


model = create_model("test_resnet", num_classes=10)
print("parameters before:", sum(parameter.numel() for parameter in model.parameters()))

config_list = [{"op_types": ["Conv2d"], "exclude_op_names_re": ["conv1.*"], "sparse_ratio": 0.5}]
dummy_input = torch.rand(8, 3, 32, 32)
config_list = auto_set_denpendency_group_ids(model, config_list, dummy_input)

pruner = L1NormPruner(model, config_list)

_, masks = pruner.compress()
pruner.unwrap_model()
model = ModelSpeedup(model, dummy_input, masks).speedup_model()
print("parameters after:", sum(parameter.numel() for parameter in model.parameters()))

optimizer = prepare_optimizer(model)
train(model, optimizer, training_step, lr_scheduler=None, max_steps=None, max_epochs=1)
