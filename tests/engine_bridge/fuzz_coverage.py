"""The coverage-guided fuzzer's process: python -m tests.engine_bridge.fuzz_coverage CORPUS [libFuzzer's options]."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["engine_bridge.codec", "engine_bridge.messages", "engine_bridge.session"]):
    from engine_bridge import codec
    from tests.engine_bridge.fuzzing import try_message


def one_input(data: bytes) -> None:
    try:
        parts = [bytes(part) for part in codec.split(data)]
    except codec.ProtocolError:
        parts = [data]
    fault = try_message(parts)
    if fault:
        raise AssertionError(fault)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
