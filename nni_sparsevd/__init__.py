"""Sparse variational dropout: networks that learn which of their weights and channels are noise, and lose them."""

from .convert import bake_ as bake_
from .convert import find_passed_over as find_passed_over
from .convert import sparsify_ as sparsify_
from .errors import SparseVDError as SparseVDError
from .graph import channel_graph as channel_graph
from .loading import load as load
from .masks import Masks as Masks
from .masks import compute_masks as compute_masks
from .nn import kl as kl
from .nn import regularize_ as regularize_
from .predictive import Prediction as Prediction
from .predictive import predict as predict
from .predictive import sample_network as sample_network
from .settings import MaskSettings as MaskSettings
from .settings import PosteriorSettings as PosteriorSettings
from .shrinking import Plan as Plan
from .shrinking import check as check
from .shrinking import fuse as fuse
from .shrinking import make_plan as make_plan
from .shrinking import shrink as shrink
from .shrinking import shrink_ as shrink_
from .storage import describe_file as describe_file
from .storage import push as push
from .storage import save as save
from .storage import save_folder as save_folder
from .storage import timm_structure as timm_structure

__version__ = "0.1.0"
