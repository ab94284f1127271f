"""Structures as `torch.nn` modules, and the losses that train them."""

from spigot.layers.argmax import Argmax
from spigot.layers.losses import FenchelYoungLoss
from spigot.layers.ranking import SoftRank, SoftSort
from spigot.layers.relaxed import Relaxed

__all__ = ["Argmax", "FenchelYoungLoss", "Relaxed", "SoftRank", "SoftSort"]
