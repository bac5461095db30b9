// Calls the kernels of stream.h and sort.h on tensors: checks, memory, and the work spread over PyTorch's threads.
#include "stream_operators.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <limits>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "candidate_lists.h"
#include "gradient_operators.h"
#include "kernels.h"
#include "listed.h"
#include "memory.h"
#include "sort.h"

namespace mind {

namespace {

// With this many strips per thread or more, a thread's strips go through the whole vocabulary: the sums so far then
// exclude more candidates, and fewer rows wait for others.
constexpr std::int64_t kStripsPerThread = 4;

std::int64_t spans_of(std::int64_t vocabulary) { return (vocabulary + kSpan - 1) / kSpan; }

float checked_least(double least) {
    return checked_number("least", least, "a finite float32 number", [](float) { return true; });
}

StreamArguments arguments_of(const Tensor& hidden, const Tensor& weight, const OptionalTensor& bias, double softcap,
                             double temperature) {
    check_matrix("hidden", hidden, hidden);
    check_matrix("weight", weight, hidden);
    const std::int64_t rows = hidden.size(0), vocabulary = weight.size(0);
    check_shape("weight", weight, {vocabulary, hidden.size(1)});
    check_dtype("weight", weight, hidden.scalar_type());
    STD_TORCH_CHECK(hidden.size(1) >= 1, "hidden has no columns");
    STD_TORCH_CHECK(vocabulary >= 1 && vocabulary <= INT32_MAX, "weight has ", vocabulary, " rows: expected 1 to ",
                    INT32_MAX);
    StreamArguments args{};
    args.hidden = matrix_of(hidden);
    args.weight = matrix_of(weight);
    args.bias = checked_bias(bias, hidden, vocabulary);
    args.rows.logits = {nullptr, Type::kFloat, rows, vocabulary, vocabulary};
    args.rows.head = conditions_of(softcap, temperature);
    return args;
}

// `least` -1: the vocabulary is a shard, and another one may have them.
void set_target(StreamArguments& args, const Tensor& target, const Tensor& hidden, std::int64_t least = 0) {
    args.rows.target = checked<std::int64_t>("target", target, {args.hidden.rows}, hidden);
    check_indices("target", args.rows.target, 0, args.hidden.rows, args.weight.rows, least);
}

StreamArguments arguments_of(const Tensor& hidden, const Tensor& weight, const OptionalTensor& bias,
                             const Tensor& target, double softcap, double temperature, double label_smoothing,
                             double z_loss, const Tensor& numbers, const Tensor& correct) {
    StreamArguments args = arguments_of(hidden, weight, bias, softcap, temperature);
    set_loss(args.rows, label_smoothing, z_loss);
    args.rows.numbers = checked<float>("numbers", numbers, {kRowNumbers, args.hidden.rows}, hidden);
    args.rows.correct = checked<bool>("correct", correct, {args.hidden.rows}, hidden);
    set_target(args, target, hidden);
    return args;
}

void keep_logits(StreamArguments& args, const Tensor& logits) {
    check_transposed("logits", logits, args.weight.rows, args.hidden.rows);
    args.logits = static_cast<float*>(logits.data_ptr());
    args.logits_stride = logits.stride(0);
    prefer_large_pages(args.logits, logits.numel() * static_cast<std::int64_t>(sizeof(float)));
}

// The memory of one call, and its passes.
class Stream {
public:
    Stream(const StreamArguments& args, std::int64_t most_per_row) : table_(kernels()), work_() {
        static_cast<StreamArguments&>(work_) = args;
        const std::int64_t rows = args.hidden.rows, vocabulary = args.weight.rows;
        work_.span = std::min(kSpan, vocabulary);
        work_.spans = (vocabulary + work_.span - 1) / work_.span;
        work_.strips = (rows + table_.strip_rows - 1) / table_.strip_rows;
        packed_ = allocate<float>(work_.strips * table_.strip_rows * args.hidden.columns);
        sums_.resize(rows * work_.spans);
        targets_.resize(rows);
        work_.packed = packed_.get();
        work_.sums = sums_.data();
        work_.targets = targets_.data();
        if (args.kept != nullptr) {
            lists_.resize(work_.spans * work_.strips);
            work_.candidates = lists_.data();
            work_.most = std::min(most_per_row, vocabulary) * rows;
            work_.collected = &collected_;
            work_.grow = grow;
            bounds_.resize(rows, -std::numeric_limits<float>::infinity());
        }
    }

