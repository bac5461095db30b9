// Vectors of floats in the compiler's own vector extension (GCC, Clang): one source for AVX-512, AVX2, NEON and SSE2.
//
// Included only by translation units that are compiled once per capability, with MIND_CAPABILITY as its name:
// everything is in a namespace of that name, so that the linker never mixes functions that were compiled for different
// processors. Standard library templates are kept out for the same reason.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __SSE2__
#include <immintrin.h>
#endif

// On what runs for every vector: a call would pass vectors through memory.
#define MIND_INLINE __attribute__((always_inline))

namespace mind::MIND_CAPABILITY {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
constexpr int kLanes = kVectorBytes / 4;

typedef float Floats __attribute__((vector_size(kVectorBytes)));
typedef std::int32_t Ints __attribute__((vector_size(kVectorBytes)));  // also a comparison's result: 0 or -1 a lane
typedef std::uint32_t Words __attribute__((vector_size(kVectorBytes)));
typedef std::uint16_t Shorts __attribute__((vector_size(kVectorBytes / 2)));

struct BFloat16 {
    std::uint16_t bits;
};
struct Half {
    std::uint16_t bits;
};

constexpr float kInfinity = __builtin_inff();

template <typename To, typename From>
MIND_INLINE inline To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

MIND_INLINE inline Floats splat(float x) { return x - Floats{}; }  // x - 0 keeps the sign of a zero, x + 0 does not

MIND_INLINE inline Ints lane_numbers() {
    Ints lanes;
    for (int i = 0; i < kLanes; ++i) lanes[i] = i;
    return lanes;
}

MIND_INLINE inline bool any(Ints mask) {
    std::uint64_t words[kVectorBytes / 8], found = 0;
    std::memcpy(words, &mask, sizeof words);
    for (std::uint64_t word : words) found |= word;
    return found != 0;
}

// Bit i: lane i of a is above lane i of b.
MIND_INLINE inline std::uint32_t bits_above(Floats a, Floats b) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ);
#elif defined(__AVX2__)
    return static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)));
#elif defined(__SSE2__)
    return static_cast<std::uint32_t>(_mm_movemask_ps(_mm_cmpgt_ps(a, b)));
#else
    const Ints above = a > b;
    std::uint32_t bits = 0;
    for (int i = 0; i < kLanes; ++i) bits |= static_cast<std::uint32_t>(above[i] & 1) << i;
    return bits;
#endif
}

// b where either is nan: what one x86 instruction does, and GCC does not always see in the conditional expression. (Its
// unmasked forms for 512 bits warn of an uninitialised vector.)
#if defined(__AVX512F__)
MIND_INLINE inline Floats max(Floats a, Floats b) { return _mm512_maskz_max_ps(0xffff, a, b); }
MIND_INLINE inline Floats min(Floats a, Floats b) { return _mm512_maskz_min_ps(0xffff, a, b); }
#elif defined(__AVX2__)
MIND_INLINE inline Floats max(Floats a, Floats b) { return _mm256_max_ps(a, b); }
MIND_INLINE inline Floats min(Floats a, Floats b) { return _mm256_min_ps(a, b); }
#elif defined(__SSE2__)
MIND_INLINE inline Floats max(Floats a, Floats b) { return _mm_max_ps(a, b); }
MIND_INLINE inline Floats min(Floats a, Floats b) { return _mm_min_ps(a, b); }
#else
MIND_INLINE inline Floats max(Floats a, Floats b) { return a > b ? a : b; }
MIND_INLINE inline Floats min(Floats a, Floats b) { return a < b ? a : b; }
#endif

// Lane i of the result is lane lanes[i] of a, or lane lanes[i] - kLanes of b.
MIND_INLINE inline Floats shuffle(Floats a, Floats b, Ints lanes) {
#ifdef __clang__
    Floats out;
    for (int i = 0; i < kLanes; ++i) out[i] = lanes[i] < kLanes ? a[lanes[i]] : b[lanes[i] - kLanes];
    return out;
#else
    return __builtin_shuffle(a, b, lanes);
#endif
}

