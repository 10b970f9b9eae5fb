"""Small NNI evaluators of each kind, trained on random separable images: for every test that compresses.

Each function takes a network that classifies image batches and returns the model to compress and its evaluator.
Lightning needs a `LightningModule` and Transformers a model that returns its loss, so these two wrap the network: its
layers are then called `network.…`.
"""

import tempfile

import nni
import pytorch_lightning
import torch
import torch.nn.functional as F
import transformers
from nni.compression import LightningEvaluator, TorchEvaluator, TransformersEvaluator
from torch import nn
from torch.utils.data import DataLoader, Dataset, default_collate

SAMPLES, BATCH = 64, 16
STEPS_PER_EPOCH = SAMPLES // BATCH
LEARNING_RATE = 1e-2
SHAPE, CLASSES = (1, 8, 8), 4


def network():
    """The same initial weights at every call, for images of SHAPE."""
    torch.manual_seed(0)
    return small_cnn(SHAPE[0], CLASSES)


def small_cnn(channels, classes):
    """Two convolutions with norms and a classifier, for images with so many channels."""
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, classes),
    )


class Blobs(Dataset):
    """Each class is a random image, each sample its class's image with noise; items are what Transformers wants."""

    def __init__(self, shape, classes):
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.arange(SAMPLES) % classes
        centres = torch.randn(classes, *shape, generator=generator)
        self.images = centres[self.labels] + 0.3 * torch.randn(SAMPLES, *shape, generator=generator)

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        return {"images": self.images[index], "labels": self.labels[index]}


def batches(shape, classes):
    """Pairs of images and labels, shuffled by the global seed."""

    def pair(items):
        batch = default_collate(items)
        return batch["images"], batch["labels"]

    return DataLoader(Blobs(shape, classes), BATCH, shuffle=True, collate_fn=pair)


def torch_evaluator(network, shape=SHAPE, classes=CLASSES):
    def train(model, optimizer, training_step, scheduler=None, max_steps=None, max_epochs=None):
        model.train()
        left = max_steps or (max_epochs or 1) * STEPS_PER_EPOCH
        while left:
            for batch in batches(shape, classes):
                optimizer.zero_grad()
                training_step(batch, model).backward()
                optimizer.step()
                left -= 1
                if not left:
                    break

    def training_step(batch, model):
        images, labels = batch
        return F.cross_entropy(model(images), labels)

    optimizer = nni.trace(torch.optim.Adam)(network.parameters(), lr=LEARNING_RATE)
    return network, TorchEvaluator(train, optimizer, training_step, dummy_input=torch.randn(2, *shape))


class Classifier(pytorch_lightning.LightningModule):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(images)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return F.cross_entropy(self(images), labels)

    def configure_optimizers(self):
        return nni.trace(torch.optim.Adam)(self.parameters(), lr=LEARNING_RATE)


class Data(pytorch_lightning.LightningDataModule):
    def __init__(self, shape, classes):
        super().__init__()
        self.shape, self.classes = shape, classes

    def train_dataloader(self):
        return batches(self.shape, self.classes)


def lightning_evaluator(network, shape=SHAPE, classes=CLASSES, **settings):
    """`settings` go to Lightning's Trainer.  Its `max_epochs` bounds the steps that NNI asks for."""
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = nni.trace(pytorch_lightning.Trainer)(accelerator="cpu", devices=1, max_epochs=100, **quiet, **settings)
    data = nni.trace(Data)(shape, classes)
    return Classifier(network), LightningEvaluator(trainer, data, dummy_input=torch.randn(2, *shape))


class WithLoss(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images, labels=None):
        logits = self.network(images)
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


def transformers_evaluator(network, shape=SHAPE, classes=CLASSES, *, model=None, own_optimizer=True, **settings):
    """`settings` go to `TrainingArguments`; without an own optimizer NNI takes the default one of Transformers."""
    model = model or WithLoss(network)
    optimizer = nni.trace(torch.optim.Adam)(model.parameters(), lr=LEARNING_RATE) if own_optimizer else None
    arguments = transformers.TrainingArguments(
        output_dir=tempfile.gettempdir(),  # exists already, and nothing is saved
        per_device_train_batch_size=BATCH,
        learning_rate=LEARNING_RATE,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **settings,
    )
    trainer = nni.trace(transformers.Trainer)(
        model=model, args=arguments, train_dataset=Blobs(shape, classes), optimizers=(optimizer, None)
    )
    return model, TransformersEvaluator(trainer, dummy_input=torch.randn(2, *shape))
