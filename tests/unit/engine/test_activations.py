"""The meter counts what autograd keeps, each storage once, for as long as it is kept."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from disagg_train.engine.activations import ActivationMeter

ROWS = 1000
ROW_BYTES = ROWS * 4


def rows() -> torch.Tensor:
    return torch.linspace(0.1, 1.0, ROWS, requires_grad=True)


def test_a_saved_tensor_counts_until_its_backward() -> None:
    meter = ActivationMeter()
    with meter.watch():
        out = rows().exp()
    assert meter.live_bytes == ROW_BYTES
    out.sum().backward()
    assert (meter.live_bytes, meter.take_peak_bytes()) == (0, ROW_BYTES)


def test_tensors_that_share_memory_count_once() -> None:
    meter, x = ActivationMeter(), rows()
    with meter.watch():
        out = x.sin() + x.view(10, -1).cos().flatten() + x[10:].tan().sum()
    assert meter.live_bytes == ROW_BYTES + (ROWS - 10) * 4, "x, and what tan gave"
    del out
    assert meter.live_bytes == 0


def test_weights_do_not_count() -> None:
    meter, layer = ActivationMeter(), nn.Linear(ROWS, 1)
    meter.leave_out(layer)
    with meter.watch():
        out = layer(rows())
    assert meter.live_bytes == ROW_BYTES
    out.backward()
    assert layer.weight.grad is not None


def test_a_graph_that_is_dropped_counts_no_more() -> None:
    meter = ActivationMeter()
    with meter.watch():
        out = rows().exp()
    del out
    assert meter.live_bytes == 0


def test_a_peak_is_taken_once_and_starts_from_what_is_left() -> None:
    meter = ActivationMeter()
    with meter.watch():
        outs = [rows().exp() for _ in range(3)]
    outs.pop()
    assert meter.take_peak_bytes() == 3 * ROW_BYTES
    assert meter.take_peak_bytes() == 2 * ROW_BYTES


def test_what_a_backward_computes_again_counts_in_the_peak() -> None:
    meter = ActivationMeter()
    with meter.watch():
        out = checkpoint(lambda x: x.exp().sin().exp(), rows(), use_reentrant=True)
    assert meter.live_bytes == ROW_BYTES
    with meter.watch():
        out.sum().backward()
    assert meter.live_bytes == 0
    assert meter.take_peak_bytes() == 3 * ROW_BYTES


def test_a_tensor_that_waits_elsewhere_counts_while_it_is_held() -> None:
    meter, waiting = ActivationMeter(), torch.zeros(ROWS)
    held = meter.hold(waiting)
    assert meter.live_bytes == ROW_BYTES
    del held
    assert meter.live_bytes == 0


def test_nothing_counts_while_the_meter_is_off() -> None:
    meter = ActivationMeter(active=False)
    with meter.watch():
        out = rows().exp()
    held = meter.hold(out)
    assert (meter.live_bytes, meter.take_peak_bytes()) == (0, 0)
    meter.active = True
    del out, held
    assert meter.live_bytes == 0


def test_gradients_are_those_without_a_meter() -> None:
    watched, plain = rows(), rows()
    with ActivationMeter().watch():
        out = (watched.exp() * watched).sum()
    out.backward()
    (plain.exp() * plain).sum().backward()
    assert (watched.grad == plain.grad).all()
