"""The committed protobuf code says what the .proto files say, and runs on every runtime that the project allows."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from protos import coordinator_pb2, log_pb2, swarm_pb2

ROOT = Path(__file__).parent.parent
FILES: dict[str, FileDescriptor] = {
    "log": log_pb2.DESCRIPTOR,
    "swarm": swarm_pb2.DESCRIPTOR,
    "coordinator": coordinator_pb2.DESCRIPTOR,
}


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FileDescriptorProto]:
    """What protoc makes of the .proto files now. Compared as descriptors: the generator in use may be a newer one."""
    output = tmp_path_factory.mktemp("protoc") / "descriptors"
    sources = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "protos").glob("*.proto"))]
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "-I", ".", f"--descriptor_set_out={output}", *sources],
        cwd=ROOT,
        check=True,
    )
    files = FileDescriptorSet.FromString(output.read_bytes()).file
    return {Path(file.name).stem: file for file in files}


def test_every_proto_file_has_committed_code(compiled: dict[str, FileDescriptorProto]) -> None:
    """No .proto file is without its module, none is checked by no test."""
    assert set(compiled) == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_committed_code_matches_its_proto(name: str, compiled: dict[str, FileDescriptorProto]) -> None:
    """Messages, fields, numbers and services of the module are those of the file; else run `make protos`."""
    committed = FileDescriptorProto()
    FILES[name].CopyToProto(committed)
    expected = compiled[name]
    for file in (committed, expected):
        for message in file.message_type:
            for field in message.field:
                field.ClearField("json_name")  # derived from the name, and not in the committed code
    assert committed == expected, "run `make protos`"


@pytest.mark.parametrize("name", FILES)
def test_committed_types_match_the_code(name: str) -> None:
    """The .pyi file beside the module has every message and field."""
    text = (ROOT / "protos" / f"{name}_pb2.pyi").read_text()
    messages = FILES[name].message_types_by_name
    for message in messages.values():
        section = re.search(rf"^class {message.name}\(.*?(?=^class |\Z)", text, flags=re.M | re.S)
        assert section, f"{message.name} is missing; run `make protos`"
        fields = set(re.findall(r"^    (\w+): (?!_ClassVar)", section[0], flags=re.M))
        assert fields == set(message.fields_by_name), f"{message.name}; run `make protos`"


@pytest.mark.parametrize("suffix", ["py", "pyi"])
def test_committed_stubs_match_the_services(suffix: str) -> None:
    """The gRPC stubs name every method of the service, and no other."""
    text = (ROOT / "protos" / f"coordinator_pb2_grpc.{suffix}").read_text()
    for service in coordinator_pb2.DESCRIPTOR.services_by_name.values():
        servicer = re.search(rf"^class {service.name}Servicer\b.*?(?=^class |^def |\Z)", text, flags=re.M | re.S)
        assert servicer
        assert set(re.findall(r"def ([A-Z]\w+)\(", servicer[0])) == set(service.methods_by_name)


def test_names_cannot_clash_with_other_packages() -> None:
    """Files are registered under protos/ and commonweights.v1: the registry is shared by everything in the process."""
    for name, file in FILES.items():
        assert file.name == f"protos/{name}.proto"
        assert file.package == "commonweights.v1"


def test_the_oldest_allowed_runtime_is_new_enough() -> None:
    """Generated code refuses runtimes older than its generator; pyproject.toml must not promise more."""
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    floors = {match[1]: version(match[2]) for line in dependencies if (match := re.match(r"([\w-]+)>=([\d.]+)", line))}
    for name in FILES:
        header = re.search(r"Protobuf Python Version: ([\d.]+)", (ROOT / "protos" / f"{name}_pb2.py").read_text())
        assert header and version(header[1])[:2] <= floors["protobuf"]
    stub = re.search(r"GRPC_GENERATED_VERSION = '([\d.]+)'", (ROOT / "protos/coordinator_pb2_grpc.py").read_text())
    assert stub and version(stub[1])[:2] <= floors["grpcio"]


def test_imports_without_a_warning() -> None:
    """The installed runtime, however new, takes the committed code in silence."""
    code = "import protos.swarm_pb2, protos.log_pb2, protos.coordinator_pb2_grpc"
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, check=True)
