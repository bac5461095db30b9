#include "launch.cuh"

namespace mind::cuda {

const char* launch_error() {
    const cudaError_t error = cudaGetLastError();
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace mind::cuda
