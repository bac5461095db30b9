// The module mind_kernels._cuda: importing it registers the CUDA operators. LibTorch's stable ABI and Python's limited
// API only, so that one library serves all their later versions.
#include <Python.h>

#include "../operators.h"
#include "operators.h"

STABLE_TORCH_LIBRARY(mind_kernels_cuda, library) { mind::define_operators(library); }

STABLE_TORCH_LIBRARY_IMPL(mind_kernels_cuda, CUDA, library) {
    library.impl("row_kernel_", TORCH_BOX(&mind::cuda::row_kernel_));
    library.impl("count", TORCH_BOX(&mind::cuda::count));
    library.impl("entries", TORCH_BOX(&mind::cuda::entries));
    library.impl("background", TORCH_BOX(&mind::cuda::background));
    library.impl("gather_rows", TORCH_BOX(&mind::cuda::gather_rows));
    library.impl("pair_divergences", TORCH_BOX(&mind::cuda::pair_divergences));
    library.impl("mixture_divergences", TORCH_BOX(&mind::cuda::mixture_divergences));
}

namespace {

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_cuda", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__cuda() { return PyModule_Create(&module); }