    void statistics() {
        torch::stable::parallel_for(0, work_.strips, 1, [&](std::int64_t begin, std::int64_t end) {
            table_.pack(work_.hidden, packed_.get(), begin, end);
        });
        const std::int64_t threads = torch::stable::get_num_threads();
        if (work_.strips >= kStripsPerThread * threads) {
            work_.bounds = bounds_.empty() ? nullptr : bounds_.data();
            torch::stable::parallel_for(0, work_.strips, 1, [&](std::int64_t begin, std::int64_t end) {
                const Memory<float> scratch = allocate<float>(table_.stream_scratch(work_.hidden.columns));
                for (std::int64_t span = 0; span < work_.spans; ++span) {
                    table_.stream(work_, scratch.get(), span, begin, end);
                }
            });
        } else {
            torch::stable::parallel_for(0, work_.spans * work_.strips, 1, [&](std::int64_t begin, std::int64_t end) {
                const Memory<float> scratch = allocate<float>(table_.stream_scratch(work_.hidden.columns));
                while (begin < end) {
                    const std::int64_t span = begin / work_.strips, first = begin % work_.strips;
                    const std::int64_t last = std::min(work_.strips, first + end - begin);
                    table_.stream(work_, scratch.get(), span, first, last);
                    begin += last - first;
                }
            });
        }
        over_strips(table_.finish_stream);
    }

    bool given_up() const { return collected_ > work_.most; }

    // `kept` is known now, and with it the offsets.
    void write_kept(const std::int64_t* offsets, std::int32_t* columns, float* projected) {
        work_.offsets = offsets;
        work_.columns = columns;
        work_.projected = projected;
        over_strips(table_.write_kept);
    }

private:
    void over_strips(void (*kernel)(const StreamWork&, std::int64_t, std::int64_t)) {
        torch::stable::parallel_for(0, work_.strips, 1,
                                    [&](std::int64_t begin, std::int64_t end) { kernel(work_, begin, end); });
    }

