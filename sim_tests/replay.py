"""The cocotb bench: runs inside the simulator, loads constants, replays beats and keeps what comes out.

Reads ``plan.npz`` in the working directory and writes ``outcome.npz`` (`sim_tests.simulate`
writes and reads them). Comparing with the expected beats is left to the parent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, ValueChange

# Cycles without any transfer after which a unit counts as stuck; more than the longest row takes.
PATIENCE = 1 << 15
# Cycles for which a side keeps its pace in a run with stalls; a window has a multiple of it.
STRETCH = 16


class Player:
    """Plays windows of cycles on ``bench.sv`` and sorts out what was recorded."""

    def __init__(self, dut: Any, plan: Any):
        self.dut = dut
        self.window = int(plan["window"])
        self.in_bits, self.out_bits = int(plan["in_bits"]), int(plan["out_bits"])
        self.dice = np.random.default_rng(int(plan["stall_seed"])) if plan["stall_seed"] >= 0 else None
        self.cycle = 0
        self.unsettled: np.ndarray | None = None  # payload that was offered and not taken in the last cycle
        self.unstable: list[int] = []

    def prepare(self, beats: np.ndarray, words: np.ndarray, drain: bool = False) -> None:
        """Hand over the beats and words of the next window, and who stalls when."""
        for name, packed, width in (("beat", beats, self.in_bits), ("word", words, 8 * words.shape[1])):
            getattr(self.dut, f"{name}_count").value = len(packed)
            if len(packed):
                bits = np.zeros((self.window, width), np.uint8)
                bits[: len(packed)] = np.unpackbits(packed, axis=1, bitorder="little")[:, :width]
                getattr(self.dut, f"{name}s").value = _text(bits.reshape(-1))
        go = np.ones((3, self.window), bool)
        go[2] = False
        if self.dice is not None and not drain:
            # Each side keeps a pace for a while, from full speed to nearly stopped.
            whiles = self.window // STRETCH
            pace = self.dice.choice([1.0, 0.9, 0.5, 0.1], (2, whiles)).repeat(STRETCH, axis=1)
            go[:2] = self.dice.random((2, self.window)) < pace
            go[2] = (self.dice.random(whiles) < 0.5).repeat(STRETCH)
        for name, bits in zip(("offer", "accept", "patient"), go, strict=True):
            getattr(self.dut, name).value = _text(bits)

    async def play(self) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
        """Run the window: number of words taken, cycles of beats taken, cycles and beats of results."""
        await ValueChange(self.dut.window_done)
        text = str(self.dut.record.value).encode()
        record = (np.frombuffer(text, np.uint8)[::-1] & 1).reshape(self.window, self.out_bits + 4)
        payload = record[:, : self.out_bits]
        ready, valid, taken, written = record[:, self.out_bits :].T.astype(bool)
        self._check_stability(payload, valid, ready)
        results = np.flatnonzero(valid & ready)
        start, self.cycle = self.cycle, self.cycle + self.window
        packed = np.packbits(payload[results], axis=1, bitorder="little")
        return int(written.sum()), start + np.flatnonzero(taken), start + results, packed

    async def reset(self) -> None:
        """Reset the unit for some cycles, in which nothing is offered; what it held is gone."""
        self.dut.aresetn.value = 0
        await ClockCycles(self.dut.aclk, 3)
        self.dut.aresetn.value = 1
        self.unsettled = None

    def _check_stability(self, payload: np.ndarray, valid: np.ndarray, ready: np.ndarray) -> None:
        before = np.full((1, self.out_bits), 2, np.uint8) if self.unsettled is None else self.unsettled[None]
        previous = np.concatenate([before, payload[:-1]])
        waiting = np.concatenate([[self.unsettled is not None], (valid & ~ready)[:-1]])
        broken = waiting & (~valid | (payload != previous).any(axis=1))
        self.unstable += (self.cycle + np.flatnonzero(broken)).tolist()
        self.unsettled = payload[-1] if valid[-1] and not ready[-1] else None


def _text(bits: np.ndarray) -> str:
    """A bit vector as text, highest bit first."""
    return (bits[::-1].astype(np.uint8) + ord("0")).tobytes().decode()


@cocotb.test()
async def replay(dut: Any) -> None:
    """Load each layer's constants, replay its beats, wait for its results, and see that no more come; or reset."""
    plan = np.load("plan.npz")
    player = Player(dut, plan)
    outcome: dict[str, np.ndarray] = {}
    no_cycles = np.zeros(0, np.int64)
    Clock(dut.aclk, 10, "ns", impl="gpi").start()
    await ClockCycles(dut.aclk, 4)
    dut.aresetn.value = 1
    for layer in range(int(plan["layers"])):
        beats, words, expected = plan[f"beats_{layer}"], plan[f"words_{layer}"], int(plan[f"expected_{layer}"])
        sent = loaded = received = idle = 0
        taken_at: list[np.ndarray] = []
        given_at: list[np.ndarray] = []
        given: list[np.ndarray] = []
        draining = finished = False
        while not finished and idle < PATIENCE:
            loading = loaded < len(words)
            player.prepare(
                beats[sent : sent + player.window] if not loading else beats[:0],
                words[loaded : loaded + player.window],
                draining,
            )
            finished = draining  # one window after the last result, in which nothing may come
            written, taken, cycles, results = await player.play()
            loaded, sent, received = loaded + written, sent + len(taken), received + len(cycles)
            idle = 0 if written or len(taken) or len(cycles) else idle + player.window
            taken_at.append(taken)
            given_at.append(cycles)
            given.append(results)
            draining = sent == len(beats) and received >= expected
            if plan[f"reset_{layer}"] and sent == len(beats):
                await player.reset()
                finished = True
        outcome[f"taken_at_{layer}"] = np.concatenate([no_cycles, *taken_at])
        outcome[f"given_at_{layer}"] = np.concatenate([no_cycles, *given_at])
        outcome[f"given_{layer}"] = np.concatenate(given)
        if not finished:
            break
    outcome["unstable"] = np.array(player.unstable, np.int64)
    outcome["cycles"] = np.array(player.cycle)
    with Path("outcome.npz").open("wb") as file:
        np.savez(file, **outcome)  # type: ignore[arg-type]
