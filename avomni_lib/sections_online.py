"""The sections about a trained model at work, before live cameras."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from avomni_lib.section import Section
from avomni_lib.sections import PathText, Positive, PositiveFloat, ServerText


class LiveParams(Section):
    """Live cameras: where they are, how their frames are put together, who answers."""

    sources: dict[str, str] | None = Field(
        None,
        description="an address for each camera of vision.cameras: a file, /dev/videoN, rtsp://, "
        "http:// (MJPEG), tcp://, udp://, rosbag:PATH?topic=/a or lavfi:; null plays a held-out "
        "clip of the run",
    )
    clock: Literal["file", "device", "arrival"] = Field(
        "file",
        description="file: its own times, paced as if live; device: the stream's own times, tied "
        "to this machine's clock by the frames that arrive soonest; arrival: when a frame arrives",
    )
    offset_ms: dict[str, Annotated[float, Field(ge=-10_000, le=10_000)]] = Field(
        {}, description="ms added to the times of a camera, by its name"
    )
    deadline_ms: Annotated[float, Field(gt=0, le=60_000)] = Field(
        250.0, description="ms that a tick waits for the slowest camera"
    )
    max_age_s: Annotated[float, Field(gt=0, le=60)] = Field(
        0.5, description="s that a frame may be old; beyond it the tick is a gap"
    )
    hop: Positive = Field(4, description="ticks from one window that may be answered to the next")
    seconds: PositiveFloat | None = Field(20.0, description="s of a session; null until stopped")
    server: ServerText | None = Field(
        None, description="address of an OpenAI endpoint, up to /v1; null answers in this process"
    )
    record: PathText | None = Field(
        None, description="folder of the record; null is live/ of the run's folder"
    )
    port: Annotated[int, Field(ge=0, le=65_535)] = Field(
        0, description="of the page on this machine; 0 takes a free one"
    )
