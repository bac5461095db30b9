"""The emulator of tests/cuda_emulator sees the mistakes that would hang or race on a GPU, and rounds as CUDA does."""

from __future__ import annotations

import ctypes

import pytest
import torch

from tests import cuda_emulator

pytestmark = pytest.mark.skipif(bool(cuda_emulator.UNAVAILABLE), reason=cuda_emulator.UNAVAILABLE)

SOURCE = r"""
#include <cuda_fp16.h>

namespace {
void leaves() {
    if (threadIdx.x != 40) __syncthreads();
}
void leaves_first() {
    if (threadIdx.x != 0) __syncthreads();
}
void diverges() {
    if (threadIdx.x < 7) __shfl_xor_sync(~0u, 1.0f, 1);
    else __shfl_sync(~0u, 1.0f, 0);
}
void crosses() {
    if (threadIdx.x < 32) __syncthreads();
    else if (threadIdx.x == 32) __syncthreads();
    else __shfl_sync(~0u, 1, 0);
}
void traps() {
    if (blockIdx.x == 2 && threadIdx.x == 33) __trap();
}
int sums[64];
void sum() {
    int value = threadIdx.x;
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
    __syncthreads();
    sums[threadIdx.x] = value * 1000 + __shfl_up_sync(~0u, static_cast<int>(threadIdx.x), 3);
}
}  // namespace

extern "C" {
const char* run(int which) {
    void (*const kernels[])() = {leaves, leaves_first, diverges, crosses, traps, sum};
    emulator::run(dim3(3), 64, kernels[which]);
    return cudaGetLastError() == cudaSuccess ? "" : cudaGetErrorString(1);
}
const int* results() { return sums; }
unsigned short to_half(float x) { return __float2half_rn(x).bits; }
float from_half(unsigned short x) { return __half2float(__ushort_as_half(x)); }
unsigned short to_bfloat16(float x) { return __float2bfloat16_rn(x).bits; }
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("emulator")
    (folder / "kernels.cu").write_text(SOURCE)
    compiled = cuda_emulator.compile_one(folder / "kernels.cu", cuda_emulator.KERNEL_FLAGS, folder)
    cuda_emulator.run([cuda_emulator.COMPILER, "-shared", str(compiled), "-o", str(folder / "kernels.so")])
    out = ctypes.CDLL(str(folder / "kernels.so"))
    out.run.restype, out.results.restype = ctypes.c_char_p, ctypes.POINTER(ctypes.c_int)
    out.to_half.argtypes = out.to_bfloat16.argtypes = [ctypes.c_float]
    out.from_half.restype, out.from_half.argtypes = ctypes.c_float, [ctypes.c_ushort]
    return out


@pytest.mark.parametrize(
    "kernel, message",
    list(
        enumerate(
            [
                "this thread has left, others wait at __syncthreads, thread 40 of block 0",
                "__syncthreads: another thread has left, thread 1 of block 0",
                "__shfl_sync: another thread is at __shfl_xor_sync, thread 7 of block 0",
                "the threads of a block wait for one another at different places",
                "trap, thread 33 of block 2",
                "",
            ]
        )
    ),
)
def test_broken_rules_are_seen(library, kernel, message):
    assert library.run(kernel).decode() == message


def test_functions_of_a_warp(library):
    assert library.run(5) == b""
    sums = [1000 * (496 if t < 32 else 1520) + (t if t % 32 < 3 else t - 3) for t in range(64)]
    assert library.results()[:64] == sums


def test_conversions_round_as_torch_does(library):
    x = torch.cat([torch.logspace(-8, 5, 4000), torch.tensor([0.0, 65519.9, 65520.0, 6.1e-5, 2.0**-25, float("inf")])])
    x = torch.cat([x, -x])
    for name, dtype in (("to_half", torch.float16), ("to_bfloat16", torch.bfloat16)):
        found = torch.tensor([getattr(library, name)(value) for value in x.tolist()]).to(torch.int32)
        assert torch.equal(found & 0xFFFF, x.to(dtype).view(torch.int16).int() & 0xFFFF)
    every = torch.arange(0, 65536, 7, dtype=torch.int32)
    halves = every.to(torch.int16).view(torch.float16).float()
    found = torch.tensor([library.from_half(value) for value in every.tolist()])
    assert torch.equal(found.nan_to_num(7), halves.nan_to_num(7))
