"""What several test files need: networks whose tests mean something, and the data where it is."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from nni_sparsevd.shrink import randomise_ as randomise_

torch.set_num_threads(1)
