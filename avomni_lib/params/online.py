"""The sections for using a trained model: on live cameras, and driving in a simulator."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from avomni_lib.params import user_code
from avomni_lib.params.section import Section
from avomni_lib.params.sections import PathText, Positive, PositiveFloat, ServerText

# The built-in policies; `module:attribute` names one in user code.
# fmt: off
POLICIES = (
    "expert", "log_replay", "constant_velocity", "ctra", "ego_motion", "blind", "adapted",
)
# fmt: on


class LiveParams(Section):
    """Live cameras: their addresses, how their frames are synchronised, which model answers."""

    sources: dict[str, str] | None = Field(
        None,
        description="the address of each camera of vision.cameras: a file, /dev/videoN, rtsp://, "
        "http:// (MJPEG), tcp://, udp://, rosbag:PATH?topic=/a or lavfi:; null plays a held-out "
        "clip of the run",
    )
    clock: Literal["file", "device", "arrival"] = Field(
        "file",
        description="file: the file's times, played in real time; device: the stream's times, "
        "mapped to this machine's clock by the frames with the least delay; arrival: the time when "
        "a frame arrives",
    )
    offset_ms: dict[str, Annotated[float, Field(ge=-10_000, le=10_000)]] = Field(
        {}, description="ms added to the times of a camera, by its name"
    )
    deadline_ms: Annotated[float, Field(gt=0, le=60_000)] = Field(
        250.0, description="maximum ms that a tick waits for the slowest camera"
    )
    max_age_s: Annotated[float, Field(gt=0, le=60)] = Field(
        0.5, description="maximum age of a frame in s; beyond it the tick is a gap"
    )
    hop: Positive = Field(4, description="ticks from one answerable window to the next")
    seconds: PositiveFloat | None = Field(
        20.0, description="duration of a session in s; null runs until stopped"
    )
    server: ServerText | None = Field(
        None, description="address of an OpenAI endpoint, up to /v1; null answers in this process"
    )
    record: PathText | None = Field(
        None, description="folder of the record; null is live/ in the run's folder"
    )
    port: Annotated[int, Field(ge=0, le=65_535)] = Field(
        0, description="port of the page on this machine; 0 takes a free one"
    )


class DrivingParams(Section):
    """Closed-loop driving in the rendered world: policies, number of drives, traffic."""

    num_episodes: Annotated[int, Field(ge=1, le=10_000)] | None = Field(
        None,
        description="drives of each policy, each in a different world; null: the run has no "
        "08_drive",
    )
    policies: tuple[str, ...] = Field(
        POLICIES,
        description="policies to run: expert, log_replay, constant_velocity, ctra, ego_motion, "
        "blind, adapted, or `module:attribute` of your own policy",
    )
    seconds: Annotated[float, Field(ge=1, le=15)] = Field(
        12.0, description="maximum duration of a drive in s, in steps of 0.1 s"
    )
    traffic: Literal["idm", "replay"] = Field(
        "idm",
        description="idm: other cars keep their distance, also to the driven car; replay: they "
        "move as recorded",
    )
    events: tuple[Literal["none", "cut_in", "braking_leader", "stopped_car"], ...] = Field(
        ("none",), description="event in a drive; several events take turns"
    )
    hop: Positive | None = Field(
        None, description="frames from one answer of the model to the next; null uses live.hop"
    )
    smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.5,
        description="weight of the model's previous path in the path followed after an answer",
    )
    batch_size: Annotated[int, Field(ge=1, le=64)] = Field(
        10, description="drives run in parallel, whose windows are answered together"
    )

    @field_validator("seconds")
    @classmethod
    def _in_steps(cls, value: float) -> float:
        if abs(value * 10 - round(value * 10)) > 1e-6:
            raise ValueError(f"{value:g} s are not a number of steps of 0.1 s")
        return value

    @field_validator("policies")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(user_code.need_known(name, POLICIES) for name in value)
