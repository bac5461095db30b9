// The module mind_kernels._cuda: importing it registers the CUDA operators. LibTorch's stable ABI and Python's limited
// API only, so that one library serves all their later versions.
#include <Python.h>

#include "../operators.h"

STABLE_TORCH_LIBRARY(mind_kernels_cuda, library) { mind::define_operators(library); }

STABLE_TORCH_LIBRARY_IMPL(mind_kernels_cuda, CUDA, library) { mind::implement_operators(library); }

namespace {

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_cuda", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__cuda() { return PyModule_Create(&module); }
