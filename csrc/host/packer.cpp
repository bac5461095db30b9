// Best-fit decreasing bin packing for sequence lengths: the module mind._packer.
//
// Items go in decreasing length, ties in input order. Each goes to the fullest bin that still holds it, ties to the bin
// opened first; with none, it opens the next bin. `mind.batches.bin_packing._best_fit_python` is the same algorithm in
// Python and gives the same bins.
//
// Open bins are kept by residual capacity: an ordered map from each residual that occurs to a min-heap of bin indices,
// so an item costs O(log min(n, capacity)) to find its residual and O(log bins) to find the first bin opened. Memory is
// O(n) whatever the capacity.
//
// Lengths and bins are taken as buffers, which Python's limited API has from 3.11 on: one library serves every later
// version of Python and of NumPy.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <new>
#include <numeric>
#include <queue>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace {

using Index = std::int64_t;
using FirstOpened = std::priority_queue<Index, std::vector<Index>, std::greater<Index>>;

void check(const Index* lengths, Index n, Index capacity) {
    if (capacity < 1) {
        throw std::invalid_argument("capacity is " + std::to_string(capacity) + ": expected at least 1");
    }
    for (Index i = 0; i < n; ++i) {
        if (lengths[i] < 1 || lengths[i] > capacity) {
            throw std::invalid_argument("lengths[" + std::to_string(i) + "] is " + std::to_string(lengths[i]) +
                                        ": expected 1 to " + std::to_string(capacity) + " (the capacity)");
        }
    }
}

// Item indices by decreasing length, ties by index. A counting sort if its table is no longer than the list.
std::vector<Index> decreasing_order(const Index* lengths, Index n) {
    std::vector<Index> order(n);
    const Index longest = n == 0 ? 0 : *std::max_element(lengths, lengths + n);
    if (longest > n) {
        std::iota(order.begin(), order.end(), Index{0});
        std::stable_sort(order.begin(), order.end(), [&](Index a, Index b) { return lengths[a] > lengths[b]; });
        return order;
    }
    std::vector<Index> next(longest + 1, 0);  // next[l]: where the next item of length l goes
    for (Index i = 0; i < n; ++i) ++next[lengths[i]];
    Index longer = 0;
    for (Index l = longest; l >= 0; --l) longer += std::exchange(next[l], longer);
    for (Index i = 0; i < n; ++i) order[next[lengths[i]]++] = i;
    return order;
}

void pack(const Index* lengths, Index n, Index capacity, Index* bins) {
    std::map<Index, FirstOpened> open;  // residual capacity -> its bins
    Index opened = 0;
    for (const Index item : decreasing_order(lengths, n)) {
        Index residual = capacity;
        const auto fullest = open.lower_bound(lengths[item]);
        if (fullest == open.end()) {
            bins[item] = opened++;
        } else {
            residual = fullest->first;
            bins[item] = fullest->second.top();
            fullest->second.pop();
            if (fullest->second.empty()) open.erase(fullest);
        }
        residual -= lengths[item];
        if (residual > 0) open[residual].push(bins[item]);
    }
}

// A contiguous one-dimensional buffer of int64, released at the end of its scope.
class Items {
public:
    Items() = default;
    Items(const Items&) = delete;
    Items& operator=(const Items&) = delete;
    ~Items() {
        if (held_) PyBuffer_Release(&view_);
    }

    // False with a Python exception set if `object` is no such buffer.
    bool take(PyObject* object, const char* name, int flags) {
        if (PyObject_GetBuffer(object, &view_, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | flags) != 0) return false;
        held_ = true;
        const std::string format = view_.format == nullptr ? "" : view_.format;
        if (view_.ndim == 1 && view_.itemsize == sizeof(Index) && (format == "l" || format == "q")) return true;
        PyErr_Format(PyExc_TypeError, "%s has %d dimensions and items of format %s: expected 1 and int64", name,
                     view_.ndim, format.c_str());
        return false;
    }

    Index* data() const { return static_cast<Index*>(view_.buf); }
    Index size() const { return view_.len / view_.itemsize; }

private:
    Py_buffer view_{};
    bool held_ = false;
};

PyObject* best_fit_decreasing(PyObject*, PyObject* arguments) {
    PyObject *lengths_object, *bins_object;
    long long capacity;
    if (!PyArg_ParseTuple(arguments, "OLO:best_fit_decreasing", &lengths_object, &capacity, &bins_object)) {
        return nullptr;
    }
    Items lengths, bins;
    if (!lengths.take(lengths_object, "lengths", 0) || !bins.take(bins_object, "bins", PyBUF_WRITABLE)) return nullptr;
    if (lengths.size() != bins.size()) {
        PyErr_Format(PyExc_ValueError, "bins has %lld items: expected %lld, as lengths",
                     static_cast<long long>(bins.size()), static_cast<long long>(lengths.size()));
        return nullptr;
    }
    std::string wrong;
    bool out_of_memory = false;
    Py_BEGIN_ALLOW_THREADS;  // nothing below touches Python before the end of the block
    try {
        check(lengths.data(), lengths.size(), capacity);
        pack(lengths.data(), lengths.size(), capacity, bins.data());
    } catch (const std::invalid_argument& error) {
        wrong = error.what();
    } catch (const std::bad_alloc&) {
        out_of_memory = true;
    }
    Py_END_ALLOW_THREADS;
    if (out_of_memory) return PyErr_NoMemory();
    if (!wrong.empty()) {
        PyErr_SetString(PyExc_ValueError, wrong.c_str());
        return nullptr;
    }
    Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"best_fit_decreasing", &best_fit_decreasing, METH_VARARGS,
     "best_fit_decreasing(lengths, capacity, bins, /)\n--\n\n"
     "Writes the bin index of every item to bins: lengths and bins (n,) int64, each length 1 to capacity.\n\n"
     "Raises ValueError for a capacity below 1, a length outside 1 to capacity or bins of another size, before "
     "anything is written."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    "_packer",
    "Best-fit decreasing bin packing.",
    0,
    methods,
    nullptr,
    nullptr,
    nullptr,
    nullptr,
};

}  // namespace

PyMODINIT_FUNC PyInit__packer() { return PyModuleDef_Init(&module); }
