"""The messages and the service of egodriver.proto, from its compiled form, egodriver.binpb."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_COMPILED = descriptor_pb2.FileDescriptorSet.FromString(
    Path(__file__).with_name("egodriver.binpb").read_bytes()
).file[0]
_FILE = descriptor_pool.Default().AddSerializedFile(_COMPILED.SerializeToString())
SERVICE = _FILE.services_by_name["EgodriverService"]
pb: Any = SimpleNamespace(
    **{
        name: message_factory.GetMessageClass(message)
        for name, message in _FILE.message_types_by_name.items()
    }
)
