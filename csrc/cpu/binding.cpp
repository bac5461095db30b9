// The module mind_kernels._cpu: importing it registers the CPU operators. LibTorch's stable ABI and Python's limited
// API only, so that one library serves all their later versions.
#include <Python.h>

#include "../operators.h"
#include "kernels.h"
#include "operators.h"

STABLE_TORCH_LIBRARY(mind_kernels_cpu, library) { mind::define_operators(library); }

STABLE_TORCH_LIBRARY_IMPL(mind_kernels_cpu, CPU, library) {
    library.impl("row_kernel_", TORCH_BOX(&mind::row_kernel_));
    library.impl("count", TORCH_BOX(&mind::count));
    library.impl("entries", TORCH_BOX(&mind::entries));
    library.impl("background", TORCH_BOX(&mind::background));
    library.impl("gather_rows", TORCH_BOX(&mind::gather_rows));
    library.impl("pair_divergences", TORCH_BOX(&mind::pair_divergences));
    library.impl("mixture_divergences", TORCH_BOX(&mind::mixture_divergences));
}

namespace {

PyObject* capability(PyObject*, PyObject*) {
    try {
        return PyUnicode_FromString(mind::kernels().capability);
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
        return nullptr;
    }
}

PyMethodDef methods[] = {
    {"capability", capability, METH_NOARGS, "The instruction set of the kernels in use: avx512, avx2 or baseline."},
    {nullptr, nullptr, 0, nullptr},
};
PyModuleDef module = {PyModuleDef_HEAD_INIT, "_cpu", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__cpu() { return PyModule_Create(&module); }
