// Arithmetic on lanes: one number of each of N images, worked on together.
//
// A lane goes through the same operations in the same order for every N, and no operation mixes lanes: an image's
// numbers are the same bits in a batch of any size. Which sums of products are rounded once is therefore written out
// (`fused`), not left to the compiler. For x86-64 with AVX2 or AVX-512; vector types are the GCC and Clang extension.
#pragma once

#include <immintrin.h>

#include <cstdint>

#if defined(__AVX512F__)
constexpr int WIDEST = 16;  // numbers per vector register
#else
constexpr int WIDEST = 8;
#endif
constexpr int BLOCK = WIDEST;  // outputs of a product that are summed up together, one register each

template <int N>
struct Vectors {
    typedef float Float __attribute__((vector_size(4 * N), aligned(4), may_alias));
    typedef int32_t Int __attribute__((vector_size(4 * N), aligned(4), may_alias));
};
template <int N> using Float = typename Vectors<N>::Float;
template <int N> using Int = typename Vectors<N>::Int;

template <int N> static inline Float<N> load(const float* from) { return *reinterpret_cast<const Float<N>*>(from); }
template <int N> static inline void store(float* to, Float<N> value) { *reinterpret_cast<Float<N>*>(to) = value; }
template <int N> static inline Float<N> all(float value) { return value - Float<N>{}; }  // x - 0 is x, x + 0 is not

// a * b + c, rounded once
template <int N>
static inline Float<N> fused(Float<N> a, Float<N> b, Float<N> c) {
#if defined(__AVX512F__)
    if constexpr (N == 16) return (Float<N>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#endif
    if constexpr (N == 8) return (Float<N>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
    if constexpr (N == 4) return (Float<N>)_mm_fmadd_ps((__m128)a, (__m128)b, (__m128)c);
    if constexpr (N == 1) return Float<N>{__builtin_fmaf(a[0], b[0], c[0])};
}

// The polynomial with these coefficients, highest power first.
template <int N, class... Coefficients>
static inline Float<N> polynomial(Float<N> x, float highest, Coefficients... lower) {
    Float<N> value = all<N>(highest);
    ((value = fused<N>(value, x, all<N>(lower))), ...);
    return value;
}

static inline int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

// e^x to 2 units in the last place; 0 below -87, where fp32 ends.
template <int N>
static inline Float<N> exponential(Float<N> x) {
    const Float<N> lowest = all<N>(-87.0f), highest = all<N>(88.0f), not_low = x < lowest ? lowest : x;
    const Float<N> inside = not_low > highest ? highest : not_low;
    const Float<N> to_integer = all<N>(12582912.0f);  // 1.5 * 2^23: a sum with it ends in the nearest integer
    const Float<N> shifted = fused<N>(inside, all<N>(1.44269504f), to_integer), power = shifted - to_integer;
    const Float<N> large = fused<N>(power, all<N>(-0.693359375f), inside);  // ln 2 in two parts
    const Float<N> rest = fused<N>(power, all<N>(2.12194440e-4f), large);
    const Float<N> series = polynomial<N>(rest, 1.0f / 5040, 1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f,
                                          1.0f);
    const Int<N> exponent = ((Int<N>)shifted - 0x4B400000 + 127) << 23;  // the cast keeps the bits
    const Float<N> value = series * (Float<N>)exponent;
    return x < lowest ? Float<N>{} : value;
}

// x times the normal distribution function of x. Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26:
// the complementary error function to 1.5e-7.
template <int N>
static inline Float<N> gelu(Float<N> x) {
    const Float<N> magnitude = x < 0.0f ? -x : x;
    const Float<N> z = magnitude * 0.70710678f;
    const Float<N> t = 1.0f / fused<N>(z, all<N>(0.3275911f), all<N>(1.0f));
    const Float<N> series = polynomial<N>(t, 1.061405429f, -1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f);
    const Float<N> tail = series * t * exponential<N>(-z * z) * 0.5f;
    return x * (x < 0.0f ? tail : 1.0f - tail);
}

// x * sigmoid(1.702 x)
template <int N>
static inline Float<N> sigmoid_gelu(Float<N> x) {
    return x / (exponential<N>(x * -1.702f) + 1.0f);
}
