"""How much memory the activations of a rank take: bytes that wait for a backward."""

import contextlib

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


class _Held:
    """A tensor whose storage is counted until this is dropped."""

    __slots__ = ("_address", "_meter", "tensor")

    def __init__(self, tensor: Tensor, meter: "ActivationMeter", address: int) -> None:
        self.tensor, self._meter, self._address = tensor, meter, address

    def __del__(self) -> None:
        self._meter.drop(self._address)


class ActivationMeter:
    """Counts the bytes that autograd saves, and tells the most that there were at once.

    Every storage counts once, however many tensors share it. Weights do not count, neither do
    temporaries nor rows that only a boundary holds. One meter may serve all stages of a rank.

    Counting costs some microseconds per saved tensor, a few percent of a small model's time on a
    CPU, so set ``active`` for the steps to count in; between steps, not within.
    """

    def __init__(self, active: bool = True) -> None:
        self.active = active
        self._uses: dict[int, list[int]] = {}
        self._not_counted: set[int] = set()
        self._bytes = self._peak_bytes = 0

    def leave_out(self, model: nn.Module) -> None:
        """Do not count the weights and buffers of a model; they must stay where they are."""
        for tensor in (*model.parameters(), *model.buffers()):
            self._not_counted.add(tensor.untyped_storage().data_ptr())

    def watch(self) -> contextlib.AbstractContextManager[object]:
        """Return a context for a forward, or for a backward that computes forwards again."""
        if not self.active:
            return contextlib.nullcontext()
        return saved_tensors_hooks(self.hold, _tensor_of)

    def hold(self, tensor: Tensor) -> Tensor | _Held:
        """Count a tensor until what is returned is dropped.

        An operation's output leads back to what saved it; kept as it is, the two would keep each
        other alive.
        """
        if not self.active:
            return tensor
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if address in self._not_counted:
            return tensor
        uses = self._uses.get(address)
        if uses is None:
            uses = self._uses[address] = [0, storage.nbytes()]
            self._bytes += uses[1]
            self._peak_bytes = max(self._peak_bytes, self._bytes)
        uses[0] += 1
        return _Held(tensor.detach(), self, address)

    def drop(self, address: int) -> None:
        """Count one use of the storage at an address less."""
        uses = self._uses[address]
        uses[0] -= 1
        if not uses[0]:
            self._bytes -= self._uses.pop(address)[1]

    @property
    def live_bytes(self) -> int:
        """Bytes that wait now."""
        return self._bytes

    def take_peak_bytes(self) -> int:
        """Return the most bytes that waited at once since the last call."""
        peak_bytes, self._peak_bytes = self._peak_bytes, self._bytes
        return peak_bytes


def _tensor_of(held: Tensor | _Held) -> Tensor:
    return held.tensor if isinstance(held, _Held) else held