// Horizontal sum in halves: as exact as a tree.
MIND_INLINE inline float sum(Floats v) {
    for (int width = kLanes / 2; width > 0; width /= 2) {
        for (int i = 0; i < width; ++i) v[i] += v[i + width];
    }
    return v[0];
}

MIND_INLINE inline float largest(Floats v) {
    for (int width = kLanes / 2; width > 0; width /= 2) {
        for (int i = 0; i < width; ++i) v[i] = v[i] > v[i + width] ? v[i] : v[i + width];
    }
    return v[0];
}

// Asks for the bytes that begin at `from`, which may lie beyond the end of an array.
MIND_INLINE inline void prefetch(const void* from, int bytes) {
    for (int i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(from) + i);
}

MIND_INLINE inline Floats load(const float* from) {
    Floats v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

MIND_INLINE inline Floats load(const BFloat16* from) {
    Shorts bits;
    std::memcpy(&bits, from, sizeof bits);
    return bit_cast<Floats>(__builtin_convertvector(bits, Words) << 16);
}

#if defined(__AVX512F__)
MIND_INLINE inline Floats load(const Half* from) {
    return _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
#elif defined(__F16C__)
MIND_INLINE inline Floats load(const Half* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
#else
MIND_INLINE inline Floats load(const Half* from) {
    Shorts bits;
    std::memcpy(&bits, from, sizeof bits);
    const Words half = __builtin_convertvector(bits, Words);
    const Words sign = (half & 0x8000u) << 16, magnitude = (half & 0x7fffu) << 13;
    // Exponents 1 to 30 move by 127 - 15. Subnormals get the exponent of 2^-14, whose leading one is taken off again;
    // infinity and nan move to the largest exponent.
    const Words normal = magnitude + (112u << 23);
    const Floats subnormal = bit_cast<Floats>(magnitude + (113u << 23)) - splat(6.103515625e-05f);
    Words result = magnitude < (1u << 23) ? bit_cast<Words>(subnormal) : normal;
    result = magnitude >= (31u << 23) ? normal + (112u << 23) : result;
    return bit_cast<Floats>(result | sign);
}
#endif

MIND_INLINE inline void store(float* to, Floats v) { std::memcpy(to, &v, sizeof v); }

// Round to nearest, ties to even; a nan stays one.
MIND_INLINE inline void store(BFloat16* to, Floats v) {
    const Words bits = bit_cast<Words>(v);
    const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const Words result = (bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40u : rounded;
    const Shorts shorts = __builtin_convertvector(result, Shorts);
    std::memcpy(to, &shorts, sizeof shorts);
}

#if defined(__AVX512F__)
MIND_INLINE inline void store(Half* to, Floats v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_maskz_cvtps_ph(0xffff, v, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__F16C__)
MIND_INLINE inline void store(Half* to, Floats v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
#else
MIND_INLINE inline void store(Half* to, Floats v) {
    const Words bits = bit_cast<Words>(v), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
    // 2^-14 and above: the mantissa is rounded to 10 bits, a carry goes to the exponent, and infinity from 65520 on.
    const Words rounded = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    // Below, adding 1/2 shifts the mantissa of a subnormal to the lowest bits, and rounds it.
    const Words subnormal = bit_cast<Words>(bit_cast<Floats>(magnitude) + splat(0.5f)) - bit_cast<Words>(splat(0.5f));
    Words result = magnitude < (113u << 23) ? subnormal : rounded;
    result = magnitude >= 0x477ff000u ? Words{} + 0x7c00u : result;
    result = magnitude > 0x7f800000u ? Words{} + 0x7e00u : result;
    const Shorts shorts = __builtin_convertvector(result | sign, Shorts);
    std::memcpy(to, &shorts, sizeof shorts);
}
#endif

// For what is not read again soon: whole cache lines of it reach memory without being read first. `to` is aligned to a
// vector. Another thread sees them after `finish_past_cache`.
#if defined(__AVX512F__)
MIND_INLINE inline void store_past_cache(float* to, Floats v) { _mm512_stream_ps(to, v); }
#elif defined(__AVX2__)
MIND_INLINE inline void store_past_cache(float* to, Floats v) { _mm256_stream_ps(to, v); }
#else
MIND_INLINE inline void store_past_cache(float* to, Floats v) { store(to, v); }
#endif
inline void finish_past_cache() {
#if defined(__AVX2__)
    _mm_sfence();
#endif
}

typedef double Doubles __attribute__((vector_size(kVectorBytes)));

// kLanes / 2 floats. GCC converts them in pieces of 16 bytes where it is left to itself.
MIND_INLINE inline Doubles load_doubles(const float* from) {
#if defined(__AVX512F__)
    return _mm512_maskz_cvtps_pd(0xff, _mm256_loadu_ps(from));
#elif defined(__AVX2__)
    return _mm256_cvtps_pd(_mm_loadu_ps(from));
#else
    typedef float HalfFloats __attribute__((vector_size(kVectorBytes / 2)));
    HalfFloats v;
    std::memcpy(&v, from, sizeof v);
    return __builtin_convertvector(v, Doubles);
#endif
}

MIND_INLINE inline double sum(Doubles v) {
    double total = 0.0;
    for (int i = 0; i < kLanes / 2; ++i) total += v[i];
    return total;
}

// The first `count` < kLanes elements, `fill` in the other lanes.
template <typename T>
MIND_INLINE inline Floats load_first(const T* from, std::int64_t count, float fill) {
    T padded[kLanes] = {};
    std::memcpy(padded, from, count * sizeof(T));
    return lane_numbers() < static_cast<std::int32_t>(count) ? load(padded) : splat(fill);
}

template <typename T>
MIND_INLINE inline void store_first(T* to, Floats v, std::int64_t count) {
    T padded[kLanes];
    store(padded, v);
    std::memcpy(to, padded, count * sizeof(T));
}

// One element.
template <typename T>
MIND_INLINE inline float load_one(const T* from) {
    return load_first(from, 1, 0.0f)[0];
}
MIND_INLINE inline float load_one(const float* from) { return *from; }

template <typename T>
MIND_INLINE inline void store_one(T* to, float x) {
    store_first(to, splat(x), 1);
}
MIND_INLINE inline void store_one(float* to, float x) { *to = x; }

// e^(high + low) for a small low, which is added where nothing of it is lost. For high <= 88 (larger ones count as 88),
// 0 below -87.3 where the result would be subnormal; nan for nan. Within one unit in the last place: high = n log 2 +
// r, and a polynomial of degree 7 in r.
MIND_INLINE inline Floats exp_of_sum(Floats high, Floats low) {
    const Floats bounded = min(splat(88.0f), max(splat(-87.3f), high));  // nan is the second argument: it stays
    constexpr float kRound = 12582912.0f;  // 1.5 x 2^23: adding it rounds to an integer, in the lowest bits
    const Floats shifted = bounded * 1.44269504f + kRound;
    const Floats n = shifted - kRound;
    const Floats r = ((bounded - n * 0.693359375f) - n * -2.12194440e-4f) + low;
    Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + (r + 1.0f);
    const Floats power = bit_cast<Floats>((bit_cast<Words>(shifted) + 127u) << 23);
    return high < -87.3f ? Floats{} : p * power;
}

MIND_INLINE inline Floats exp(Floats x) { return exp_of_sum(x, Floats{}); }

constexpr float kLowestExponent = -87.0f;

// e^x for x <= 0, or above it by a rounding, and at least 1e-38: 16 instructions where `exp` has 25. Within three units
// in the last place down to -20; nan for nan.
MIND_INLINE inline Floats exp_negative_at_least(Floats x) {
    const Floats bounded = max(splat(kLowestExponent), x);  // nan is the second argument: it stays
    constexpr float kRound = 12582912.0f, kLog2E = 1.44269504f;
    const Floats shifted = bounded * kLog2E + kRound;
    const Floats n = shifted - kRound;
#ifdef __FMA__
    const Floats r = bounded * kLog2E - n;  // rounded once
#else
    const Floats r = ((bounded - n * 0.693359375f) - n * -2.12194440e-4f) * kLog2E;
#endif
    Floats p = r * 1.5353360504e-4f + 1.3398875017e-3f;
    p = p * r + 9.6184369177e-3f;
    p = p * r + 5.5503323675e-2f;
    p = p * r + 2.4022647738e-1f;
    p = p * r + 6.9314718246e-1f;
    p = p * r + 1.0f;
    return p * bit_cast<Floats>((bit_cast<Words>(shifted) + 127u) << 23);
}

// The same, and 0 below -87.
MIND_INLINE inline Floats exp_negative(Floats x) { return x < kLowestExponent ? Floats{} : exp_negative_at_least(x); }

// log x of positive normal x, within one unit in the last place; anything else is for the caller to replace.
MIND_INLINE inline Floats log(Floats x) {
    const Words bits = bit_cast<Words>(x);
    const Words offset = bits - 0x3f3504f3u;  // from the bits of 2^-0.5: the mantissa lies in [2^-0.5, 2^0.5)
    const Floats e = __builtin_convertvector(bit_cast<Ints>(offset) >> 23, Floats);
    const Floats f = bit_cast<Floats>(bits - (offset & 0xff800000u)) - 1.0f;
    const Floats square = f * f;
    Floats p = f * 7.0376836292e-2f - 1.1514610310e-1f;
    p = p * f + 1.1676998740e-1f;
    p = p * f - 1.2420140846e-1f;
    p = p * f + 1.4249322787e-1f;
    p = p * f - 1.6668057665e-1f;
    p = p * f + 2.0000714765e-1f;
    p = p * f - 2.4999993993e-1f;
    p = p * f + 3.3333331174e-1f;
    const Floats rest = p * (f * square) + e * -2.12194440e-4f - square * 0.5f;
    return (f + rest) + e * 0.693359375f;
}

struct Tanh {
    Floats value, slope;  // tanh x and 1 - tanh^2 x
};

// Within a few units in the last place each. The value is a polynomial near 0, where 1 - rest would cancel; near 1 its
// only rounding is that of the difference, so that logits close to a softcap keep their order. The slope, (1 - tanh x)
// (1 + tanh x), is made from the rest, not from the value, whose rounding 1 - tanh^2 makes large where tanh is near 1.
MIND_INLINE inline Tanh tanh(Floats x) {
    const Floats size = x < 0.0f ? -x : x, square = x * x, e = exp_negative(-2.0f * size);
    Floats p = square * -5.70498872745e-3f + 2.06390887954e-2f;
    p = p * square - 5.37397155531e-2f;
    p = p * square + 1.33314422036e-1f;
    p = p * square - 3.33332819422e-1f;
    const Floats small = p * (square * x) + x;
    const Floats rest = 2.0f * e / (1.0f + e), large = 1.0f - rest;
    return {size < 0.625f ? small : (x < 0.0f ? -large : large), rest * (2.0f - rest)};
}

// 0 in the place of numbers so small that their products with hidden states or weights are subnormal: a processor
// multiplies one of these in the time of a hundred others. 2^-100 of a probability changes no digit of a sum.
MIND_INLINE inline Floats without_tiny(Floats x) { return max(x, -x) < 0x1p-100f ? Floats{} : x; }

// Row i, lane j becomes row j, lane i: kLanes is a power of two, and each step halves the distance of what is
// exchanged.
MIND_INLINE inline void transpose(Floats (&square)[kLanes]) {
    Ints low, high;
    for (int i = 0; i < kLanes; ++i) {
        low[i] = i / 2 + i % 2 * kLanes;
        high[i] = low[i] + kLanes / 2;
    }
    for (int step = 1; step < kLanes; step *= 2) {
        Floats next[kLanes];
        for (int i = 0; i < kLanes / 2; ++i) {
            next[2 * i] = shuffle(square[i], square[i + kLanes / 2], low);
            next[2 * i + 1] = shuffle(square[i], square[i + kLanes / 2], high);
        }
        for (int i = 0; i < kLanes; ++i) square[i] = next[i];
    }
}

}  // namespace mind::MIND_CAPABILITY
