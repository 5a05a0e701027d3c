"""AsyncPrunedRollout: pruned rollouts for TRL's asynchronous GRPO, which trains while the next ones are generated.

TRL's other client of `RolloutWorker`. A thread rolls out batch after batch and puts the survivors into the queue
that TRL's trainer empties; when the trainer has new weights it waits for the batch that is under way, so that no
rollout comes from two policies.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import TrainerCallback

from arrol_train.rl.rollout_worker import RolloutWorker
from arrol_train.rl.trl_bridge import async_samples, beside_checkpoint
from arrol_tts.errors import EngineError, InputError

if TYPE_CHECKING:
    import torch

POLL_S = 0.1
"""Seconds between two looks at whether training has ended, while the queue is full."""


class AsyncPrunedRollout(TrainerCallback):
    """What TRL's AsyncGRPOTrainer takes as its rollout worker, its weight transfer and a callback, all three.

    Use::

        worker = RolloutWorker(engine, rows, reward, config, head, tokenizer=tokenizer)
        rollout = AsyncPrunedRollout(worker, prompts=8)
        AsyncGRPOTrainer(
            model,
            args=AsyncGRPOConfig(num_generations=config.survivors, token_budget=..., ...),
            train_dataset=dataset,
            rollout_worker=rollout,
            weight_transfer=rollout,
            callbacks=[rollout],
        )

    TRL keeps it on the main process alone, whose engine makes the rollouts of all. Advantages are those of TRL's
    own worker: a survivor's reward less the mean of the group's survivors, over their standard deviation; with the
    baseline ``all`` those of `arrol_train.rl.advantages`. The ungraded are left out. The head learns from every
    batch as soon as it is finished, is saved in TRL's checkpoint folders, and comes back from there.

    Args:
        worker: makes the rollouts; its engine's weights are replaced by the trainer's.
        prompts: rows of a batch. With as many survivors in it as TRL trains on in a step, a rollout is at most two
            updates behind the policy.
        seed: of the order of the rows.

    Attributes:
        worker: makes the rollouts, and has head and metrics.
        rollout_buffer: TRL's ``RolloutSample`` of every survivor; one batch fits in.
        metrics_queue: metrics of each batch.
    """

    def __init__(self, worker: RolloutWorker, *, prompts: int, seed: int = 0) -> None:
        if not 1 <= prompts <= len(worker.rows):
            raise InputError(f"prompts is {prompts}: choose from 1 to the {len(worker.rows)} rows that there are")
        worker.config.check_prompts(prompts)
        self.worker = worker
        self.rollout_buffer: queue.Queue[Any] = queue.Queue(prompts * worker.config.survivors)
        self.metrics_queue: queue.Queue[dict[str, float]] = queue.Queue()
        self._prompts, self._seed = prompts, seed
        self._batch: int | None = None
        self._version = 0
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._rolling = self._paused = self._stopped = False
        self._alive = time.monotonic()

    # As a callback

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Check the trainer's settings, and go on from a checkpoint's head.

        Raises:
            InputError: when temperature or number of generations are not those of the rollouts.
            ConfigError: when the checkpoint comes from another configuration.
        """
        config = self.worker.config
        if args.num_generations != config.survivors:
            raise InputError(
                f"num_generations is {args.num_generations}, but {config.survivors} of {config.group} rollouts "
                f"survive: set num_generations={config.survivors}"
            )
        if args.temperature != config.temperature:
            raise InputError(
                f"AsyncGRPOConfig has temperature {args.temperature:g} and the rollouts {config.temperature:g}: "
                "the ratio of their probabilities would be wrong; set both to the same"
            )
        self._batch = state.global_step
        checkpoint = beside_checkpoint(args, state.global_step)
        if state.is_world_process_zero and checkpoint.is_dir():
            self.worker.load(checkpoint)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Complete TRL's checkpoint by head, buffer and calibration."""
        if state.is_world_process_zero:
            self.pause()
            try:
                self.worker.save(beside_checkpoint(args, state.global_step))
            finally:
                self.resume()

    # As a rollout worker

    def start(self) -> None:
        """Begin to roll out, on a thread.

        Raises:
            InputError: when this is not among the trainer's callbacks.
        """
        if self._batch is None:
            raise InputError("the rollouts are not among the trainer's callbacks: pass callbacks=[rollout] too")
        self._stopped, self._error = False, None
        self._thread = threading.Thread(target=self._run, args=(self._batch,), name="rollouts", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Wait for the batch that is under way, and roll out no other."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def update_model_version(self, model_version: int) -> None:
        """Note which policy the engine has."""
        self._version = model_version

    def check_health(self, stale_after_s: float) -> None:
        """Look after the thread.

        Raises:
            EngineError: when it failed, for that reason, or a batch takes longer than it may.
        """
        if self._error is not None:
            raise EngineError(f"rollouts have ended: {self._error}") from self._error
        waited = time.monotonic() - self._alive
        if waited > stale_after_s:
            raise EngineError(
                f"a batch of rollouts has taken {waited:.0f} s: raise heartbeat_stale_after_s, or look at the "
                "engine"
            )

    # As a weight transfer

    def init_weight_transfer(self) -> None:
        """Nothing to do: the engine is there."""

    def pause(self) -> None:
        """Wait until the batch that is under way has ended, and let none begin."""
        with self._changed:
            self._paused = True
            self._changed.wait_for(lambda: not self._rolling)

    def send_weights(self, iterator: Iterator[tuple[str, torch.Tensor]]) -> None:
        """Bring the policy's weights into the engine, under the names of its checkpoint."""
        self.worker.push(iterator)

    def resume(self) -> None:
        """Let batches begin."""
        with self._changed:
            self._paused = False
            self._changed.notify_all()

    def destroy(self) -> None:
        """Nothing to do: the engine is the caller's to close."""

    def _run(self, batch: int) -> None:
        try:
            while self._begin():
                try:
                    samples = self._roll(batch)
                finally:
                    self._end()
                self._put(samples)
                batch += 1
        except BaseException as error:  # it is the trainer's thread that has to hear of it
            self._error = error

    def _begin(self) -> bool:
        """Whether a batch may begin: not while weights are pushed, and not when training has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or not self._paused)
            self._rolling, self._alive = not self._stopped, time.monotonic()
            return self._rolling

    def _end(self) -> None:
        with self._changed:
            self._rolling = False
            self._changed.notify_all()

    def _roll(self, batch: int) -> list[Any]:
        groups = self.worker.roll(self._rows(batch), batch)
        samples = async_samples(groups, self.worker, self._version)
        self.metrics_queue.put(dict(self.worker.learn(groups, batch)))
        return samples

    def _rows(self, batch: int) -> list[int]:
        """The rows of a batch: every row comes once before any comes again."""
        size = len(self.worker.rows)
        numbers = range(batch * self._prompts, (batch + 1) * self._prompts)
        orders = {n // size: np.random.default_rng((self._seed, n // size)).permutation(size) for n in numbers}
        # A batch that reaches into the next round may meet a row twice: once is enough.
        return list(dict.fromkeys(int(orders[number // size][number % size]) for number in numbers))

    def _put(self, samples: list[Any]) -> None:
        for sample in samples:
            sample.enqueued_at = time.time()
            while not self._stopped:
                self._alive = time.monotonic()
                try:
                    self.rollout_buffer.put(sample, timeout=POLL_S)
                    break
                except queue.Full:
                    continue
