"""Training: `loop` trains and calls observers, `objectives` defines the losses, `state` holds the progress."""

from bit_transformer.objectives import check_teacher as check_teacher
from bit_transformer.objectives import losses as losses
from bit_transformer.objectives import objective_for as objective_for
from bit_transformer.training.batches import build_windows as build_windows
from bit_transformer.training.loop import Observer as Observer
from bit_transformer.training.loop import StopTraining as StopTraining
from bit_transformer.training.loop import Trainer as Trainer
from bit_transformer.training.loop import check_ranks as check_ranks
from bit_transformer.training.loop import check_training as check_training
from bit_transformer.training.loop import grows_context as grows_context
from bit_transformer.training.loop import train_loop as train_loop
from bit_transformer.training.precision import autocast as autocast
from bit_transformer.training.precision import autocast_wanted as autocast_wanted
from bit_transformer.training.precision import cpu_autocast as cpu_autocast
from bit_transformer.training.state import Progress as Progress
from bit_transformer.training.state import Record as Record
