// The tokens that rows list, by the blocks of the vocabulary in which the kernels come upon them.
#pragma once

#include <vector>

#include "../checks.h"
#include "kernels.h"

namespace mind {

class ListedBlocks {
public:
    // `ids` (n, T), or none.
    ListedBlocks(const OptionalTensor& ids, std::int64_t rows, std::int64_t vocabulary, const Tensor& like)
        : tokens_() {
        if (!ids) return;
        STD_TORCH_CHECK(ids->dim() == 2, "ids has shape ", shape_of(*ids), ": expected two dimensions");
        tokens_.count = ids->size(1);
        const std::int64_t total = rows * tokens_.count;
        tokens_.ids = checked<std::int64_t>("ids", *ids, {rows, tokens_.count}, like);
        check_indices("ids", tokens_.ids, 0, total, vocabulary);
        starts_.resize((vocabulary + kBlock - 1) / kBlock + 1);
        places_.resize(total);
        for (std::int64_t i = 0; i < total; ++i) ++starts_[tokens_.ids[i] / kBlock + 1];
        for (std::size_t b = 1; b < starts_.size(); ++b) starts_[b] += starts_[b - 1];
        std::vector<std::int64_t> next(starts_);
        for (std::int64_t i = 0; i < total; ++i) places_[next[tokens_.ids[i] / kBlock]++] = i;
        tokens_.starts = starts_.data();
        tokens_.places = places_.data();
    }
    ListedBlocks(const ListedBlocks&) = delete;

    ListedTokens tokens() const { return tokens_; }

private:
    ListedTokens tokens_;
    std::vector<std::int64_t> starts_, places_;
};

}  // namespace mind