    const Kernels& table_;
    StreamWork work_;
    Memory<float> packed_;
    std::vector<RowSums> sums_;
    std::vector<TargetLogit> targets_;
    std::vector<float> bounds_;
    CandidateLists lists_;
    std::int64_t collected_ = 0;
};

void stream_statistics(Tensor hidden, Tensor weight, OptionalTensor bias, Tensor target, double softcap,
                       double temperature, double label_smoothing, double z_loss, OptionalTensor temperatures,
                       Tensor numbers, Tensor correct, OptionalTensor logits) {
    StreamArguments args =
        arguments_of(hidden, weight, bias, target, softcap, temperature, label_smoothing, z_loss, numbers, correct);
    if (temperatures) args.temperatures = checked<float>("temperatures", *temperatures, {args.hidden.rows}, hidden);
    if (logits) keep_logits(args, *logits);
    check_apart(
        {{"numbers", numbers}, {"correct", correct}, {"logits", logits}},
        {{"hidden", hidden}, {"weight", weight}, {"bias", bias}, {"target", target}, {"temperatures", temperatures}});
    Stream(args, 0).statistics();
}

void stream_shard_sums(Tensor hidden, Tensor weight, OptionalTensor bias, Tensor target, double softcap,
                       double temperature, bool adds_logits, Tensor sums, Tensor argmax, Tensor logits) {
    StreamArguments args = arguments_of(hidden, weight, bias, softcap, temperature);
    set_target(args, target, hidden, -1);
    args.shard = {args.rows.logits, args.rows.target, args.rows.head, adds_logits, nullptr, nullptr, {}};
    args.shard.sums = checked<float>("sums", sums, {kShardSums, args.hidden.rows}, hidden);
    args.shard.argmax = checked<std::int64_t>("argmax", argmax, {args.hidden.rows}, hidden);
    check_apart({{"sums", sums}, {"argmax", argmax}, {"logits", logits}},
                {{"hidden", hidden}, {"weight", weight}, {"bias", bias}, {"target", target}});
    keep_logits(args, logits);
    Stream(args, 0).statistics();
}

void softmax_statistics(Tensor hidden, Tensor weight, OptionalTensor bias, double softcap, double temperature,
                        OptionalTensor ids, bool conditioned, Tensor softmax, Tensor logits, OptionalTensor listed) {
    StreamArguments args = arguments_of(hidden, weight, bias, softcap, temperature);
    const std::int64_t rows = args.hidden.rows;
    args.softmax = checked<double>("softmax", softmax, {kSoftmaxNumbers, rows}, hidden);
    args.conditioned = conditioned;
    STD_TORCH_CHECK(ids.has_value() == listed.has_value(), "listed: expected with ids, and without them none");
    const ListedBlocks of_ids(ids, rows, args.weight.rows, hidden);
    args.listed = of_ids.tokens();
    if (listed) args.listed_z = checked<float>("listed", *listed, {rows, args.listed.count}, hidden);
    check_apart({{"softmax", softmax}, {"logits", logits}, {"listed", listed}},
                {{"hidden", hidden}, {"weight", weight}, {"bias", bias}, {"ids", ids}});
    keep_logits(args, logits);
    Stream(args, 0).statistics();
}

std::tuple<Tensor, Tensor> stream_kept(Tensor hidden, Tensor weight, OptionalTensor bias, Tensor target, double softcap,
                                       double temperature, double label_smoothing, double z_loss, double log_threshold,
                                       OptionalTensor log_cuts, OptionalTensor floors, int64_t most_per_row,
                                       Tensor numbers, Tensor correct, Tensor kept, Tensor dropped_mass,
                                       OptionalTensor span_mass) {
    StreamArguments args =
        arguments_of(hidden, weight, bias, target, softcap, temperature, label_smoothing, z_loss, numbers, correct);
    const std::int64_t rows = args.hidden.rows;
    args.log_threshold = checked_log_threshold(log_threshold);
    STD_TORCH_CHECK(log_cuts.has_value() == floors.has_value(), "log_cuts and floors come together");
    if (log_cuts) {
        args.log_cuts = checked<float>("log_cuts", *log_cuts, {rows}, hidden);
        args.floors = checked<float>("floors", *floors, {rows}, hidden);
    }
    args.kept = checked<std::int64_t>("kept", kept, {rows}, hidden);
    args.dropped_mass = checked<float>("dropped_mass", dropped_mass, {rows}, hidden);
    if (span_mass) {
        args.span_mass = checked<float>("span_mass", *span_mass, {rows, spans_of(args.weight.rows)}, hidden);
    }
    STD_TORCH_CHECK(most_per_row >= 0, "most_per_row is ", most_per_row, ": expected 0 or more");
    check_apart({{"numbers", numbers},
                 {"correct", correct},
                 {"kept", kept},
                 {"dropped_mass", dropped_mass},
                 {"span_mass", span_mass}},
                {{"hidden", hidden},
                 {"weight", weight},
                 {"bias", bias},
                 {"target", target},
                 {"log_cuts", log_cuts},
                 {"floors", floors}});
    Stream stream(args, most_per_row);
    stream.statistics();
    const bool given_up = stream.given_up();
    if (given_up) {  // nothing is dropped: which candidates were found until then depends on the threads
        std::fill(args.kept, args.kept + rows, args.weight.rows);
        std::fill(args.dropped_mass, args.dropped_mass + rows, 0.0f);
        if (span_mass) std::fill(args.span_mass, args.span_mass + rows * spans_of(args.weight.rows), 0.0f);
    }
    std::vector<std::int64_t> offsets(rows + 1);
    for (std::int64_t i = 0; i < rows; ++i) offsets[i + 1] = offsets[i] + args.kept[i];
    const std::int64_t total = given_up ? 0 : offsets[rows];
    Tensor columns = torch::stable::new_empty(numbers, {total}, ScalarType::Int);
    Tensor projected = torch::stable::new_empty(numbers, {total});
    if (!given_up) {
        stream.write_kept(offsets.data(), static_cast<std::int32_t*>(columns.data_ptr()),
                          static_cast<float*>(projected.data_ptr()));
    }
    return {columns, projected};
}

// The entries of each row are in the vocabulary, and its target is among them.
void check_kept(const EntryArguments& args) {
    const std::int64_t rows = args.rows.logits.rows, vocabulary = args.rows.logits.columns;
    check_indices("target", args.rows.target, 0, rows, vocabulary);
    check_offsets(args.offsets, rows, args.total, 1);
    check_indices("columns", args.columns, args.offsets[0], args.offsets[rows], vocabulary);
    for (std::int64_t row = 0; row < rows; ++row) {
        const std::int32_t *first = args.columns + args.offsets[row], *last = args.columns + args.offsets[row + 1];
        STD_TORCH_CHECK(std::find(first, last, args.rows.target[row]) != last, "columns of row ", row, " lack target[",
                        row, "], ", args.rows.target[row]);
    }
}

void kept_values(Tensor columns, Tensor projected, Tensor target, Tensor scale, OptionalTensor entropy_scale,
                 double softcap, double temperature, double label_smoothing, double z_loss, int64_t vocabulary,
                 Tensor numbers, Tensor offsets, Tensor values, Tensor kept_sum, double least,
                 OptionalTensor small_sum) {
    STD_TORCH_CHECK(vocabulary >= 1 && vocabulary <= INT32_MAX, "vocabulary is ", vocabulary, ": expected 1 to ",
                    INT32_MAX);
    const std::int64_t rows = target.numel(), total = projected.numel();
    EntryArguments args{};
    args.rows.logits = {checked<float>("projected", projected, {total}, numbers), Type::kFloat, rows, vocabulary, 0};
    args.rows.target = checked<std::int64_t>("target", target, {rows}, numbers);
    args.rows.scale = checked<float>("scale", scale, {rows}, numbers);
    if (entropy_scale) args.rows.entropy_scale = checked<float>("entropy_scale", *entropy_scale, {rows}, numbers);
    args.rows.head = conditions_of(softcap, temperature);
    set_loss(args.rows, label_smoothing, z_loss);
    args.rows.numbers = checked<float>("numbers", numbers, {kRowNumbers, rows}, numbers);
    args.total = total;
    args.columns = checked<std::int32_t>("columns", columns, {total}, numbers);
    args.offsets = checked<std::int64_t>("offsets", offsets, {rows + 1}, numbers);
    args.values = checked<float>("values", values, {total}, numbers);
    args.kept_sum = checked<float>("kept_sum", kept_sum, {rows}, numbers);
    args.least = checked_least(least);
    if (small_sum) args.small_sum = checked<float>("small_sum", *small_sum, {rows, spans_of(vocabulary)}, numbers);
    check_apart({{"values", values}, {"kept_sum", kept_sum}, {"small_sum", small_sum}},
                {{"columns", columns},
                 {"projected", projected},
                 {"target", target},
                 {"scale", scale},
                 {"entropy_scale", entropy_scale},
                 {"numbers", numbers},
                 {"offsets", offsets}});
    check_kept(args);
    torch::stable::parallel_for(0, rows, 1,
                                [&](std::int64_t begin, std::int64_t end) { kernels().kept_values(args, begin, end); });
}

// The entries of a bag are those of a row whose columns increase: on that the threads rely.
void check_entries(const SortArguments& args, std::int64_t total) {
    check_offsets(args.offsets, args.bags, total);
    check_indices("order", args.order, 0, args.bags, args.bags);
    check_indices("rows", args.rows, 0, args.bags, std::int64_t{INT32_MAX} + 1);
    STD_TORCH_CHECK(args.offsets[0] == 0 && args.offsets[args.bags] == total, "offsets reach from ", args.offsets[0],
                    " to ", args.offsets[args.bags], ": expected 0 to ", total);
    std::vector<bool> seen(args.bags);
    for (std::int64_t b = 0; b < args.bags; ++b) {
        STD_TORCH_CHECK(!seen[args.order[b]], "order has ", args.order[b], " twice");
        seen[args.order[b]] = true;
        std::int64_t before = -1;
        for (std::int64_t i = args.offsets[b]; i < args.offsets[b + 1]; ++i) {
            STD_TORCH_CHECK(args.columns[i] > before && args.columns[i] < args.vocabulary, "columns[", i, "] is ",
                            args.columns[i], ": expected ", before + 1, " to ", args.vocabulary - 1);
            before = args.columns[i];
        }
    }
}

std::tuple<Tensor, Tensor, Tensor> sort_entries(Tensor order, Tensor rows, Tensor offsets, Tensor columns,
                                                Tensor values, int64_t vocabulary, double least) {
    const std::int64_t total = values.numel();
    SortArguments args{};
    args.bags = rows.numel();
    args.vocabulary = vocabulary;
    args.order = checked<std::int64_t>("order", order, {args.bags}, values);
    args.rows = checked<std::int64_t>("rows", rows, {args.bags}, values);
    args.offsets = checked<std::int64_t>("offsets", offsets, {args.bags + 1}, values);
    args.columns = checked<std::int32_t>("columns", columns, {total}, values);
    args.values = checked<float>("values", values, {total}, values);
    STD_TORCH_CHECK(vocabulary >= 0 && vocabulary <= INT32_MAX, "vocabulary is ", vocabulary, ": expected 0 to ",
                    INT32_MAX);
    check_entries(args, total);
    args.least = checked_least(least);
    Tensor starts = torch::stable::new_zeros(offsets, {vocabulary + 1});
    auto* of_column = static_cast<std::int64_t*>(starts.data_ptr());
    std::vector<std::int64_t> next(vocabulary);
    args.next = next.data();
    const auto spread = [&](void (*kernel)(const SortArguments&, std::int64_t, std::int64_t)) {
        torch::stable::parallel_for(0, vocabulary, 1024,
                                    [&](std::int64_t begin, std::int64_t end) { kernel(args, begin, end); });
    };
    spread(count_columns);
    for (std::int64_t v = 0; v < vocabulary; ++v) {
        of_column[v + 1] = of_column[v] + next[v];
        next[v] = of_column[v];
    }
    Tensor indices = torch::stable::new_empty(columns, {of_column[vocabulary]});
    Tensor sorted = torch::stable::new_empty(values, {of_column[vocabulary]});
    args.indices = static_cast<std::int32_t*>(indices.data_ptr());
    args.sorted = static_cast<float*>(sorted.data_ptr());
    spread(place_entries);
    return {starts, indices, sorted};
}

}  // namespace

void define_stream_operators(torch::stable::detail::StableLibrary& library) {
    library.def(
        "stream_statistics(Tensor hidden, Tensor weight, Tensor? bias, Tensor target, float softcap, "
        "float temperature, float label_smoothing, float z_loss, Tensor? temperatures, Tensor(a!) numbers, "
        "Tensor(b!) correct, Tensor(c!)? logits) -> ()");
    library.def(
        "stream_shard_sums(Tensor hidden, Tensor weight, Tensor? bias, Tensor target, float softcap, "
        "float temperature, bool adds_logits, Tensor(a!) sums, Tensor(b!) argmax, Tensor(c!) logits) -> ()");
    library.def(
        "softmax_statistics(Tensor hidden, Tensor weight, Tensor? bias, float softcap, float temperature, Tensor? ids, "
        "bool conditioned, Tensor(a!) softmax, Tensor(b!) logits, Tensor(c!)? listed) -> ()");
    library.def(
        "stream_kept(Tensor hidden, Tensor weight, Tensor? bias, Tensor target, float softcap, float temperature, "
        "float label_smoothing, float z_loss, float log_threshold, Tensor? log_cuts, Tensor? floors, int most_per_row, "
        "Tensor(a!) numbers, Tensor(b!) correct, Tensor(c!) kept, Tensor(d!) dropped_mass, Tensor(e!)? span_mass) -> "
        "(Tensor columns, Tensor projected)");
    library.def(
        "kept_values(Tensor columns, Tensor projected, Tensor target, Tensor scale, Tensor? entropy_scale, "
        "float softcap, float temperature, float label_smoothing, float z_loss, int vocabulary, Tensor numbers, "
        "Tensor offsets, Tensor(a!) values, Tensor(b!) kept_sum, float least, Tensor(c!)? small_sum) -> ()");
    library.def(
        "sort_entries(Tensor order, Tensor rows, Tensor offsets, Tensor columns, Tensor values, int vocabulary, "
        "float least) -> (Tensor starts, Tensor indices, Tensor sorted)");
}

void implement_stream_operators(torch::stable::detail::StableLibrary& library) {
    library.impl("stream_statistics", TORCH_BOX(&stream_statistics));
    library.impl("stream_shard_sums", TORCH_BOX(&stream_shard_sums));
    library.impl("softmax_statistics", TORCH_BOX(&softmax_statistics));
    library.impl("stream_kept", TORCH_BOX(&stream_kept));
    library.impl("kept_values", TORCH_BOX(&kept_values));
    library.impl("sort_entries", TORCH_BOX(&sort_entries));
}

}  // namespace mind
