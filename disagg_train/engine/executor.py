"""Runs an op list. This is the file to read first: one training step of one rank.

A schedule says what to do; every op kind has one method here. Colocated and disjoint jobs,
encoders and the LLM, training and evaluation all go through ``run``.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from disagg_train.boundary.step_exchanges import RankExchanges
from disagg_train.device import Clock, Moment
from disagg_train.engine.activations import ActivationMeter
from disagg_train.engine.agreement import Agreement, agree, check_same_plan
from disagg_train.engine.decode import evaluate
from disagg_train.engine.inputs import StepInputs
from disagg_train.engine.links import Link
from disagg_train.engine.loss_scale import LossScale
from disagg_train.engine.outputs import Outputs
from disagg_train.engine.stage import Stage
from disagg_train.engine.world import World
from disagg_train.metrics.records import RankReport, Span
from disagg_train.metrics.trace import START_STEP
from disagg_train.modules.batch import LanguageBatch
from disagg_train.planner.step_plan import StepPlan
from disagg_train.schedule.ops import Op, OpKind
from disagg_train.schedule.program import Program
from disagg_train.schedule.timeline import span_of


@dataclass(frozen=True)
class Upcoming:
    """The next step, for stages that run ahead into it.

    Args:
        digest: of its plan.
        inputs: waits for its batches and exchanges, and returns them.
    """

    digest: int
    inputs: Callable[[], StepInputs]


class Executor:
    """One rank's modules and boundaries, driven by op lists.

    Args:
        world: the groups of the rank.
        stages: its stages by name.
        links: its edges by name.
        modules: all modules of the job, in order; agreed vectors follow it.
        meter: counts the activations of the stages.
        loss_scale: what losses are multiplied with before a backward; None for nothing.
    """

    def __init__(
        self,
        world: World,
        stages: Mapping[str, Stage],
        links: Mapping[str, Link],
        modules: Sequence[str],
        meter: ActivationMeter,
        loss_scale: LossScale | None = None,
    ) -> None:
        self._world, self._stages, self._links = world, stages, links
        self._modules, self._meter, self._loss_scale = tuple(modules), meter, loss_scale
        self._clock = Clock(world.device)
        self._ahead: dict[tuple[int, str, int], Tensor] = {}
        self._into: dict[str, dict[str, Link]] = {stage: {} for stage in stages}
        self._out_of: dict[str, list[Link]] = {stage: [] for stage in stages}
        for name, link in links.items():
            if link.edge.destination_stage in stages:
                self._into[link.edge.destination_stage][name] = link
            if link.edge.source_stage in stages:
                self._out_of[link.edge.source_stage].append(link)
        self._do = {
            OpKind.FORWARD: self._forward,
            OpKind.BACKWARD: self._backward,
            OpKind.BACKWARD_INPUT: self._backward,
            OpKind.BACKWARD_WEIGHT: self._backward_weight,
            OpKind.RUN_AHEAD: self._run_ahead,
            OpKind.EVALUATE: self._evaluate,
            OpKind.SEND_FORWARD: self._send_forward,
            OpKind.RECV_FORWARD: self._recv_forward,
            OpKind.SEND_BACKWARD: self._send_backward,
            OpKind.RECV_BACKWARD: self._recv_backward,
            OpKind.START_GRAD_SYNC: self._start_grad_sync,
            OpKind.GRAD_SYNC: self._grad_sync,
            OpKind.AGREE: self._agree,
            OpKind.OPTIMIZER_STEP: self._optimizer_step,
        }
        self.current_op: Op | None = None
        self.on_op: Callable[[Op | None], None] = lambda op: None

    def run(
        self,
        program: Program,
        plan: StepPlan,
        inputs: StepInputs,
        upcoming: Upcoming | None = None,
    ) -> RankReport:
        """Run one step.

        Args:
            program: this rank's op list.
            plan: the step plan; its digest is compared over all ranks before anything moves.
            inputs: this rank's batches and exchanges, made from the plan.
            upcoming: the next step; None after the last one.

        Raises:
            PlanError: another rank holds another plan.
            BoundaryError: an exchange failed or timed out.
        """
        begin = time.time()
        self._start_step(plan, inputs, upcoming)
        self._with_backward = program.stages_with_backward
        check_same_plan(self._world.control, plan)
        for op in program.first_receives:
            self._post(op)
        self._start = Span(START_STEP, "", "update", begin, time.time())
        for op in program.ops:
            self.current_op, began = op, self._clock.now()
            self.on_op(op)
            self._world.watchdog.check()
            self._do[op.kind](op)
            self._ran.append((op, began, self._clock.now()))
            if following := program.next_receive.get(op):
                self._post(following)
        self.current_op = None
        self.on_op(None)
        return self._end_step()

    def _start_step(self, plan: StepPlan, inputs: StepInputs, upcoming: Upcoming | None) -> None:
        self._plan, self._inputs, self._upcoming = plan, inputs, upcoming
        self._scale = None if self._loss_scale is None else self._loss_scale.value
        self._outputs = {
            stage: Outputs(links[0].edge.reach, plan.num_microbatches)
            for stage, links in self._out_of.items()
            if links
        }
        self._leaves: dict[tuple[str, int], Tensor] = {}
        self._input_grads: dict[tuple[str, int], Tensor] = {}
        self._ran: list[tuple[Op, Moment, Moment]] = []
        self._answers: dict[int, list[int]] = {}
        self._loss_sum = torch.zeros((), dtype=torch.float64)
        self._agreement: Agreement | None = None
        for stage in self._stages.values():
            if stage.optimizer is not None:
                stage.optimizer.zero_grad()

    def _end_step(self) -> RankReport:
        self._world.watchdog.check()
        sent, peak_bytes = {}, 0
        for name, link in self._links.items():
            ways = link.forward, link.backward
            for way in ways:
                way.drain()
            sent[name] = sum(way.take_sent_bytes() for way in ways)
            peak_bytes += sum(way.buffers.take_peak_bytes() for way in ways)
        agreement = self._agreement or Agreement(loss_sum=float(self._loss_sum))
        return RankReport(
            place=self._world.place,
            modules=tuple(stage.module for stage in self._stages.values()),
            loss_sum=agreement.loss_sum,
            grad_norm=agreement.grad_norm,
            skipped=agreement.skip,
            loss_scale=self._scale,
            spans=(self._start, *self._spans()),
            sent_bytes=sent,
            peak_boundary_bytes=peak_bytes,
            peak_activation_bytes=self._meter.take_peak_bytes(),
            answers=self._answers,
        )

    def _spans(self) -> list[Span]:
        """Return when ops ran; in traced steps the host waits for a GPU's last ones, too."""
        if self._meter.active:
            self._clock.settle()
        seconds = self._clock.seconds
        return [span_of(op, seconds(begin), seconds(end)) for op, begin, end in self._ran]

    # Compute.

    def _forward(self, op: Op) -> None:
        ran_ahead = self._ahead.pop((self._plan.digest, op.module, op.microbatch), None)
        if ran_ahead is not None:
            self._outputs[op.module].keep(op.microbatch, ran_ahead)
            return
        stage, output = self._stages[op.module], self._output_of(op, self._inputs)
        if op.module in self._outputs:
            self._outputs[op.module].keep(op.microbatch, output)
        else:
            self._count_loss(stage, output.detach().sum())
        if op.module not in self._with_backward:
            stage.release(op.microbatch)
            self._release_inputs(op)

    def _output_of(self, op: Op, inputs: StepInputs) -> Tensor:
        stage = self._stages[op.module]
        batch = inputs.batches[stage.module][op.microbatch]
        return stage.forward(op.microbatch, batch, self._inputs_of(op))

    def _run_ahead(self, op: Op) -> None:
        """Run a forward of the next step; rows that were kept for another one go."""
        if self._upcoming is None:
            return
        digest = self._upcoming.digest
        self._ahead = {key: rows for key, rows in self._ahead.items() if key[0] == digest}
        output = self._output_of(op, self._upcoming.inputs())
        self._ahead[digest, op.module, op.microbatch] = output
        self._stages[op.module].release(op.microbatch)

    def _release_inputs(self, op: Op) -> None:
        """Let the memory of a stage's received rows be used again."""
        for name, link in self._into[op.module].items():
            if (name, op.microbatch) in self._leaves:
                link.forward.release(self._leaves.pop((name, op.microbatch)))

    def _inputs_of(self, op: Op) -> dict[str, Tensor]:
        """Return the rows that a stage received, by the name that its model knows."""
        return {
            link.input_name: self._leaves[name, op.microbatch]
            for name, link in self._into[op.module].items()
            if (name, op.microbatch) in self._leaves
        }

    def _count_loss(self, stage: Stage, loss_sum: Tensor | float) -> None:
        """Every tp rank of a cp rank sees the same loss; one of them counts it.

        The sum stays where it is until all ranks agree: reading it would hold the host up.
        """
        if stage.groups.tp.rank() == 0:
            self._loss_sum = self._loss_sum + loss_sum

    def _backward(self, op: Op) -> None:
        stage, outputs = self._stages[op.module], self._outputs.get(op.module)
        if outputs is None:
            output_grad_TD = self._grad_of_loss()
        else:
            output_grad_TD = outputs.take_gradient(op.microbatch)
        run = stage.backward if op.kind is OpKind.BACKWARD else stage.backward_input
        grads = run(op.microbatch, output_grad_TD)
        for name, link in self._into[op.module].items():
            self._input_grads[name, op.microbatch] = grads[link.input_name]
        self._release_inputs(op)
        for link in self._out_of[op.module]:
            if output_grad_TD is not None:
                link.backward.release(output_grad_TD)

    def _grad_of_loss(self) -> Tensor | None:
        if self._scale is None:
            return None
        return torch.tensor(self._scale, device=self._world.device.torch_device)

    def _backward_weight(self, op: Op) -> None:
        self._stages[op.module].backward_weight(op.microbatch)

    def _evaluate(self, op: Op) -> None:
        stage = self._stages[op.module]
        stages = [each.unwrapped for each in self._stages.values() if each.module == stage.module]
        batch = self._inputs.batches[stage.module][op.microbatch]
        received = self._inputs_of(op)
        if batch is None:
            self._release_inputs(op)
            return
        assert isinstance(batch, LanguageBatch)
        present = {name: rows for name, rows in received.items() if len(rows)}
        loss_sum, answers = evaluate(stages, batch, present)
        self._count_loss(stage, loss_sum)
        self._release_inputs(op)
        held = self._plan.held(stage.module, op.microbatch, stage.groups.dp.rank())
        for index, answer in zip(held, answers, strict=True):
            self._answers[self._plan.samples[index].key] = answer

    # Transfers.

    def _exchange(self, op: Op) -> RankExchanges:
        return self._inputs.exchanges[op.boundary][op.microbatch]

    def _send_forward(self, op: Op) -> None:
        link = self._links[op.boundary]
        rows_TD = self._outputs[link.edge.source_stage].message(op.microbatch)
        link.forward.launch(op.microbatch, self._exchange(op).forward, rows_TD)

    def _recv_forward(self, op: Op) -> None:
        link = self._links[op.boundary]
        rows_TD = link.forward.finish(op.microbatch)
        trains = link.carries_gradient and torch.is_grad_enabled()
        self._leaves[op.boundary, op.microbatch] = rows_TD.requires_grad_(trains)

    def _send_backward(self, op: Op) -> None:
        link = self._links[op.boundary]
        grad_TD = self._input_grads.pop((op.boundary, op.microbatch))
        link.backward.launch(op.microbatch, self._exchange(op).backward, grad_TD)

    def _recv_backward(self, op: Op) -> None:
        link = self._links[op.boundary]
        grad_TD = link.backward.finish(op.microbatch)
        self._outputs[link.edge.source_stage].add_gradient(op.microbatch, grad_TD)
        if link.edge.reach.span:
            link.backward.release(grad_TD)

    def _post(self, op: Op) -> None:
        """Post a receive, unless this rank's own send of that exchange will launch it."""
        link, exchange = self._links[op.boundary], self._exchange(op)
        edge, place = link.edge, self._world.place
        if op.kind is OpKind.RECV_FORWARD and place not in edge.source_places:
            link.forward.post(op.microbatch, exchange.forward)
        if op.kind is OpKind.RECV_BACKWARD and place not in edge.destination_places:
            link.backward.post(op.microbatch, exchange.backward)

    # The end of a step.

    def _start_grad_sync(self, op: Op) -> None:
        optimizer = self._stages[op.module].optimizer
        assert optimizer is not None
        optimizer.start_sync()

    def _grad_sync(self, op: Op) -> None:
        optimizer = self._stages[op.module].optimizer
        assert optimizer is not None
        optimizer.sync(self._plan.num_target_tokens, self._scale or 1.0)

    def _agree(self, op: Op) -> None:
        del op
        self._clock.settle()  # what an abort set free must not be agreed upon
        self._world.watchdog.check()
        self._agreement = agree(
            self._world.control, self._stages, self._modules, float(self._loss_sum)
        )
        if self._loss_scale is not None:
            self._loss_scale.update(self._agreement.skip)

    def _optimizer_step(self, op: Op) -> None:
        optimizer = self._stages[op.module].optimizer
        assert optimizer is not None and self._agreement is not None
        if not self._agreement.skip:
            optimizer.step(self._plan.learning_rate, self._agreement.grad_norm)
