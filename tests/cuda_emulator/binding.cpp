// The operators of csrc/cuda as torch.ops.mind_kernels_emulated, for CPU tensors: their own checks and launchers, and
// the kernels on the emulator. There is one device and one stream.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include "../../csrc/operators.h"

extern "C" {

AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
    *stream = nullptr;
    return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_create_device_guard(int32_t, DeviceGuardHandle* guard) {
    *guard = nullptr;
    return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle) { return AOTI_TORCH_SUCCESS; }
}

MIND_REGISTER(mind_kernels_emulated, CPU, mind::define_operators, mind::implement_operators)
