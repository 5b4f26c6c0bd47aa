"""Programs that are compiled before they are called, several at a time, and counted."""

import functools
import os
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax

_begun: weakref.WeakSet[Future] = weakref.WeakSet()  # of all programs of this process


def count_as_compiling(*begun: Future) -> None:
    """What compiles programs in another thread, and has perhaps begun none yet.

    Args:
        *begun: work that ends when they are compiled.
    """
    _begun.update(begun)


def is_compiling() -> bool:
    """Whether something is still being compiled. Python waits for it when the process ends."""
    return any(not future.done() for future in list(_begun))


class Program:
    """A jitted function with a compiled program for each kind of arguments.

    A kind is their structure, shapes, types and shardings. Calling it with arguments of a new kind compiles,
    as with any jitted function; `compile_ahead` compiles earlier, from abstract arrays. jax.jit's own cache
    cannot be filled without a call, and a call of a training step consumes the state.

    Args:
        jitted: what jax.jit returned.
    """

    def __init__(self, jitted: Any):
        self.jitted = jitted
        self._compiled: dict[Any, Future[jax.stages.Compiled]] = {}

    def __call__(self, *arguments: Any) -> Any:
        if has_four_bits(arguments):
            return self.jitted(*arguments)
        return self.compiled(*arguments)(*arguments)

    def abstract_result(self, *arguments: Any) -> Any:
        """Shapes and shardings of what a call gives; waits until its program is compiled.

        Args:
            *arguments: of a call, abstract ones allowed.
        """
        shapes = jax.eval_shape(self.jitted, *arguments)
        shardings = self._compiled[_kind(arguments)].result().output_shardings
        return jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes, shardings
        )

    def __len__(self) -> int:
        """How many programs were compiled so far in this process, or are being compiled."""
        return len(self._compiled) + self.jitted._cache_size()

    def compiled(self, *arguments: Any) -> jax.stages.Compiled:
        """The program that a call with these arguments runs, compiled if it is not yet.

        Args:
            *arguments: of a call, abstract ones allowed.
        """
        kind = _kind(arguments)
        future = self._compiled.get(kind)
        if future is None:
            [future] = self._compile({kind: arguments}, threads=1, ends_s=[])
        return future.result()

    def lower(self, *arguments: Any) -> jax.stages.Lowered:
        """As jax.jit's lower.

        Args:
            *arguments: of a call, abstract ones allowed.
        """
        return self.jitted.lower(*arguments)

    def compile_ahead(self, calls: Sequence[tuple]) -> Callable[[], tuple[int, float]]:
        """Begins to compile what some calls will need, in as many threads as there are cores.

        Call this where the mesh is set.

        Args:
            calls: the arguments of each, abstract ones allowed.

        Returns:
            A function that waits for the end and gives how many programs were compiled, and in how many
            seconds.
        """
        began_s = time.perf_counter()
        calls_by_kind = {_kind(call): call for call in calls if not has_four_bits(call)}
        for kind in calls_by_kind:
            if (known := self._compiled.get(kind)) is not None and known.done() and known.exception():
                self._forget_failed(kind, known)  # its callback, which does this, may not have run yet
        begun = [future for kind in calls_by_kind if (future := self._compiled.get(kind)) is not None]
        missing = {kind: call for kind, call in calls_by_kind.items() if kind not in self._compiled}
        ends_s = [began_s]
        futures = self._compile(missing, threads=os.cpu_count() or 1, ends_s=ends_s)

        def wait() -> tuple[int, float]:
            for future in (*begun, *futures):
                future.result()
            return len(missing), max(ends_s) - began_s

        return wait

    def _compile(self, calls: dict[Any, tuple], threads: int, ends_s: list[float]) -> list[Future]:
        """ends_s gets the time at which each is compiled, before its future is done."""

        def compile_one(lowered: Any) -> Any:
            try:
                return lowered.compile()
            finally:
                ends_s.append(time.perf_counter())

        executor = ThreadPoolExecutor(max(1, min(len(calls), threads)))
        # Traced in this thread: tracing holds the interpreter, compiling does not.
        futures = {kind: executor.submit(compile_one, self.lower(*call)) for kind, call in calls.items()}
        executor.shutdown(wait=False)
        self._compiled.update(futures)
        count_as_compiling(*futures.values())
        for kind, future in futures.items():
            future.add_done_callback(functools.partial(self._forget_failed, kind))
        return list(futures.values())

    def _forget_failed(self, kind: Any, future: Future) -> None:
        """What failed, for instance for want of memory beside another program, may be compiled later."""
        if future.exception() is not None:
            self._compiled.pop(kind, None)


def has_four_bits(arguments: Any) -> bool:
    """Whether an array holds numbers of 4 bits (nf4).

    JAX passes its layout differently to a program that is compiled ahead, which then refuses it.

    Args:
        arguments: of a call, a tree of arrays and anything else.
    """
    return any(str(getattr(x, "dtype", "")) in ("int4", "uint4") for x in jax.tree.leaves(arguments))


def _kind(arguments: tuple) -> Any:
    leaves, structure = jax.tree.flatten(arguments)
    return structure, tuple(
        (x.shape, x.dtype, getattr(x, "sharding", None)) if hasattr(x, "shape") else type(x) for x in leaves
    )
