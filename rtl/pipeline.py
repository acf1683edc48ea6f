"""Stage registers under one enable: the control that every fixed-latency unit shares."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Signal

from rtl.delay import delay


class Pipeline:
    """A data path of `stages` registers between two streams that moves or stands as a whole.

    Parameters
    ----------
    m : Module
        Where the registers go.
    i, o : stream interfaces
        Of any payload; a beat taken from `i` is offered on `o` after `stages` clock cycles
        in which the path moved.
    stages : int
        1 or more.

    Attributes
    ----------
    advance : Signal
        High when every stage takes the value of the one before it: always, except while a
        beat waits at the output. Depends on `o` only, so that streams in series make no
        loop.
    """

    def __init__(self, m: Module, i: Any, o: Any, stages: int) -> None:
        self._m = m
        self.advance = Signal()
        valid = delay(m, i.valid, "valid", stages, enable=self.advance, reset_less=False)
        m.d.comb += [o.valid.eq(valid), self.advance.eq(o.ready | ~o.valid), i.ready.eq(self.advance)]

    def delay(self, value: Any, stages: int, name: str) -> Any:
        """`value` as it was `stages` moves ago, see `rtl.delay.delay`."""
        return delay(self._m, value, name, stages, enable=self.advance)

    def copy(self, value: Any, name: str) -> Any:
        """`value` one move ago, in a register that synthesis does not merge with another one of it.

        A value that is handed on and also drives a multiplier needs a register beside that. Registers of the
        same input are merged, bit by bit, unless they power up differently: this one does as all ones.
        """
        register = Signal(value.shape(), name=name, reset_less=True, init=(1 << len(value)) - 1)
        with self._m.If(self.advance):
            self._m.d.sync += register.eq(value)
        return register
