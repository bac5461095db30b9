// Best-fit decreasing bin packing for sequence lengths: the module mind._packer.
//
// Items go in decreasing length, ties in input order. Each goes to the fullest bin that still holds it, ties to the bin
// opened first; with none, it opens the next bin. `mind.batches.bin_packing._best_fit_python` is the same algorithm in
// Python and gives the same bins.
//
// Open bins are kept by residual capacity: an ordered map from each residual that occurs to a min-heap of bin indices,
// so an item costs O(log min(n, capacity)) to find its residual and O(log bins) to find the first bin opened. Memory is
// O(n) whatever the capacity.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <numeric>
#include <queue>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace py = pybind11;

namespace {

using Index = std::int64_t;
using FirstOpened = std::priority_queue<Index, std::vector<Index>, std::greater<Index>>;
using Lengths = py::array_t<Index, py::array::c_style>;

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

// Item indices by decreasing length, ties by index. A counting sort where its table is no longer than the list.
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

Lengths best_fit_decreasing(const Lengths& lengths, Index capacity) {
    if (lengths.ndim() != 1) {
        throw std::invalid_argument("lengths has " + std::to_string(lengths.ndim()) + " dimensions: expected 1");
    }
    const Index n = lengths.shape(0);
    const Index* source = lengths.data();
    Lengths bins(n);
    Index* target = bins.mutable_data();
    {
        const py::gil_scoped_release release;
        check(source, n, capacity);
        pack(source, n, capacity, target);
    }
    return bins;
}

}  // namespace

PYBIND11_MODULE(_packer, module, py::mod_gil_not_used()) {
    module.doc() = "Best-fit decreasing bin packing.";
    module.def("best_fit_decreasing", &best_fit_decreasing, py::arg("lengths").noconvert(), py::arg("capacity"),
               "Bin index of every item: lengths (n,) int64, each 1 to capacity -> (n,) int64.\n\n"
               "Raises ValueError for a capacity below 1 and for a length outside 1 to capacity.");
}
