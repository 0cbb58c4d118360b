// Linear maps of a few rows: every weight is read once, and used for all images of a group while it is at hand.
//
// Legend of array names, outermost axis first: G groups of N images, I inputs, O outputs (a multiple of BLOCK, zeros
// behind), C width, B images. A "panel" is an array (features, N): the images side by side.
#pragma once

#include "lanes.h"

constexpr int64_t AHEAD = 1024;  // weights are asked for this many numbers before they are needed

enum Activation : int32_t { NONE = 0, GELU = 1, SIGMOID_GELU = 2 };

struct Map {
    const float* weight;  // (O / BLOCK, I, BLOCK)
    const float* bias;    // (O) or null
    int64_t inputs, outputs;

    int64_t rounded_outputs() const { return round_up(outputs, BLOCK); }
};

template <int N>
static inline Float<N> activate(Float<N> x, Activation activation) {
    if (activation == GELU) return gelu<N>(x);
    return activation == SIGMOID_GELU ? sigmoid_gelu<N>(x) : x;
}

// One block of outputs of one group: sum[o] = bias[o] + sum over i, in order, of x[i] * weight[i][o].
template <int N>
static inline void sum_block(const float* x_IN, const float* weight, const float* bias, int64_t inputs, float* sum_ON) {
    Float<N> sums[BLOCK];
    for (int o = 0; o < BLOCK; ++o) sums[o] = all<N>(bias ? bias[o] : 0.0f);
    for (int64_t i = 0; i < inputs; ++i, weight += BLOCK) {
        __builtin_prefetch(weight + AHEAD);
        const Float<N> x = load<N>(x_IN + i * N);
        for (int o = 0; o < BLOCK; ++o) sums[o] = fused<N>(x, all<N>(weight[o]), sums[o]);
    }
    for (int o = 0; o < BLOCK; ++o) store<N>(sum_ON + o * N, sums[o]);
}

// Of a single image there is one number per input: here the outputs stand side by side.
template <>
inline void sum_block<1>(const float* x_I, const float* weight, const float* bias, int64_t inputs, float* sum_O) {
    Float<BLOCK> sums = bias ? load<BLOCK>(bias) : Float<BLOCK>{};
    for (int64_t i = 0; i < inputs; ++i, weight += BLOCK) {
        __builtin_prefetch(weight + AHEAD);
        sums = fused<BLOCK>(all<BLOCK>(x_I[i]), load<BLOCK>(weight), sums);
    }
    store<BLOCK>(sum_O, sums);
}

// y = activation(map(x)), or y += that. Called by all threads; each takes some of the blocks, and all wait at the end.
template <int N>
static void product(const Map& map, const float* x_GIN, int64_t x_stride, float* y_GON, int64_t groups,
                    Activation activation, bool add) {
    const int64_t y_stride = map.rounded_outputs() * N;
#pragma omp for schedule(static)
    for (int64_t block = 0; block < map.rounded_outputs(); block += BLOCK) {
        for (int64_t group = 0; group < groups; ++group) {
            float sum_ON[BLOCK * N];
            sum_block<N>(x_GIN + group * x_stride, map.weight + block * map.inputs,
                         map.bias ? map.bias + block : nullptr, map.inputs, sum_ON);
            float* y_ON = y_GON + group * y_stride + block * N;
            for (int64_t o = 0; o < BLOCK * N; o += N) {
                const Float<N> value = activate<N>(load<N>(sum_ON + o), activation);
                store<N>(y_ON + o, add ? load<N>(y_ON + o) + value : value);
            }
        }
    }
}

// Rows (B, features) -> panels; lanes without an image are 0.
template <int N>
static void to_panels(const float* rows, int64_t images, int64_t features, float* panels, int64_t stride) {
    for (int64_t image = 0; image < round_up(images, N); ++image) {
        float* lane = panels + image / N * stride + image % N;
        for (int64_t c = 0; c < features; ++c) lane[c * N] = image < images ? rows[image * features + c] : 0.0f;
    }
}

template <int N>
static void from_panels(const float* panels, int64_t stride, int64_t images, int64_t features, float* rows) {
    for (int64_t image = 0; image < images; ++image) {
        const float* lane = panels + image / N * stride + image % N;
        for (int64_t c = 0; c < features; ++c) rows[image * features + c] = lane[c * N];
    }
}

// Calls run<N>(...) with the fewest lanes that hold the batch, or the most there are.
#define WITH_LANES(images, run, ...)                    \
    do {                                                \
        if ((images) == 1) run<1>(__VA_ARGS__);         \
        else if ((images) <= 4) run<4>(__VA_ARGS__);    \
        else if ((images) <= 8) run<8>(__VA_ARGS__);    \
        else run<WIDEST>(__VA_ARGS__);                  \
    } while (0)
