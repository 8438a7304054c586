"""python -m tests.gpu.check_cuda: holds a CUDA context and 1 GiB of the first visible card until its input ends.

Through the driver's own library, so that nothing else's memory is in the way (CUDA Driver API, "Memory Management").
"""

import ctypes
import sys

ASKED = 1024**3


def main() -> None:
    driver = ctypes.CDLL("libcuda.so.1")
    device, context, memory = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
    check(driver.cuInit(0), "cuInit")
    check(driver.cuDeviceGet(ctypes.byref(device), 0), "cuDeviceGet")
    check(driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device), "cuDevicePrimaryCtxRetain")
    check(driver.cuCtxSetCurrent(context), "cuCtxSetCurrent")
    check(driver.cuMemAlloc_v2(ctypes.byref(memory), ctypes.c_size_t(ASKED)), "cuMemAlloc")
    print("allocated", flush=True)
    sys.stdin.read()


def check(status: int, what: str) -> None:
    if status:
        sys.exit(f"{what}: CUDA error {status}")


if __name__ == "__main__":
    main()
