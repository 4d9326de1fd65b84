"""What a run tells its user, once for all processes."""

from lightning.fabric.utilities.rank_zero import rank_zero_only

say = rank_zero_only(print)
