"""Packets to pixels by PyAV: exactly the frames asked for, at the least that they need."""

from __future__ import annotations

from collections.abc import Sequence

import av
import numpy as np

from avomni_lib.etl.pictures import Canvas, Pictures, Size, SizeRule
from avomni_lib.etl.stream import Damaged, Stream, damaged

SKIPPING_CODECS = ("h264", "hevc")  # FFmpeg's decoders that heed skip_frame packet by packet


def by_pyav(stream: Stream, rows: np.ndarray, size: Size | SizeRule | None) -> Pictures:
    """Decode the frames at `rows` (ascending, unique), and nothing that they do not need.

    Pictures that nothing refers to are skipped unless they are wanted. Where a packet's bytes are
    faulty, what needs it is lost, for a decoder may go on without a sign of it; where the decoder
    finds the fault, all of its GOP is lost, for what it noticed need not be the first.

    Raises:
        AvomniError: no frame at all can be had.
    """
    return Reader(stream, rows, size).read()


def plan_runs(stream: Stream, wanted: Sequence[int]) -> list[tuple[int, list[int]]]:
    """The least to decode for packets `wanted` (ascending): runs as (start, the wanted of it).

    A run is sent to the decoder from its start to the last one wanted of it.
    """
    runs: list[tuple[int, list[int]]] = []
    for packet in wanted:
        start = stream.start_for(packet)
        held = [packet]
        while runs and start <= runs[-1][1][-1]:
            earlier, before = runs.pop()
            start, held = min(start, earlier), before + held
        runs.append((start, held))
    return runs


class _Fault(Exception):
    """What is wrong with a packet, and the first packet that is not to be trusted for it."""

    def __init__(self, what: str, packet: int, first: int):
        super().__init__(what)
        self.what, self.packet, self.first = what, packet, first


class Reader:
    """One call of `by_pyav`."""

    def __init__(self, stream: Stream, rows: np.ndarray, size: Size | SizeRule | None):
        self.stream, self.canvas = stream, Canvas(stream, rows, size)
        self.skip = "NONREF" if stream.codec.name in SKIPPING_CODECS else "DEFAULT"
        place_of = {int(stream.pts[row]): place for place, row in enumerate(rows)}
        self.packet_of = {packet.pts: i for i, packet in enumerate(stream.packets)}
        # Packet -> place in `rows`, in decode order.
        self.wanted = {
            i: place_of[packet.pts]
            for i, packet in enumerate(stream.packets)
            if packet.pts in place_of and not packet.is_discard
        }
        self.drawn: set[int] = set()
        self.lost: dict[int, Damaged] = {}

    def read(self) -> Pictures:
        todo = plan_runs(self.stream, sorted(self.wanted))[::-1]
        while todo:
            start, held = todo.pop()
            try:
                self._read_run(start, held)
            except _Fault as fault:
                todo += self._without(fault, held)[::-1]
        lost = {self.wanted[i]: error for i, error in self.lost.items()}
        if len(lost) == len(self.wanted):
            raise lost[min(lost)]
        self.canvas.images[list(lost)] = 0
        return Pictures(self.canvas.images, self.canvas.source_size, lost)

    def _without(self, fault: _Fault, held: list[int]) -> list[tuple[int, list[int]]]:
        """Note what of a run is lost to a fault; returns the runs that read the rest of it."""
        rest = []
        for i in held:
            if i < fault.first or self.stream.start_for(i) > fault.packet:
                if i not in self.drawn:
                    rest.append(i)
            else:
                row = self.stream.row_of(fault.packet)
                self.lost[i] = damaged(fault.what, self.stream.name, row)
        return plan_runs(self.stream, rest)

    def _read_run(self, start: int, held: list[int]) -> None:
        self._check(start, held[-1])
        try:
            self._decode(start, held, self.skip)
        except _Fault as fault:
            # An unusual stream may need more than was planned, so all that comes before is decoded
            # too before a packet is called damaged.
            try:
                self._check(0, start)
                self._decode(0, held, "DEFAULT")
            except _Fault:
                raise fault from None

    def _check(self, first: int, last: int) -> None:
        for i in range(first, last + 1):
            if what := self.stream.fault(i):
                raise _Fault(what, i, i)

    def _decode(self, start: int, held: list[int], skip: str) -> None:
        stream, codec = self.stream, self.stream.codec
        pending, last_pts = set(held), None
        codec.flush_buffers()
        for i in [*range(start, held[-1] + 1), None]:
            codec.skip_frame = "DEFAULT" if i is None or i in pending else skip
            try:
                frames = codec.decode(None if i is None else stream.packets[i])
            except av.error.FFmpegError as error:
                at = held[-1] if i is None else i
                raise self._undecodable(f"a frame does not decode: {error.strerror}", at) from None
            for frame in frames:
                shown = self.packet_of.get(frame.pts)
                if frame.is_corrupt:
                    at = held[-1] if shown is None else shown
                    raise self._undecodable("a frame decodes only in part", at)
                # Pictures come out in the order that their own numbers give; where the file's times
                # give another one, they are not those of these pictures.
                if shown is None or (last_pts is not None and frame.pts <= last_pts):
                    what = "the file's times do not follow the order of its pictures"
                    raise self._undecodable(what, i if shown is None else shown)
                last_pts = frame.pts
                if shown in pending:
                    self.canvas.draw(self.wanted[shown], frame)
                    pending.remove(shown)
                    self.drawn.add(shown)
        if pending:
            what = "a frame did not come out of the decoder"
            raise self._undecodable(what, min(pending))

    def _undecodable(self, what: str, packet: int) -> _Fault:
        keys = self.stream.keys
        before = int(np.searchsorted(keys, packet, side="right")) - 1
        return _Fault(what, packet, int(keys[before]) if before >= 0 else 0)
