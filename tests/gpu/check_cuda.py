"""python -m tests.gpu.check_cuda [BYTES]: holds a CUDA context and bytes of the first visible card until input ends.

Through the driver's own library, so that nothing else's memory is in the way (CUDA Driver API, "Memory Management").
"""

import contextlib
import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator

from modelregistry.process.gpus import Device

ASKED = 1024**3


def main() -> None:
    asked = int(sys.argv[1]) if len(sys.argv) > 1 else ASKED
    driver = ctypes.CDLL("libcuda.so.1")
    device, context, memory = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
    check(driver.cuInit(0), "cuInit")
    check(driver.cuDeviceGet(ctypes.byref(device), 0), "cuDeviceGet")
    check(driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device), "cuDevicePrimaryCtxRetain")
    check(driver.cuCtxSetCurrent(context), "cuCtxSetCurrent")
    check(driver.cuMemAlloc_v2(ctypes.byref(memory), ctypes.c_size_t(asked)), "cuMemAlloc")
    print("allocated", flush=True)
    sys.stdin.read()


def check(status: int, what: str) -> None:
    if status:
        sys.exit(f"{what}: CUDA error {status}")


@contextlib.contextmanager
def holding(card: Device, asked: int = ASKED) -> Iterator[int | None]:
    """Have another process hold so many bytes of the card; its pid. None: it could not, and said why."""
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.gpu.check_cuda", str(asked)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": card.uuid},
    )
    assert child.stdout
    try:
        yield child.pid if child.stdout.readline() == b"allocated\n" else None
    finally:
        child.communicate()


if __name__ == "__main__":
    main()
