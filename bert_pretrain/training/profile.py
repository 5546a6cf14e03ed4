"""``logging.profile_steps``: a trace of a few steps by torch's profiler and, on CUDA, a snapshot of the memory.

Each rank writes ``profile/rank_R_steps_FIRST_LAST.json`` into the run directory (for ui.perfetto.dev or
chrome://tracing) and ``..._memory.pickle`` (for pytorch.org/memory_viz). The ranges of the trace are ``step N``,
``wait for samples``, ``forward``, ``backward``, ``optimizer`` and ``read numbers``.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from bert_pretrain.distributed.world import World

_MEMORY_EVENTS = 1_000_000


class StepProfiler:
    """Profiles the steps ``first`` to ``last`` of a run; does nothing without them, and costs nothing then."""

    def __init__(
        self, steps: Sequence[int] | None, directory: Path, world: World, report: Callable[[str], None]
    ) -> None:
        self.first, self.last = steps or (0, -1)
        self.directory, self.world, self.report = directory, world, report
        self.reached = 0
        self._profile: profile | None = None

    def span(self, name: str) -> AbstractContextManager[object]:
        """Context of a range with this name in the trace."""
        return nullcontext() if self._profile is None else record_function(name)

    def before_step(self, step: int) -> None:
        """``step`` is the next: begin or end, if it is time."""
        if self._profile is not None and step > self.last:
            self.finish()
        elif self._profile is None and self.first <= step <= self.last:
            self.first = step  # that of a resumed run may be later
            on_gpu = self.world.device.type == "cuda"
            with self.world.busy("starting the profiler"):
                if on_gpu:
                    torch.cuda.memory._record_memory_history(max_entries=_MEMORY_EVENTS)
                self._profile = profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] * on_gpu)])
                self._profile.start()
        self.reached = step

    def finish(self) -> None:
        """Write what was recorded, if anything was."""
        if self._profile is None:
            return
        done, self._profile, self.last = self._profile, None, -1
        where = self.directory / f"rank_{self.world.rank}_steps_{self.first}_{self.reached}"
        found = f"profile of steps {self.first} to {self.reached} in {where}*: open the trace in ui.perfetto.dev"
        with self.world.busy("writing the profile"):
            done.stop()
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
                done.export_chrome_trace(f"{where}.json")
                if self.world.device.type == "cuda":
                    torch.cuda.memory._dump_snapshot(f"{where}_memory.pickle")
                    found += ", the memory in pytorch.org/memory_viz"
            except (OSError, RuntimeError) as error:  # a full disk: no reason to end the run
                found = f"the profile could not be written to {self.directory} ({error})"
            if self.world.device.type == "cuda":
                torch.cuda.memory._record_memory_history(enabled=None)
        self.report(found)
