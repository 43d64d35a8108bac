"""The weights of an earlier run, by their full names, low-rank additions merged or not.

Nothing here knows Megatron: an export reads weights without building a model.
"""

import torch
from torch import Tensor

from disagg_train.checkpoint.reader import CheckpointReader
from disagg_train.config.modules import LoraConfig
from disagg_train.modules.lora import LORA_A, LORA_B, is_addition, merged


class EarlierWeights:
    """The weights of a finished checkpoint, one at a time, on the CPU.

    Args:
        checkpoint: open until the last weight is read.
    """

    def __init__(self, checkpoint: CheckpointReader) -> None:
        self.checkpoint = checkpoint
        modules = checkpoint.job.get("modules", {})
        self._lora = {name: module.get("lora") for name, module in modules.items()}

    @property
    def names(self) -> list[str]:
        """Full names of all weights but low-rank additions."""
        return [name for name in self.checkpoint.names if not is_addition(name)]

    def read(self, name: str) -> Tensor:
        """Return a full weight as it was trained; an addition's parts have names of their own."""
        return torch.from_numpy(self.checkpoint.read(name))

    def read_merged(self, name: str) -> Tensor:
        """Return a full weight with the low-rank addition to it, where there is one."""
        module, linear = name.partition(".")[0], name.removesuffix(".weight")
        parts = [name, f"{linear}.{LORA_A}", f"{linear}.{LORA_B}"]
        if not self.is_added_to(name):
            return self.read(name)
        weights = {part: self.read(part) for part in parts}
        return merged(weights, LoraConfig.model_validate(self._lora[module]))[name]

    def is_added_to(self, name: str) -> bool:
        """Whether there is a low-rank addition to a weight."""
        linear = name.removesuffix(".weight")
        return linear != name and f"{linear}.{LORA_A}" in self.checkpoint
