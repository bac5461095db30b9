// The module mind_kernels._cuda: importing it registers the CUDA operators. LibTorch's stable ABI and Python's limited
// API only, so that one library serves all their later versions.
#include <Python.h>

#include "../operators.h"

#ifndef MIND_NAMESPACE
#define MIND_NAMESPACE mind_kernels_cuda
#endif
MIND_REGISTER(MIND_NAMESPACE, CUDA, mind::define_operators, mind::implement_operators)

namespace {

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_cuda", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__cuda() { return PyModule_Create(&module); }
