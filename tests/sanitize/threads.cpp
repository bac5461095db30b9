// Runs every function of the table of CPU kernels from several threads on ranges that take turns, under
// ThreadSanitizer, and once on one thread: the results must be equal bit by bit. tests/sanitize/threads.sh builds and
// runs it. The library itself is not tested this way: torch's OpenMP runtime is not instrumented, so ThreadSanitizer
// does not see its barriers and reports races in each parallel loop.
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include "../../csrc/cpu/kernels.h"

namespace {

using Range = std::function<void(std::int64_t begin, std::int64_t end)>;

// Items [0, count) in pieces of `piece`, each taken by whichever of the threads is free.
void spread(int threads, std::int64_t count, std::int64_t piece, const Range& range) {
    std::atomic<std::int64_t> next{0};
    const auto work = [&] {
        for (std::int64_t begin; (begin = next.fetch_add(piece, std::memory_order_relaxed)) < count;)
            range(begin, begin + piece < count ? begin + piece : count);
    };
    std::vector<std::thread> others;
    for (int i = 1; i < threads; ++i) others.emplace_back(work);
    work();
    for (std::thread& other : others) other.join();
}

template <typename T>
std::string bytes(const std::vector<T>& values) {
    static_assert(std::is_trivially_copyable_v<T>);
    return std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
}

std::vector<float> normal(std::int64_t count, float scale, unsigned seed) {
    std::mt19937 generator(seed);
    std::normal_distribution<float> distribution(0.0f, scale);
    std::vector<float> values(count);
    for (float& value : values) value = distribution(generator);
    return values;
}

// The bytes of random numbers of the type; float16 by its bits: sign, exponents from 2^-7 to 2^0, mantissa.
std::string matrix_bytes(mind::Type type, std::int64_t count, unsigned seed) {
    const std::vector<float> values = normal(count, 2.0f, seed);
    if (type == mind::Type::kFloat) return bytes(values);
    std::vector<std::uint16_t> bits(count);
    std::mt19937 generator(seed);
    for (std::int64_t i = 0; i < count; ++i) {
        std::uint32_t word;
        std::memcpy(&word, &values[i], sizeof word);
        const std::uint32_t random = generator();
        bits[i] = type == mind::Type::kBFloat16
                      ? word >> 16
                      : (random & 0x8000u) | (8u + random % 8u) << 10 | (random >> 16 & 0x3ffu);
    }
    return bytes(bits);
}

constexpr std::int64_t kRows = 37, kVocabulary = 1003, kStride = 1008;  // no multiple of a vector
constexpr float kLogThreshold = -5.0f;

// Everything that the row kernels write, one after the other.
std::string row_kernels(mind::Type type, int threads) {
    const mind::Kernels& kernels = mind::kernels();
    std::string logits = matrix_bytes(type, kRows * kStride, 1), result;
    const std::vector<float> scale = normal(kRows, 1.0f, 2), entropy_scale = normal(kRows, 0.1f, 3);
    std::vector<std::int64_t> target(kRows), kept(kRows), offsets(kRows + 1), sample{1, 5, 30};
    for (std::int64_t row = 0; row < kRows; ++row) target[row] = row * 27;
    std::vector<float> numbers(mind::kRowNumbers * kRows), dropped_mass(kRows), kept_sum(kRows),
        background(kVocabulary);
    bool correct[kRows] = {};
    mind::RowArguments rows{{logits.data(), type, kRows, kVocabulary, kStride},
                            target.data(),
                            scale.data(),
                            entropy_scale.data(),
                            {30.0f, 1.5f},
                            0.1f,
                            1e-3f,
                            numbers.data(),
                            correct};

    const mind::CountArguments count{rows, kLogThreshold, kept.data(), dropped_mass.data()};
    spread(threads, kRows, 2, [&](auto begin, auto end) { kernels.count(count, begin, end); });
    for (std::int64_t row = 0; row < kRows; ++row) offsets[row + 1] = offsets[row] + kept[row];
    std::vector<std::int32_t> columns(offsets[kRows]);
    std::vector<float> values(offsets[kRows]);
    const mind::EntryArguments entries{rows,           kLogThreshold, offsets.data(), offsets[kRows],
                                       columns.data(), values.data(), kept_sum.data()};
    spread(threads, kRows, 2, [&](auto begin, auto end) { kernels.entries(entries, begin, end); });
    const mind::BackgroundArguments dropped{
        rows, kLogThreshold, sample.data(), scale.data(), static_cast<std::int64_t>(sample.size()), background.data()};
    spread(threads, kVocabulary, 64, [&](auto begin, auto end) { kernels.background(dropped, begin, end); });
    result += bytes(numbers) + bytes(kept) + bytes(dropped_mass) + bytes(columns) + bytes(values) + bytes(kept_sum) +
              bytes(background);

    // dH's gather: a bag is a row of the logits, and the matrix is the head.
    constexpr std::int64_t kSize = 45, kRank = 3;
    std::string head = matrix_bytes(type, kVocabulary * kSize, 4), right = matrix_bytes(type, kRank * kSize, 5);
    std::string out(kRows * kSize * (type == mind::Type::kFloat ? 4 : 2), '\0');
    const std::vector<float> left = normal(kRows * kRank, 1.0f, 6);
    const mind::GatherArguments gather{values.data(),
                                       columns.data(),
                                       offsets[kRows],
                                       offsets.data(),
                                       {head.data(), type, kVocabulary, kSize, kSize},
                                       left.data(),
                                       kRank,
                                       1,
                                       {right.data(), type, kRank, kSize, kSize},
                                       {out.data(), type, kRows, kSize, kSize}};
    spread(threads, kRows, 2, [&](auto begin, auto end) { kernels.gather(gather, begin, end); });

    spread(threads, kRows, 2, [&](auto begin, auto end) { kernels.rows(rows, begin, end); });  // overwrites the logits
    return result + out + logits + bytes(numbers) + std::string(reinterpret_cast<char*>(correct), sizeof correct);
}

// The gradients of hidden states, weight and bias, from logits that `stream` has left, in three parts.
std::string exact_gradients(const mind::StreamWork& stream, int threads) {
    const mind::Kernels& kernels = mind::kernels();
    const std::int64_t rows = stream.hidden.rows, size = stream.hidden.columns;
    const std::vector<float> scale = normal(rows, 1.0f, 14);
    mind::GradientWork work{};
    work.hidden = stream.hidden;
    work.weight = stream.weight;
    work.bias = stream.bias;
    work.rows = stream.rows;
    work.rows.scale = scale.data();
    work.logits = stream.logits;
    work.logits_stride = stream.logits_stride;
    const std::int64_t scratch_size = kernels.plan_gradient(work, 3);
    std::vector<float> of_hidden(rows * size), of_weight(kVocabulary * size), of_bias(kVocabulary);
    std::vector<float> packed(rows * work.padded_columns), coefficients(mind::kCoefficients * work.stride);
    std::vector<float> sums(work.parts * work.padded_rows * work.padded_columns);
    work.of_hidden = of_hidden.data();
    work.of_weight = of_weight.data();
    work.add_weight = true;
    work.of_bias = of_bias.data();
    work.packed = packed.data();
    work.coefficients = coefficients.data();
    work.sums = sums.data();
    kernels.prepare_gradient(work);
    spread(threads, work.parts, 1, [&](auto begin, auto end) {
        const std::size_t bytes = (scratch_size * sizeof(float) + 63) / 64 * 64;
        float* scratch = static_cast<float*>(std::aligned_alloc(64, bytes));
        kernels.gradient(work, scratch, begin, end);
        std::free(scratch);
    });
    spread(threads, rows, 4, [&](auto begin, auto end) { kernels.join_gradient(work, begin, end); });
    return bytes(of_hidden) + bytes(of_weight) + bytes(of_bias);
}

// Everything that comes of rows straight from hidden states, spans of the vocabulary in any order.
std::string stream_kernels(mind::Type type, int threads) {
    const mind::Kernels& kernels = mind::kernels();
    constexpr std::int64_t kSize = 45, kMany = 101, kSpan = 96 * 4, kSpans = (kVocabulary + kSpan - 1) / kSpan;
    std::string hidden = matrix_bytes(type, kMany * kSize, 10), weight = matrix_bytes(type, kVocabulary * kSize, 11);
    const std::string bias = matrix_bytes(type, kVocabulary, 12);
    std::vector<std::int64_t> target(kMany), kept(kMany), offsets(kMany + 1);
    for (std::int64_t row = 0; row < kMany; ++row) target[row] = row * 9;
    std::vector<float> numbers(mind::kRowNumbers * kMany), dropped_mass(kMany);
    bool correct[kMany] = {};
    const std::int64_t strips = (kMany + kernels.strip_rows - 1) / kernels.strip_rows;
    std::vector<float> packed(strips * kernels.strip_rows * kSize);
    std::vector<mind::RowSums> sums(kSpans * kMany);
    std::vector<mind::TargetLogit> targets(kMany);
    std::vector<mind::Candidates> candidates(kSpans * strips);
    constexpr std::int64_t kLogitsStride = (kMany + 15) / 16 * 16, kLogitsRows = (kVocabulary + 95) / 96 * 96;
    float* logits = static_cast<float*>(std::aligned_alloc(64, kLogitsRows * kLogitsStride * sizeof(float)));
    mind::StreamWork work{};
    work.hidden = {hidden.data(), type, kMany, kSize, kSize};
    work.weight = {weight.data(), type, kVocabulary, kSize, kSize};
    work.bias = bias.data();
    work.rows.logits = {nullptr, mind::Type::kFloat, kMany, kVocabulary, kVocabulary};
    work.rows.target = target.data();
    work.rows.head = {30.0f, 1.5f};
    work.rows.label_smoothing = 0.1f;
    work.rows.numbers = numbers.data();
    work.rows.correct = correct;
    work.logits = logits;
    work.logits_stride = kLogitsStride;
    work.log_threshold = kLogThreshold;
    work.kept = kept.data();
    work.dropped_mass = dropped_mass.data();
    work.span = kSpan;
    work.spans = kSpans;
    work.strips = strips;
    work.packed = packed.data();
    work.sums = sums.data();
    work.targets = targets.data();
    work.candidates = candidates.data();
    std::int64_t collected = 0;
    work.most = kVocabulary * kMany;
    work.collected = &collected;
    work.grow = [](mind::Candidates& found) {
        found.capacity = 2 * found.capacity + 1024;
        found.data = static_cast<mind::Candidate*>(std::realloc(found.data, found.capacity * sizeof *found.data));
    };
    spread(threads, strips, 1, [&](auto begin, auto end) { kernels.pack(work, begin, end); });
    spread(threads, kSpans * strips, 1, [&](auto item, auto) {
        const std::size_t bytes = (kernels.stream_scratch(kSize) * sizeof(float) + 63) / 64 * 64;
        float* scratch = static_cast<float*>(std::aligned_alloc(64, bytes));
        kernels.stream(work, scratch, item / strips, item % strips, item % strips + 1);
        std::free(scratch);
    });
    spread(threads, strips, 1, [&](auto begin, auto end) { kernels.finish_stream(work, begin, end); });
    for (std::int64_t row = 0; row < kMany; ++row) offsets[row + 1] = offsets[row] + kept[row];
    std::vector<std::int32_t> columns(offsets[kMany]);
    std::vector<float> projected(offsets[kMany]), values(offsets[kMany]), kept_sum(kMany);
    work.offsets = offsets.data();
    work.columns = columns.data();
    work.projected = projected.data();
    spread(threads, strips, 1, [&](auto begin, auto end) { kernels.write_kept(work, begin, end); });
    for (mind::Candidates& found : candidates) std::free(found.data);
    const std::vector<float> scale = normal(kMany, 1.0f, 13);
    mind::EntryArguments entries{work.rows,      kLogThreshold, offsets.data(), offsets[kMany],
                                 columns.data(), values.data(), kept_sum.data()};
    entries.rows.logits = {projected.data(), mind::Type::kFloat, kMany, kVocabulary, 0};
    entries.rows.scale = scale.data();
    spread(threads, kMany, 2, [&](auto begin, auto end) { kernels.kept_values(entries, begin, end); });
    const std::string exact = exact_gradients(work, threads);
    std::free(logits);
    return bytes(numbers) + bytes(kept) + bytes(dropped_mass) + bytes(columns) + bytes(projected) + bytes(values) +
           bytes(kept_sum) + std::string(reinterpret_cast<char*>(correct), sizeof correct) + exact;
}

// Everything that the kernels of groups write, of all pairs or of a mixture.
std::string group_kernels(bool of_pairs, int threads) {
    const mind::Kernels& kernels = mind::kernels();
    constexpr std::int64_t kGroups = 3, kCount = 5, kSpan = 256, kTile = 64;
    constexpr std::int64_t kSpans = (kVocabulary + kSpan - 1) / kSpan;
    const std::vector<float> logits = normal(kGroups * kCount * kVocabulary, 2.0f, 7);
    const std::vector<float> weight = normal(kGroups * kCount * (of_pairs ? kCount : 1), 1.0f, 8);
    bool mask[kGroups * kCount];
    for (std::int64_t row = 0; row < kGroups * kCount; ++row) mask[row] = row % 7 != 6;
    std::vector<float> gradient(logits.size()), normalizer(kGroups * kCount * 2);
    std::vector<double> parts(kGroups * kSpans * (of_pairs ? kCount * (kCount - 1) / 2 : kCount));
    std::vector<double> sums(kGroups * kSpans * kCount * 2);
    const mind::GroupWork args{
        {logits.data(), kGroups, kCount, kVocabulary, weight.data(), mask, nullptr, gradient.data()},
        kSpan,
        kSpans,
        kTile,
        normalizer.data(),
        parts.data(),
        sums.data()};
    spread(threads, kGroups * kCount, 1, [&](auto begin, auto end) { kernels.group_normalizer(args, begin, end); });
    spread(threads, kGroups * kSpans, 1, [&](auto begin, auto end) {
        constexpr std::size_t kNumbers = (4 * kCount + 1) * kTile + kCount;
        constexpr std::size_t kBytes = (kNumbers * sizeof(float) + 63) / 64 * 64;
        float* scratch = static_cast<float*>(std::aligned_alloc(64, kBytes));
        (of_pairs ? kernels.pairs : kernels.mixture)(args, scratch, begin, end);
        std::free(scratch);
    });
    spread(threads, kGroups * kSpans, 1, [&](auto begin, auto end) { kernels.group_gradient(args, begin, end); });
    return bytes(normalizer) + bytes(parts) + bytes(sums) + bytes(gradient);
}

bool equal(const char* name, const std::function<std::string(int threads)>& run) {
    const std::string one = run(1);
    bool same = true;
    for (int repeat = 0; repeat < 5; ++repeat) same = run(4) == one && same;
    std::printf("%s %s: %s\n", mind::kernels().capability, name, same ? "equal" : "DIFFERENT on several threads");
    return same;
}

}  // namespace

// 0: equal and without a finding; 1: not equal; 3: this processor lacks the instruction set that is asked for.
int main() {
    try {
        mind::kernels();
    } catch (const std::exception&) {
        return 3;
    }
    bool same = equal("rows in float32", [](int threads) { return row_kernels(mind::Type::kFloat, threads); });
    same &= equal("rows in bfloat16", [](int threads) { return row_kernels(mind::Type::kBFloat16, threads); });
    same &= equal("rows in float16", [](int threads) { return row_kernels(mind::Type::kHalf, threads); });
    same &= equal("streamed rows in float32", [](int threads) { return stream_kernels(mind::Type::kFloat, threads); });
    same &=
        equal("streamed rows in bfloat16", [](int threads) { return stream_kernels(mind::Type::kBFloat16, threads); });
    same &= equal("pairs", [](int threads) { return group_kernels(true, threads); });
    same &= equal("mixture", [](int threads) { return group_kernels(false, threads); });
    return same ? 0 : 1;
}
