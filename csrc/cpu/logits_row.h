// A row of projected logits as the row kernels see it: conditioned, in float32, a vector or a tile at a time.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace mind::MIND_CAPABILITY {

// Softcap and temperature of a row. The form without either costs nothing.
enum class Mode { kPlain, kScaled, kCapped };

inline Mode mode_of(const Conditions& head) {
    if (head.softcap > 0.0f) return Mode::kCapped;
    return head.temperature == 1.0f ? Mode::kPlain : Mode::kScaled;
}

// A conditioned logit, and the slope of the softcap there.
struct Logit {
    Floats z, slope;
};

template <Mode kMode>
struct Condition {
    static constexpr bool kPlain = kMode == Mode::kPlain;
    static constexpr bool kSlopeVaries = kMode == Mode::kCapped;
    float softcap, temperature;

    explicit Condition(const Conditions& head) : softcap(head.softcap), temperature(head.temperature) {}

    // Divided, not multiplied by an inverse, whose own rounding would be added.
    MIND_INLINE Logit operator()(Floats x) const {
        if constexpr (kMode == Mode::kCapped) {
            const Tanh t = tanh(x / softcap);
            return {softcap * t.value / temperature, t.slope};
        }
        if constexpr (kMode == Mode::kScaled) return {x / temperature, Floats{}};
        return {x, Floats{}};
    }

    // The gradient of z times d z / d x.
    MIND_INLINE Floats to_projected(Floats gradient, Logit of) const {
        if constexpr (kMode == Mode::kCapped) return gradient * (of.slope / temperature);
        if constexpr (kMode == Mode::kScaled) return gradient / temperature;
        return gradient;
    }
};

// Calls run(pointer to the element type, Condition) for the type and head of some logits.
template <typename T, typename Run>
inline void with_mode(const Conditions& head, Run run) {
    switch (mode_of(head)) {
        case Mode::kPlain:
            return run(static_cast<T*>(nullptr), Condition<Mode::kPlain>(head));
        case Mode::kScaled:
            return run(static_cast<T*>(nullptr), Condition<Mode::kScaled>(head));
        case Mode::kCapped:
            return run(static_cast<T*>(nullptr), Condition<Mode::kCapped>(head));
    }
}

template <typename Run>
inline void with_type(Type type, Run run) {
    switch (type) {
        case Type::kFloat:
            return run(static_cast<float*>(nullptr));
        case Type::kBFloat16:
            return run(static_cast<BFloat16*>(nullptr));
        case Type::kHalf:
            return run(static_cast<Half*>(nullptr));
    }
}

template <typename Run>
inline void with_row_type(const Matrix& logits, const Conditions& head, Run run) {
    with_type(logits.type, [&]<typename T>(T*) { with_mode<T>(head, run); });
}

template <typename T, typename C>
struct LogitsRow {
    T* data;
    std::int64_t size;
    C condition;

    LogitsRow(const Matrix& logits, std::int64_t row, C condition)
        : data(static_cast<T*>(logits.data) + row * logits.stride), size(logits.columns), condition(condition) {}

    MIND_INLINE Logit at(std::int64_t i) const { return condition(load(data + i)); }

    // An element in every lane.
    Logit one(std::int64_t i) const { return condition(splat(load_one(data + i))); }

    // f(logit, i) on every whole vector in [begin, end); the last, shorter one has minus infinity beyond `end`.
    template <typename F>
    MIND_INLINE void each(std::int64_t begin, std::int64_t end, F f) const {
        std::int64_t i = begin;
        for (; i + kLanes <= end; i += kLanes) f(at(i), i);
        if (i < end) {
            const auto count = static_cast<std::int32_t>(end - i);
            Logit last = condition(load_first(data + i, count, 0.0f));
            last.z = lane_numbers() < count ? last.z : splat(-kInfinity);
            f(last, i);
        }
    }

    // The largest of the elements that are numbers.
    Floats maximum(std::int64_t begin, std::int64_t end) const {
        Floats high[4] = {splat(-kInfinity), splat(-kInfinity), splat(-kInfinity), splat(-kInfinity)};
        std::int64_t i = begin;
        for (; i + 4 * kLanes <= end; i += 4 * kLanes) {
            for (int k = 0; k < 4; ++k) high[k] = max(at(i + k * kLanes).z, high[k]);
        }
        each(i, end, [&](Logit logit, std::int64_t) { high[0] = max(logit.z, high[0]); });
        return max(max(high[0], high[1]), max(high[2], high[3]));
    }

    // The same, and f's result takes the elements' place.
    template <typename F>
    MIND_INLINE void update(std::int64_t begin, std::int64_t end, F f) const {
        std::int64_t i = begin;
        for (; i + kLanes <= end; i += kLanes) store(data + i, f(at(i), i));
        if (i < end) each(i, end, [&](Logit last, std::int64_t) { store_first(data + i, f(last, i), end - i); });
    }
};

}  // namespace mind::MIND_CAPABILITY
