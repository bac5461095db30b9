// The module mind_kernels._cpp: importing it registers the CPU operators. LibTorch's stable ABI and Python's limited
// API only, so that one library serves all their later versions.
#include <Python.h>

#include "../operators.h"
#include "divergence_operators.h"
#include "gradient_operators.h"
#include "kernels.h"
#include "project_operators.h"
#include "stream_operators.h"

namespace mind {

static void define_cpu_operators(torch::stable::detail::StableLibrary& library) {
    define_operators(library);
    define_stream_operators(library);
    define_gradient_operators(library);
    define_divergence_operators(library);
    define_divergence_products(library);
    define_project_operators(library);
}

static void implement_cpu_operators(torch::stable::detail::StableLibrary& library) {
    implement_operators(library);
    implement_stream_operators(library);
    implement_gradient_operators(library);
    implement_divergence_operators(library);
    implement_divergence_products(library);
    implement_project_operators(library);
}

}  // namespace mind

#ifndef MIND_NAMESPACE
#define MIND_NAMESPACE mind_kernels_cpp
#endif
MIND_REGISTER(MIND_NAMESPACE, CPU, mind::define_cpu_operators, mind::implement_cpu_operators)

namespace {

PyObject* capability(PyObject*, PyObject*) {
    try {
        return PyUnicode_FromString(mind::kernels().capability);
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
        return nullptr;
    }
}

PyObject* use_capability(PyObject*, PyObject* name) {
    const char* text = PyUnicode_AsUTF8AndSize(name, nullptr);
    if (text == nullptr) return nullptr;
    try {
        mind::use_capability(text);
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
        return nullptr;
    }
    Py_RETURN_NONE;
}

PyObject* row_numbers(PyObject*, PyObject*) {
    PyObject* names = PyTuple_New(mind::kRowNumbers);
    for (int i = 0; names != nullptr && i < mind::kRowNumbers; ++i) {
        PyObject* name = PyUnicode_FromString(mind::kRowNumberNames[i]);
        if (name == nullptr || PyTuple_SetItem(names, i, name) != 0) Py_CLEAR(names);
    }
    return names;
}

PyMethodDef methods[] = {
    {"capability", capability, METH_NOARGS, "The instruction set of the kernels in use: avx512, avx2 or baseline."},
    {"use_capability", use_capability, METH_O, "Chooses the instruction set by name; the best one if it is empty."},
    {"row_numbers", row_numbers, METH_NOARGS, "The names of the statistics of a row, in the order of `numbers`."},
    {nullptr, nullptr, 0, nullptr},
};
PyModuleDef module = {PyModuleDef_HEAD_INIT, "_cpp", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__cpp() { return PyModule_Create(&module); }
