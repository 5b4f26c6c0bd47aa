"""Programs that are compiled before they are called, side by side, and counted."""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax


class Program:
    """A jitted function with a compiled program for each kind of arguments (their structure, shapes, types and shardings). Calling it with arguments of
    a new kind compiles, as with any jitted function; `compile_ahead` does so before, from abstract arrays.

    What jax.jit keeps itself cannot be filled without a call, and a call of a training step takes the state.
    """

    def __init__(self, jitted: Callable):
        self.jitted = jitted
        self._compiled: dict[Any, Future[jax.stages.Compiled]] = {}

    def __call__(self, *arguments):
        if _has_four_bits(arguments):
            return self.jitted(*arguments)
        kind = _kind(arguments)
        if kind not in self._compiled:
            self._compile({kind: arguments}, threads=1)
        return self._compiled[kind].result()(*arguments)

    def __len__(self) -> int:
        """Programs compiled so far in this process, and those that are being compiled."""
        return len(self._compiled) + self.jitted._cache_size()

    def lower(self, *arguments) -> jax.stages.Lowered:
        return self.jitted.lower(*arguments)

    def compile_ahead(self, calls: Sequence[tuple]) -> Callable[[], tuple[int, float]]:
        """Begins to compile what these calls (tuples of arguments, abstract ones allowed) will need, in threads, as many as there are cores.

        The function returned waits for it and gives (how many were compiled, seconds from the beginning). Call this where the mesh is set.
        """
        began_s = time.perf_counter()
        calls = [call for call in calls if not _has_four_bits(call)]
        missing = {kind: call for call in calls if (kind := _kind(call)) not in self._compiled}
        ends_s = [began_s]
        for future in self._compile(missing, threads=os.cpu_count() or 1):
            future.add_done_callback(lambda _: ends_s.append(time.perf_counter()))

        def wait() -> tuple[int, float]:
            for call in calls:
                self._compiled[_kind(call)].result()
            return len(missing), max(ends_s) - began_s

        return wait

    def _compile(self, calls: dict[Any, tuple], threads: int) -> list[Future]:
        with_threads = ThreadPoolExecutor(max(1, min(len(calls), threads)))
        # Traced here: tracing holds the interpreter, compiling does not.
        futures = {kind: with_threads.submit(self.lower(*call).compile) for kind, call in calls.items()}
        with_threads.shutdown(wait=False)
        self._compiled.update(futures)
        return list(futures.values())


def _has_four_bits(arguments: tuple) -> bool:
    """Whether an array holds numbers of 4 bits (nf4): JAX gives its layout differently to a program that is compiled ahead, which then refuses it."""
    return any(str(getattr(x, "dtype", "")) in ("int4", "uint4") for x in jax.tree.leaves(arguments))


def _kind(arguments: tuple) -> Any:
    leaves, structure = jax.tree.flatten(arguments)
    return structure, tuple(
        (x.shape, x.dtype, getattr(x, "sharding", None)) if hasattr(x, "shape") else type(x) for x in leaves
    )
